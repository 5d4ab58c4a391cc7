"""The store of runs: run an experiment once, find it again ever after.

A run's folder is named by its experiment's hash and holds experiment.yaml, history.csv, metrics.json and
model.safetensors (and gradients.csv where gradients were logged). It is written under another name and renamed
when whole. Nothing in it is ever unpickled.
"""

import datetime
import functools
import json
import math
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from labutils.checkpoints import CheckpointError, make_shared_folder
from labutils.data import ImageData, batches, data_root, load_data, store_root
from labutils.distillation import teaching
from labutils.experiment import Experiment
from labutils.models import build_model, describe
from labutils.probes import gradient_norms
from labutils.stacks import fit_stack
from labutils.tracking import Mirror
from labutils.training import Diverged, History, evaluate, fit
from labutils.transfer import adapt, taken_over
from labutils.workspaces import workspace

if TYPE_CHECKING:
    import pandas as pd
    from filelock import FileLock

PROCESSORS = Path("/proc/cpuinfo")  # Linux's description of them
PROBE_IMAGES = 512  # of the training split, whose gradients are logged


class DamagedRun(UserWarning):
    """A run's folder could not be read and is trained anew."""


class StoreError(OSError):
    """The store of runs can't be written."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        experiment: its settings.
        history: what happened in each epoch.
        metrics: the final figures (validation_loss, validation_top1, validation_top5 and the same of test, of the
            best epoch's weights; of augmented trainings also validation_flips_top1 and test_flips_top1, averaged over
            each image and its mirror image; with tracking.six_views validation_views_top1 and test_views_top1, over six
            views; best_epoch; epochs_run; parameters, multiply_adds, layers; seconds) and where they come from
            (experiment, profile, data, source, device, processor, threads, torch, version, date).
            Of an interrupted run the validation figures are those of its history, and the test figures NaN.
        path: its folder; None for an interrupted run, which is not kept.
    """

    experiment: Experiment
    history: History
    metrics: dict
    path: Path | None
    trained: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The trained model, in eval mode."""
        if self.trained is not None:
            return self.trained.eval()
        from safetensors.torch import load_model

        model = build_for(self.experiment, load_experiment_data(self.experiment))
        load_model(model, self.path / "model.safetensors")
        return model.eval()

    @property
    def caption(self) -> str:
        """What a figure of this run rests on: data, seed, hardware, torch."""
        return "{data} ({source}); one run, seed {seed}; {processor}; torch {torch}".format(
            **self.metrics, seed=self.experiment.training.seed
        )

    def __repr__(self) -> str:
        return (
            f"Run({self.experiment.name}, {self.metrics['data']}: test accuracy {self.metrics['test_top1']:.2%}, "
            f"{self.metrics['epochs_run']} epochs, {self.metrics['seconds']:.1f} s)"
        )


def run(
    experiment: Experiment,
    *,
    force: bool = False,
    progress: bool = True,
    on_epoch: Callable[[History], None] | None = None,
    on_step: Callable[[float, torch.Tensor], None] | None = None,
) -> Run:
    """Run an experiment, or load it where it has been run before.

    Of several processes that want the same run at once, one trains and the others load what it has found. A run that
    was killed or interrupted goes on after its last whole epoch.

    Args:
        experiment: what to run.
        force: train anew even if the run is there.
        progress: whether to show a progress bar.
        on_epoch, on_step: as of `fit`.

    Returns:
        The run. After an interrupt of the kernel it holds the epochs so far; the rest are trained when it is asked for
        again.

    Raises:
        Diverged: the loss became NaN or infinite.
        StoreError: the store can't be written.
    """
    data = load_experiment_data(experiment)
    path = run_path(experiment, data)
    if path.is_dir() and not force:  # then a store does that can only be read
        kept = find_run(path)
        if kept is not None:
            return kept
    with lock(path):
        kept = None if force else find_run(path)
        if kept is not None:
            return kept
        if force:
            remove_checkpoints(path)
        finished = train(experiment, data, path, progress=progress, on_epoch=on_epoch, on_step=on_step)
        if not finished.history.interrupted:
            write_run(finished)
    return finished


def kept_run(experiment: Experiment) -> Run | None:
    """The run of an experiment if the store has it; nothing is trained."""
    return find_run(run_path(experiment, load_experiment_data(experiment)))


def run_path(experiment: Experiment, data: ImageData) -> Path:
    """The folder of an experiment's run, there or not."""
    return store_root() / experiment.hash(data.title)


def checkpoint_path(path: Path) -> Path:
    """Where a run that is not finished stands, of which this will be the folder."""
    return path.parent / ".checkpoints" / f"{path.name}.safetensors"


def remove_checkpoints(path: Path) -> None:
    """Forget where a run stands; a fine-tuning in phases has a checkpoint for each."""
    for checkpoint in checkpoint_path(path).parent.glob(f"{path.name}*.safetensors"):
        checkpoint.unlink(missing_ok=True)


def lock(path: Path) -> "FileLock":
    """What to hold while looking for a run and training it; the system frees it when its holder dies.

    Raises:
        StoreError: the store can't be written.
    """
    from filelock import FileLock

    locks = path.parent / ".locks"
    with store_errors():
        make_shared_folder(locks)
        with tempfile.TemporaryFile(dir=locks) as file:  # on a full disk, better now than after training
            file.write(bytes(4096))
    return FileLock(locks / path.name, mode=0o666)  # of another user's, too, where a class shares the store


@contextmanager
def store_errors() -> Iterator[None]:
    """Say of an error that the store can't be written, where, and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the run store {store_root()} can't be written ({error.strerror or error}). Remedy: free some space or "
            "its permissions, or set $LABUTILS_RUNS to another folder"
        ) from error


def find_run(path: Path) -> Run | None:
    """The run kept in a folder; None, with a warning if it is damaged, where it has to be trained."""
    if not path.is_dir():
        return None
    try:
        return load_run(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is damaged ({error}); it is trained anew", DamagedRun, stacklevel=3)
        return None


def train(
    experiment: Experiment,
    data: ImageData,
    path: Path,
    *,
    progress: bool,
    on_epoch: Callable[[History], None] | None = None,
    on_step: Callable[[float, torch.Tensor], None] | None = None,
) -> Run:
    """Build an experiment's model, train it, measure it once on the test split."""
    model = untrained(experiment, data)
    with Mirror(
        experiment.tracking,
        config={"name": experiment.name, "profile": experiment.profile, "data_title": data.title}
        | experiment.settings(),
        residual=bool(experiment.model.get("residual")),
        name=f"{experiment.name} {path.name[:6]}",
        folder=store_root(),
    ) as mirror:
        logged = 0

        def after_epoch(history: History) -> None:
            nonlocal logged
            for number in range(logged, len(history.rows)):  # several after the first epoch of a resumed run
                mirror.log(history.rows[number] | gradients_of(history, number))
            logged = len(history.rows)
            if on_epoch is not None:
                on_epoch(history)

        checkpoint = checkpoint_path(path)
        learn = fit
        if experiment.transfer.backbone:
            learn = functools.partial(adapt, transfer=experiment.transfer)
        elif experiment.distillation.teacher:
            learn = functools.partial(fit, **teaching(experiment.distillation, data, experiment.training))
        fit_it = functools.partial(
            learn,
            model,
            data,
            experiment.training,
            probe=gradient_probe(experiment, data),
            on_epoch=after_epoch,
            on_step=on_step,
            checkpoint=checkpoint,
            progress=progress,
        )
        with store_errors():
            try:
                history = fit_it()
            except CheckpointError as error:  # damaged, or from before a change to the course
                warnings.warn(f"{error}; the run is trained from its beginning", DamagedRun, stacklevel=3)
                remove_checkpoints(path)
                history = fit_it()
        metrics = measure(model, data, experiment, history)
        mirror.finish(metrics)
    return Run(experiment, history, metrics, None if history.interrupted else path, trained=model)


def train_together(experiments: Sequence[Experiment], data: ImageData) -> "list[Run | Diverged]":
    """Train experiments whose networks can be stacked as one; for each its run, or why its training ended."""
    models = [untrained(experiment, data) for experiment in experiments]
    trainings = [experiment.training for experiment in experiments]
    histories = fit_stack(models, data, trainings, probe=gradient_probe(experiments[0], data))
    return [
        history
        if isinstance(history, Diverged)
        else Run(
            experiment,
            history,
            measure(model, data, experiment, history) | {"trained_together": len(models)},
            run_path(experiment, data),
            trained=model,
        )
        for experiment, model, history in zip(experiments, models, histories, strict=True)
    ]


def untrained(experiment: Experiment, data: ImageData) -> nn.Module:
    """An experiment's model with its initial weights, on the data's device."""
    torch.manual_seed(experiment.training.seed)
    return build_for(experiment, data).to(data.device)


def gradient_probe(experiment: Experiment, data: ImageData) -> "Callable[[nn.Module], pd.DataFrame] | None":
    """What measures a model after each epoch of an experiment that logs gradients."""
    if not experiment.tracking.gradients:
        return None
    images, labels = next(batches(data.train, data, PROBE_IMAGES))
    return functools.partial(gradient_norms, images=images, labels=labels)


def gradients_of(history: History, number: int) -> dict[str, float]:
    """The gradient norms after one of a history's epochs as wandb files them; none where none were logged."""
    rows = history.probed[number].itertuples() if history.probed else ()
    return {f"gradients/{row.name}.{row.kind}": row.norm for row in rows}


def measure(model: nn.Module, data: ImageData, experiment: Experiment, history: History) -> dict[str, object]:
    """A run's figures and where they come from."""
    metrics = {
        "best_epoch": history.best_epoch,
        "epochs_run": len(history.rows),
        "stopped_early": history.stopped_early,
        "seconds": sum(row["seconds"] for row in history.rows),
        "trained_together": 1,
        **describe(model, data.image_shape),
    }
    figures = figures_so_far(history) if history.interrupted else final_figures(model, data, experiment)
    origin = {"experiment": experiment.name, "profile": experiment.profile, "data": data.title, "source": data.source}
    return metrics | figures | origin | provenance(data.device)


def final_figures(model: nn.Module, data: ImageData, experiment: Experiment) -> dict[str, float]:
    """How well a trained model does on the validation and the test split; the one use of the test split."""
    figures = {}
    for part in ("validation", "test"):
        if getattr(data, part) is not None:
            measured = functools.partial(evaluate, model, part, data, precision=experiment.training.precision)
            figures |= {f"{part}_{figure}": value for figure, value in measured().items()}
            if experiment.training.augment is not None:  # it has learnt that a mirror image shows the same
                figures[f"{part}_flips_top1"] = measured(views=2)["top1"]
            if experiment.tracking.six_views:
                figures[f"{part}_views_top1"] = measured(views=6)["top1"]
    return figures


def figures_so_far(history: History) -> dict[str, float]:
    """The best epoch's validation figures of a run that was interrupted, which has no business with the test split."""
    best = history.best if history.rows else {"validation_loss": math.nan, "validation_accuracy": math.nan}
    return {
        "validation_loss": best["validation_loss"],
        "validation_top1": best["validation_accuracy"],
        "test_loss": math.nan,
        "test_top1": math.nan,
    }


@functools.lru_cache(maxsize=2)
def cached_data(settings: tuple, root: Path) -> ImageData:
    """A data set, kept in memory for the next run on it."""
    return load_data(**dict(settings), root=root)


def load_experiment_data(experiment: Experiment) -> ImageData:
    """The data an experiment is about."""
    return cached_data(tuple(sorted(experiment.data.items())), data_root())


def build_for(experiment: Experiment, data: ImageData) -> nn.Module:
    """An experiment's model, fitting its data, as it is before training: random, or taken over from its backbone."""
    if experiment.transfer.backbone:
        return taken_over(experiment.transfer, experiment.model, data)
    return build_model(**experiment.model, image_shape=data.image_shape, classes=len(data.classes))


def provenance(device: torch.device) -> dict[str, object]:
    """Where and with what a figure was made."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": version("labutils"),
        "date": datetime.date.today().isoformat(),
    }


def processor_name() -> str:
    """The processor as the system names it; by family and model, too, where a virtual machine hides its number."""
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    if any(map(str.isdigit, name)) or not PROCESSORS.is_file():
        return name
    kind = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", PROCESSORS.read_text(encoding="utf-8"), re.MULTILINE))
    return f"{name} (family {kind['cpu family']}, model {kind['model']})" if len(kind) == 2 else name


def write_run(finished: Run) -> None:
    """Write a run's folder: whole, or not at all.

    Raises:
        StoreError: it can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    path = finished.path
    with store_errors(), workspace(path) as folder:
        (folder / "experiment.yaml").write_text(finished.experiment.to_yaml(), encoding="utf-8")
        finished.history.frame.to_csv(folder / "history.csv", index=False)
        if finished.history.probed:
            finished.history.probes.to_csv(folder / "gradients.csv", index=False)
        try:
            save_model(finished.trained, str(folder / "model.safetensors"))
        except SafetensorError as error:  # its own name for a full disk, too
            raise OSError(str(error)) from error
        (folder / "metrics.json").write_text(json.dumps(finished.metrics, indent=2) + "\n", encoding="utf-8")
        folder.chmod(0o755)  # for all who share the store
        (folder / "model.safetensors").chmod(0o644)
        if path.exists():
            path.rename(folder / "replaced")
        folder.rename(path)
        shutil.rmtree(path / "replaced", ignore_errors=True)
        remove_checkpoints(path)


def load_run(path: Path) -> Run:
    """Read a run's folder; its model is read when it is asked for.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is missing or damaged.
    """
    import pandas as pd
    from safetensors import SafetensorError, safe_open

    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    experiment = Experiment.load(path / "experiment.yaml", profile=metrics["profile"])
    experiment = replace(experiment, name=metrics["experiment"])
    frame = pd.read_csv(path / "history.csv")
    history = History(frame.to_dict("records"))
    if len(frame) != metrics["epochs_run"] or history.best_epoch != metrics["best_epoch"]:
        raise ValueError("history.csv is not of the run that metrics.json is of")
    history.stopped_early = metrics["stopped_early"]
    if experiment.tracking.gradients:
        probes = pd.read_csv(path / "gradients.csv")
        history.probed = [rows for _, rows in probes.groupby("epoch")]
    try:
        with safe_open(path / "model.safetensors", framework="pt"):  # reads the list of tensors, and checks the size
            pass
    except SafetensorError as error:
        raise ValueError(f"model.safetensors: {error}") from error
    return Run(experiment, history, metrics, path)
