"""Weights & Biases as a mirror: a run is written to its own folder first, and sent on to wandb beside that.

All of wandb's work happens in a process of its own (wandb_sender.py), fed line by line through a pipe. A wandb that is
absent, logged out, unreachable or slow costs a warning, never a run.
"""

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from labutils.errors import SettingError, check_choice, check_text
from labutils.training.callbacks import Callback, State

MODES = ("disabled", "offline", "online")
SENDER = Path(__file__).with_name("wandb_sender.py")
FINISH_TIMEOUT_S = 3  # how long a finished run waits for wandb; what is left goes on in the background


class TrackingWarning(UserWarning):
    """wandb did not mirror a run, or has not finished; the run itself is not affected."""


@dataclass(frozen=True)
class Tracking:
    """Whether a run is mirrored to wandb, and what it is filed under there.

    Args:
        wandb: disabled; offline writes wandb's files and sends nothing, without an account; online sends them.
        project: wandb's project.
        group: wandb's group; None: Residual or No Residual, as the model is.
        job_type: wandb's job type.
        tags: wandb's tags.

    Raises:
        SettingError: an unknown mode, or a name or tag that is not text.
    """

    wandb: str = "disabled"
    project: str = "deep-learning-labs"
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        check_choice("wandb", self.wandb, MODES)
        check_text("project", self.project)
        check_text("group", self.group, optional=True)
        check_text("job_type", self.job_type)
        if not isinstance(self.tags, list | tuple):
            raise SettingError("tags", self.tags, "a list of text")
        for tag in self.tags:
            check_text("tags", tag)
        object.__setattr__(self, "tags", tuple(self.tags))


class Mirror(Callback):
    """Sends one run to wandb from a process of its own; does nothing when tracking.wandb is disabled.

    A callback of the training, and a context manager: a run that fails inside is closed in wandb with its error.

    Args:
        tracking: the mode, and what the run is filed under.
        config: the run's settings, as wandb shows them.
        residual: whether the run's model has skip connections, which names its group unless tracking does.
        name: the run's name.
        folder: where wandb keeps its files; sync an offline run with `wandb sync FOLDER/wandb/offline-run-*`.
    """

    def __init__(self, tracking: Tracking, *, config: Mapping, residual: bool, name: str, folder: Path):
        self.sender: subprocess.Popen | None = None
        self.logged = 0  # epochs
        self.lines: queue.SimpleQueue = queue.SimpleQueue()
        if tracking.wandb == "disabled":
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A file takes what the sender says, as a pipe would break where the run's process is gone.
            self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in finish)
            self.sender = subprocess.Popen(
                [sys.executable, "-P", SENDER],  # -P: no file beside the sender is taken for a library's module
                stdin=subprocess.PIPE,
                stdout=self.said,
                stderr=subprocess.DEVNULL,
                # Ctrl-C ends the run, not the upload; the second line is Windows' form of the first.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            complain(f"its process can't be started ({error})")
            return
        threading.Thread(target=feed, args=(self.lines, self.sender.stdin), daemon=True, name="wandb mirror").start()
        opening = asdict(tracking) | {"name": name, "config": config, "dir": folder}
        opening["mode"] = opening.pop("wandb")
        opening["group"] = tracking.group or ("Residual" if residual else "No Residual")
        self.send(opening)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        self.finish({} if error is None else {"error": f"{kind.__name__}: {error}"})

    def after_epoch(self, state: State) -> None:
        """Hand on the figures of each new epoch: several, after the first epoch of a resumed training."""
        if self.sender is None:
            return
        history = state.whole_history
        for number in range(self.logged, len(history.rows)):
            norms = {
                f"gradients/{probe.name}.{probe.kind}": float(probe.norm)
                for frame in history.probed[number : number + 1]
                for probe in frame.itertuples()
            }
            self.send(history.rows[number] | norms)
        self.logged = len(history.rows)
        if self.sender.poll() is not None:  # it has failed: say so now, not at the training's end
            self.finish({})

    def finish(self, summary: Mapping[str, object]) -> None:
        """Hand on the final figures, and wait for wandb, but not for long. Only the first call does anything."""
        if self.sender is None:
            return
        self.send({"summary": summary})
        self.lines.put(None)
        sender, self.sender = self.sender, None
        with contextlib.suppress(subprocess.TimeoutExpired):
            sender.wait(FINISH_TIMEOUT_S)
        code = sender.poll()
        with self.said:
            self.said.seek(0)
            reasons = self.said.read().splitlines()[-1:]
        if code and not reasons:
            reasons = [f"its process ended with exit code {code}"]
        if code is None:
            reasons.append(f"it has not finished {FINISH_TIMEOUT_S} s after the run, and goes on in the background")
        if reasons:
            complain("; ".join(reasons).rstrip("."))

    def send(self, line: Mapping[str, object]) -> None:
        self.lines.put(json.dumps(line, default=str).encode() + b"\n")


def feed(lines: queue.SimpleQueue, pipe: BinaryIO) -> None:
    """Write lines to the sender until None comes; waits for a slow sender, so that the training need not."""
    with contextlib.suppress(OSError), pipe:  # the sender is gone: `Mirror` says why
        while (line := lines.get()) is not None:
            pipe.write(line)
            pipe.flush()


def complain(reason: str) -> None:
    """Say what became of wandb's copy of a run, and that nothing else happened."""
    warnings.warn(f"wandb: {reason}. The run itself is not affected.", TrackingWarning, stacklevel=2)
