"""The store of runs: folders named by what the run is, whole or absent, and checked whenever they are read.

A run's folder holds experiment.yaml, history.csv, metrics.json and model.safetensors (and gradients.csv where
gradients were measured), and SHA256SUMS with the checksum of each of these, which `sha256sum -c` checks, too. Nothing
in it is ever unpickled. Beside the runs lie .locks, .checkpoints of runs that are not finished, .outputs (features and
teachers' answers) and .damaged, where what can't be read is set aside.
"""

import copy
import csv
import functools
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from labutils import files
from labutils.experiments.settings import Experiment
from labutils.training.history import History

if TYPE_CHECKING:
    from filelock import FileLock

SUMS, WEIGHTS, GRADIENTS = "SHA256SUMS", "model.safetensors", "gradients.csv"
FIGURES = ("test_top1", "seconds", "epochs_run", "best_epoch", "parameters")  # that every run has
ORIGIN = ("data", "source", "processor", "torch")
HISTORY_COLUMNS = {"epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr", "seconds"}
NAME_DIGITS = 16  # of the identity, in a folder's name


class DamagedRun(UserWarning):
    """A run's folder could not be read; it is set aside, and the run is trained anew."""


class StoreError(OSError):
    """The store of runs can't be written."""


@dataclass(frozen=True)
class Run:
    """A run: an experiment, what happened in its training, and what came of it.

    Attributes:
        experiment: its settings.
        history: what happened in each epoch.
        metrics: the final figures (validation_loss, validation_top1, validation_top5 and the same of test, of the
            best epoch's weights; of augmented trainings also validation_flips_top1 and test_flips_top1, averaged over
            each image and its mirror image; with measurement.six_views validation_views_top1 and test_views_top1, over
            six views; best_epoch; epochs_run; stopped_early; parameters, multiply_adds, layers; seconds; of a head that
            was fitted its chosen_C), the run's identity, and where they come from
            (experiment, profile, data, source, device, processor, threads, torch, version, date). Of a student's class
            own_model names the settings that it took.
            Of a run that was stopped the validation figures are those of its history, and the test figures NaN.
        path: its folder; None for a run that was stopped, which is not kept.
    """

    experiment: Experiment
    history: History
    metrics: dict
    path: Path | None
    load_model: Callable[[], nn.Module] = field(repr=False)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The trained model, in eval mode."""
        return self.load_model().eval()

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return not self.history.interrupted

    @property
    def caption(self) -> str:
        """What a figure of this run rests on: data, seed, hardware, torch; the settings that a student's class took."""
        text = "{data} ({source}); one run, seed {seed}; {processor}; torch {torch}".format(
            **self.metrics, seed=self.experiment.training.seed
        )
        if "own_model" in self.metrics:
            text += f"; a model of one's own, made with {self.metrics['own_model'] or 'no settings'}"
        return text

    def __repr__(self) -> str:
        outcome = f"test accuracy {self.metrics['test_top1']:.2%}" if self.finished else "not finished"
        return (
            f"Run({self.experiment.name}, {self.metrics['data']}: {outcome}, "
            f"{self.metrics['epochs_run']} epochs, {self.metrics['seconds']:.1f} s)"
        )


def store_root() -> Path:
    """The folder of all runs: $LABUTILS_RUNS, else runs/ at home."""
    return Path(os.environ.get("LABUTILS_RUNS") or files.home() / "runs")


def shipped_root() -> Path:
    """The folder of the runs that come with the course: data/runs at home. They are only read, never set aside."""
    return files.home() / "data" / "runs"


def run_path(identity: str, root: Path | None = None) -> Path:
    """The folder of the run that has an identity, there or not; in the store, or under another root."""
    return (root or store_root()) / identity[:NAME_DIGITS]


def outputs_folder() -> Path:
    """Where features and teachers' answers are kept."""
    return store_root() / ".outputs"


def checkpoint_path(path: Path) -> Path:
    """Where the training stands that is to fill a run's folder."""
    return path.parent / ".checkpoints" / f"{path.name}.safetensors"


def remove_checkpoints(path: Path) -> bool:
    """Forget where a run stands, of a fine-tuning each phase's checkpoint; whether there was anything to forget."""
    checkpoints = list(checkpoint_path(path).parent.glob(f"{path.name}*.safetensors"))
    for checkpoint in checkpoints:
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint)
        else:
            checkpoint.unlink(missing_ok=True)
    return bool(checkpoints)


def lock(path: Path) -> "FileLock":
    """What to hold while looking for a run and training it; the system frees it when its holder dies.

    Raises:
        StoreError: the store can't be written.
    """
    with store_errors():
        held = files.lock(path.parent / ".locks" / path.name)
        with tempfile.TemporaryFile(
            dir=path.parent / ".locks"
        ) as file:  # on a full disk, better now than after training
            file.write(bytes(4096))
    return held


@contextmanager
def signed_lock(path: Path) -> Iterator[None]:
    """Say beside a run's lock who holds it, as long as it is held; whoever can't write that says nothing."""
    signature = signature_path(path)
    with suppress(OSError), files.written_whole(signature) as partial:
        partial.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            signature.unlink()


def lock_holder(path: Path) -> str:
    """Who holds a run's lock, in words: the process and its machine, where it could say so."""
    try:
        return signature_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "another process"


def signature_path(path: Path) -> Path:
    """Where whoever holds a run's lock says who that is."""
    return path.parent / ".locks" / f"{path.name}.holder"


@contextmanager
def store_errors() -> Iterator[None]:
    """Say of an error that the store can't be written, where, and what to do; errors about other files pass."""
    try:
        yield
    except OSError as error:
        store, named = store_root(), error.filename
        elsewhere = isinstance(named, str) and not (Path(named).is_relative_to(store) or store.is_relative_to(named))
        if elsewhere or isinstance(error, StoreError):
            raise
        raise as_store_error(error) from error


def as_store_error(error: OSError) -> StoreError:
    """An error of the system about the store's files, with a remedy."""
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return StoreError(
            f"the run store {store_root()} can't be used: {error.filename or error} is not the file or folder that "
            "belongs there. Remedy: move it away, or set $LABUTILS_RUNS to another folder"
        )
    return StoreError(
        f"the run store {store_root()} can't be written ({error.strerror or error}). Remedy: free some space or "
        "its permissions, or set $LABUTILS_RUNS to another folder"
    )


def find_run(
    identity: str, experiment: Experiment, build: Callable[[], nn.Module], root: Path | None = None
) -> Run | None:
    """The run that has an identity, checked; None where the store has none.

    A damaged folder is named in a warning and, in the store and where that can be written, set aside.

    Args:
        identity: of the run.
        experiment: what it is the run of; its name and profile become the run's.
        build: makes a model into which the run's weights fit.
        root: where to look instead of in the store.

    Raises:
        StoreError: the user may not read it.
    """
    path = run_path(identity, root)
    state = folder_state(path)
    if state is None:
        return None
    try:
        return read_run(path, identity, experiment, build)
    except PermissionError as error:
        raise StoreError(
            f"the run {path} can't be read ({error.strerror}). Remedy: ask its owner to share it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        if folder_state(path) != state:  # another process has put a new one in its place meanwhile
            return find_run(identity, experiment, build, root)
        reason = " ".join(str(error).split()) or type(error).__name__
        outcome = "it stays where it is" if root else set_aside(path)
        warnings.warn(f"{path} is damaged ({reason}); {outcome}, and is trained anew", DamagedRun, stacklevel=3)
        return None


def folder_state(path: Path) -> tuple[int, int] | None:
    """Which folder has a name now; None where none has."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_ctime_ns) if path.is_dir() else None


def set_aside(path: Path) -> str:
    """Move a damaged folder out of the way; in words, what became of it."""
    try:
        goal = path.parent / ".damaged"
        files.make_shared_folder(goal)
        goal = Path(tempfile.mkdtemp(prefix=f"{path.name}-", dir=goal))
        path.rename(goal / path.name)
    except OSError as error:
        return f"it can't be moved away either ({error.strerror})"
    return f"it is set aside in {goal}"


def read_run(path: Path, identity: str, experiment: Experiment, build: Callable[[], nn.Module]) -> Run:
    """Read and check a run's folder; arguments as in `find_run`.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is missing or damaged, or of another run.
    """
    check_sums(path, *[GRADIENTS] * experiment.measurement.gradients)
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    if metrics["identity"] != identity:
        raise ValueError("it is another run than its name says")
    for name in FIGURES:
        if not isinstance(metrics[name], int | float):
            raise ValueError(f"metrics.json has {metrics[name]!r} for {name}, which should be a number")
    missing = [name for name in ORIGIN if name not in metrics]
    if missing:
        raise ValueError(f"metrics.json lacks {', '.join(missing)}")
    history = read_history(path, metrics, gradients=experiment.measurement.gradients)
    if len(history.rows) != metrics["epochs_run"] or history.best_epoch != metrics["best_epoch"]:
        raise ValueError("history.csv is not of the run that metrics.json is of")
    # Named as it was asked for: configs that differ in nothing else share a run.
    metrics |= {"experiment": experiment.name, "profile": experiment.profile}
    return Run(experiment, history, metrics, path, functools.partial(read_model, path / WEIGHTS, build))


def read_history(folder: Path, metrics: Mapping[str, object], *, gradients: bool) -> History:
    """A run's history from its files; pandas, which long tables need, would take ten times as long for a few epochs."""
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
    if not rows or not rows[0].keys() >= HISTORY_COLUMNS:
        raise ValueError(f"history.csv lacks {', '.join(sorted(HISTORY_COLUMNS - set(rows[0] if rows else ())))}")
    history = History([row | {"epoch": int(row["epoch"])} for row in rows])
    history.stopped_early = metrics["stopped_early"]
    if gradients:
        import pandas as pd

        history.probed = [norms for _, norms in pd.read_csv(folder / GRADIENTS).groupby("epoch")]
    return history


def read_model(weights: Path, build: Callable[[], nn.Module], *, keep: bool = False) -> nn.Module:
    """A run's model with its weights; the run's folder is checked again, as it may have been read long before.

    Args:
        weights: their file, in the run's folder.
        build: makes a model into which they fit.
        keep: whether a damaged run stays where it is, and is not checked; one outside the store always stays.

    Raises:
        StoreError: they can't be read, are damaged, or do not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    with torch.random.fork_rng(devices=[]):  # building draws weights, which are then replaced
        model = build()
    try:
        if not keep:
            check_sums(weights.parent)
        load_model(model, weights)
    except OSError as error:
        raise StoreError(f"{weights} can't be read ({error}). Remedy: run the experiment again") from error
    except (RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        keep = keep or weights.parents[1] != store_root()
        outcome = "it stays where it is" if keep else set_aside(weights.parent)
        remedy = "run the experiment again, which then trains it anew"
        raise StoreError(f"{weights} is damaged ({reason}); {outcome}. Remedy: {remedy}") from error
    return model


def check_sums(folder: Path, *more: str) -> None:
    """Raise ValueError unless a folder's files, and `more` of them, are, byte for byte, those that were written."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    missing = {"experiment.yaml", "history.csv", "metrics.json", WEIGHTS, *more} - sums.keys()
    if missing:
        raise ValueError(f"{SUMS} does not list {', '.join(sorted(missing))}")
    for name, digest in sums.items():
        if files.file_digest(folder / name) != digest:
            raise ValueError(f"{name} is not what was written")


def write_run(finished: Run, *, half: bool = False) -> None:
    """Write a run's folder: whole, or not at all. What was there stays until then.

    Args:
        finished: goes to its path.
        half: whether to write its weights in half precision.

    Raises:
        StoreError: it can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    path = finished.path
    model = in_half_precision(finished.model) if half else finished.model
    with store_errors(), files.workspace(path) as folder:
        new = folder / "new"
        new.mkdir()
        (new / "experiment.yaml").write_text(finished.experiment.to_yaml(), encoding="utf-8")
        finished.history.frame.to_csv(new / "history.csv", index=False)
        if finished.history.probed:
            finished.history.probes.to_csv(new / GRADIENTS, index=False)
        try:
            save_model(model, str(new / WEIGHTS))
        except SafetensorError as error:  # its own name for a full disk, too
            raise OSError(str(error)) from error
        (new / "metrics.json").write_text(json.dumps(finished.metrics, indent=2) + "\n", encoding="utf-8")
        sums = "".join(f"{files.file_digest(file)}  {file.name}\n" for file in sorted(new.iterdir()))
        (new / SUMS).write_text(sums, encoding="utf-8")
        for file in (*new.iterdir(), new):
            files.share_as(file, path.parent)
        move_into_place(new, path, folder / "replaced")
    remove_checkpoints(path)


def in_half_precision(model: nn.Module) -> nn.Module:
    """A copy of a model with its weights in half precision, but for those beyond what that can hold."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        half = parameter.data.half()
        if half.isfinite().all():
            parameter.data = half
    return copied


def move_into_place(new: Path, path: Path, aside: Path) -> None:
    """Rename a folder to its name; what has that name is put back if that fails."""
    if os.path.lexists(path):  # a link that leads nowhere, too
        path.rename(aside)
    try:
        new.rename(path)
    except BaseException:  # an interrupt, too
        if os.path.lexists(aside):
            aside.rename(path)
        raise
