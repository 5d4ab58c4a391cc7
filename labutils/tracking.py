"""Weights & Biases as a mirror: a run is written to its own folder first, and sent on to wandb beside that.

All of wandb's work happens in a thread of its own. A wandb that is absent, logged out, unreachable or slow costs a
warning, never a run.
"""

import queue
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from labutils.errors import check_choice

MODES = ("disabled", "offline", "online")
INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 20  # how long a finished run waits for wandb to catch up


class TrackingWarning(UserWarning):
    """wandb could not mirror a run; the run itself is whole."""


@dataclass(frozen=True)
class Tracking:
    """What a run logs beside its history, and where to.

    Args:
        gradients: log the gradient norm of every parameter tensor after each epoch.
        six_views: measure the trained network over six views of each image, too (see `evaluate`): six passes more.
        wandb: disabled; offline writes wandb's files and sends nothing, without an account; online sends them.
        project: wandb's project.
        group: wandb's group; without it Residual or No Residual, as the model is.
        job_type: wandb's job type.
        tags: wandb's tags.

    Raises:
        SettingError: a mode that does not exist.
    """

    gradients: bool = False
    six_views: bool = False
    wandb: str = "disabled"
    project: str = "deep-learning-labs"
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        check_choice("gradients", self.gradients, (True, False))
        check_choice("six_views", self.six_views, (True, False))
        check_choice("wandb", self.wandb, MODES)


class Mirror:
    """Sends one run to wandb from a thread of its own; does nothing when tracking.wandb is disabled.

    A context manager: a run that fails inside is closed in wandb with its error.

    Args:
        tracking: the mode, and what the run is filed under.
        config: the run's settings, as wandb shows them.
        residual: whether the run's model has skips, which names its group unless tracking does.
        name: the run's name.
        folder: where wandb keeps its files; sync an offline run with `wandb sync FOLDER/wandb/offline-run-*`.
    """

    def __init__(self, tracking: Tracking, *, config: Mapping, residual: bool, name: str, folder: Path):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = None
        if tracking.wandb != "disabled":
            folder.mkdir(parents=True, exist_ok=True)
            group = tracking.group or ("Residual" if residual else "No Residual")
            arguments = (replace(tracking, group=group), config, name, folder)
            self.thread = threading.Thread(target=self.send, args=arguments, daemon=True, name="wandb mirror")
            self.thread.start()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.finish({"error": f"{kind.__name__}: {error}"})

    def log(self, figures: Mapping[str, float]) -> None:
        """Hand on an epoch's figures; returns at once."""
        if self.thread:
            self.events.put(dict(figures))

    def finish(self, summary: Mapping[str, object]) -> None:
        """Hand on the final figures, and wait for wandb, but not for long."""
        if not self.thread:
            return
        self.events.put(None)
        self.events.put(dict(summary))
        self.thread.join(FINISH_TIMEOUT_S)
        if self.thread.is_alive():
            complain(f"it has not caught up after {FINISH_TIMEOUT_S} s and was left behind")

    def send(self, tracking: Tracking, config: Mapping, name: str, folder: Path) -> None:
        """The thread's work: open the run, log each epoch, close it."""
        try:
            import wandb

            mode = tracking.wandb
            if mode == "online" and not wandb.login(prompt=False):
                complain("nobody is logged in (remedy: wandb login); it is kept offline, for wandb sync")
                mode = "offline"
            run = wandb.init(
                project=tracking.project,
                group=tracking.group,
                job_type=tracking.job_type,
                tags=tracking.tags,
                name=name,
                config=dict(config),
                dir=folder,
                mode=mode,
                settings=wandb.Settings(
                    silent=True, console="off", reinit="create_new", init_timeout=INIT_TIMEOUT_S, x_disable_stats=True
                ),
            )
            while (figures := self.events.get()) is not None:
                run.log(figures)
            run.summary.update(self.events.get())
            run.finish()
        except Exception as error:  # whatever ails wandb, the run goes on
            complain(f"{type(error).__name__}: {error}")


def complain(reason: str) -> None:
    """Say that wandb fell away, and that nothing else did."""
    warnings.warn(f"wandb does not mirror this run: {reason}. Its own folder is whole.", TrackingWarning, stacklevel=2)
