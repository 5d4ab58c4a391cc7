"""run: train an experiment once, find it in the store ever after."""

import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from labutils import files
from labutils.data.loading import ImageData, batches, data_root, load_data
from labutils.errors import SettingError
from labutils.experiments import store
from labutils.experiments.provenance import provenance
from labutils.experiments.settings import Experiment
from labutils.experiments.store import DamagedRun, Run
from labutils.experiments.tracking import Mirror
from labutils.identity import model_identity
from labutils.methods.distillation import load_teacher
from labutils.methods.probes import gradient_norms
from labutils.methods.transfer import find_head, fine_tune, pretrained_model
from labutils.models.building import build_model
from labutils.models.counting import describe
from labutils.training.callbacks import Callback, Probe
from labutils.training.checkpoints import CheckpointError
from labutils.training.evaluation import evaluate
from labutils.training.history import History
from labutils.training.loop import fit
from labutils.training.numerics import seeded

PROBE_IMAGES = 512  # of the training split, whose gradients are measured

ModelClass = Callable[..., nn.Module]


class Busy(Exception):
    """Another process is training the run."""


def run(
    experiment: Experiment,
    *,
    model: ModelClass | None = None,
    force: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    wait: bool = True,
    shipped: bool = True,
) -> Run:
    """Run an experiment, or load it where it has been run before, here or by the course.

    Some runs come with the course. They are loaded whatever data are here, unless these are asked to be the stand-ins,
    and say in their captions and metrics on which data they were trained.

    Of several processes that want the same run at once, one trains and the others load what it has found. A run that
    was killed or interrupted goes on after its last whole epoch.

    Args:
        experiment: what to run, or the name of a config of the course.
        model: a class of your own in place of the course's. It is called with those of the experiment's model settings
            that it takes, and of in_features, in_channels and classes; the caption names them, and all others have no
            effect on it. What it computes is part of the run's identity.
        force: train anew even if the run is there, or comes with the course.
        progress: whether to show a progress bar.
        callbacks: as of `fit`, to watch with: what they change of a training is not part of the run's identity.
        wait: whether to wait for another process that is training this run.
        shipped: whether a run that comes with the course will do.

    Returns:
        The run; one that a Stop button ended is not `finished`, and goes on when it is asked for again.

    Raises:
        Diverged: the loss became NaN or infinite.
        Interrupted: as in `fit`; the epochs so far are kept, and the run goes on from them when it is asked for again.
        StoreError: the store can't be written.
        Busy: another process is training the run, and `wait` is false.
    """
    from filelock import Timeout

    if isinstance(experiment, str | Path):
        experiment = Experiment.load(experiment)
    if not isinstance(experiment, Experiment):
        raise SettingError("experiment", experiment, "an Experiment, or the name of a config of the course")
    unfit = isinstance(model, nn.Module) or not callable(model)  # a network is not the class that makes one
    if model is not None and (experiment.transfer.backbone or unfit):
        raise SettingError("model", model, "a class that makes a network, for an experiment without a backbone")
    data = load_experiment_data(experiment)
    identity = identify(experiment, data, model)
    build = functools.partial(build_for, experiment, data, model)
    if not force:  # first without the lock, so that a store which can only be read serves as well
        kept = store.find_run(identity, experiment, build)
        if kept is None and model is None and shipped:
            kept = shipped_run(experiment)
        if kept is not None:
            return kept
    path = store.run_path(identity)
    held = store.lock(path)
    try:
        with held.acquire(timeout=-1 if wait else 0), store.signed_lock(path):
            kept = None if force else store.find_run(identity, experiment, build)
            if kept is not None:
                return kept
            if force:
                store.remove_checkpoints(path)
            finished = train(experiment, data, identity, build, callbacks=callbacks, progress=progress)
            if model is not None:
                settings = taken(experiment.model, model)
                finished.metrics["own_model"] = ", ".join(f"{name} {value}" for name, value in settings.items())
            if finished.finished:
                store.write_run(finished)
    except Timeout:
        raise Busy(f"{experiment.name} is being trained by {store.lock_holder(path)}") from None
    return finished


def shipped_run(experiment: Experiment) -> Run | None:
    """The run of an experiment that comes with the course; none for an experiment on stand-ins."""
    if experiment.data["source"] == "builtin":
        return None
    build = functools.partial(build_for, experiment, load_experiment_data(experiment))
    return store.find_run(experiment.identity(None), experiment, build, store.shipped_root())


def ship_run(experiment: Experiment) -> Path:
    """Let an experiment's run, trained now if it has not been, come with the course; its folder in data/runs.

    Its weights are rounded to half precision there, which takes half the space; its figures are those of before.

    Raises:
        SettingError: as in `check_real`.
    """
    check_real(experiment)
    finished, identity = run(experiment), experiment.identity(None)
    path = store.run_path(identity, store.shipped_root())
    metrics = finished.metrics | {"identity": identity}
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_run(dataclasses.replace(finished, path=path, metrics=metrics), half=True)
    return path


def check_real(experiment: Experiment) -> None:
    """Raise SettingError where the stand-ins took the place of the data that an experiment is about.

    The bank and the course's networks are about the real ones.
    """
    data = load_experiment_data(experiment)
    if data.source == "builtin" != experiment.data["source"]:
        raise SettingError("data.name", experiment.data["name"], f"data that are here; {data.title} are not those")


def run_name(experiment: Experiment) -> str:
    """The name of an experiment's run in the store, there or not, on the data that are here."""
    return store.run_path(identify(experiment, load_experiment_data(experiment))).name


def kept_run(experiment: Experiment) -> Run | None:
    """The run of an experiment if the store has it; nothing is trained."""
    data = load_experiment_data(experiment)
    return store.find_run(identify(experiment, data), experiment, functools.partial(build_for, experiment, data))


def identify(experiment: Experiment, data: ImageData, model: ModelClass | None = None) -> str:
    """What names an experiment's run, as `Experiment.identity`; a student's model counts by what it computes."""
    if model is None:
        return experiment.identity(data)
    with seeded(experiment.training.seed, torch.device("cpu")):
        built = build_for(experiment, data, model)
    numbered = enumerate(built.state_dict().values())  # by their place: a student may change their names
    initial = files.tensors_digest({f"{number:06}": tensor for number, tensor in numbered})
    return experiment.identity(data, {"own": model_identity(built, data.image_shape), "initial": initial})


def build_for(experiment: Experiment, data: ImageData, model: ModelClass | None = None) -> nn.Module:
    """An experiment's model, fitting its data, as it is before training: random, or pretrained as its transfer says."""
    if experiment.transfer.backbone:
        wanted = {"precision": experiment.training.precision, "cache": store.outputs_folder()}
        return pretrained_model(experiment.transfer, experiment.model, data, **wanted)
    if model is None:
        return build_model(**experiment.model, image_shape=data.image_shape, classes=len(data.classes))
    sizes = {
        "in_features": math.prod(data.image_shape),
        "in_channels": data.image_shape[0],
        "classes": len(data.classes),
    }
    built = model(**taken(experiment.model | sizes, model))
    if not isinstance(built, nn.Module) or not any(weights.requires_grad for weights in built.parameters()):
        raise SettingError("model", model, "a class that makes a torch.nn.Module with weights that learn")
    return built


def taken(settings: dict[str, object], model: ModelClass) -> dict[str, object]:
    """Those of some settings that a student's class takes."""
    accepted = inspect.signature(model).parameters
    return {name: value for name, value in settings.items() if name in accepted}


def untrained(experiment: Experiment, data: ImageData, build: Callable[[], nn.Module]) -> nn.Module:
    """An experiment's model with its initial weights, on the data's device."""
    with seeded(experiment.training.seed, data.device):
        return build().to(data.device)


def train(
    experiment: Experiment,
    data: ImageData,
    identity: str,
    build: Callable[[], nn.Module],
    *,
    callbacks: Sequence[Callback],
    progress: bool,
) -> Run:
    """Build an experiment's model, train it, measure it once on the test split."""
    path = store.run_path(identity)
    model = untrained(experiment, data, build)
    about = {"name": experiment.name, "profile": experiment.profile, "data_title": data.title}
    mirror = Mirror(
        experiment.tracking,
        config=about | experiment.settings(),
        residual=bool(experiment.model.get("residual")),
        name=f"{experiment.name} {path.name[:6]}",
        folder=store.store_root(),
    )
    with mirror, store.store_errors():
        probes = gradient_probes(experiment, data)
        options = {"checkpoint": store.checkpoint_path(path), "progress": progress}
        learn = functools.partial(learn_task, experiment, data=data, callbacks=[*probes, mirror, *callbacks], **options)
        try:
            history = learn(model)
        except CheckpointError as error:  # damaged, or from before a change to the course
            if not store.remove_checkpoints(path):  # it is a network that the experiment starts or learns from
                raise
            warnings.warn(f"{error}; the run is trained from its beginning", DamagedRun, stacklevel=3)
            model = untrained(experiment, data, build)  # an earlier phase may have changed the first one
            history = learn(model)
        metrics = {"identity": identity, **measure(model, data, experiment, history)}
        mirror.finish(metrics)
    return Run(experiment, history, metrics, None if history.interrupted else path, lambda: model)


def learn_task(
    experiment: Experiment, model: nn.Module, data: ImageData, callbacks: Sequence[Callback], **options: object
) -> History:
    """Train a model as the experiment says: by fit, by fine-tuning, by a fitted head, or with a teacher.

    The options are those of fit.
    """
    training, transfer, distillation = experiment.training, experiment.transfer, experiment.distillation
    if transfer.backbone and transfer.method != "fine_tuning":
        return find_head(model, data, transfer, precision=training.precision, cache=store.outputs_folder())
    if transfer.backbone:
        return fine_tune(model, data, training, transfer, callbacks=callbacks, **options)
    if distillation.teacher:
        teacher = load_teacher(distillation, data, training, cache=store.outputs_folder())
        return fit(model, data, training, loss=teacher.loss, callbacks=[teacher, *callbacks], **options)
    return fit(model, data, training, callbacks=callbacks, **options)


def gradient_probes(experiment: Experiment, data: ImageData) -> list[Probe]:
    """What measures the gradients after each epoch, for an experiment that wants it."""
    if not experiment.measurement.gradients:
        return []
    images, labels = next(batches(data.train, data, PROBE_IMAGES))
    return [Probe(functools.partial(gradient_norms, images=images, labels=labels))]


def measure(model: nn.Module, data: ImageData, experiment: Experiment, history: History) -> dict[str, object]:
    """A run's figures and where they come from."""
    metrics = {
        "best_epoch": history.best_epoch,
        "epochs_run": len(history.rows),
        "stopped_early": history.stopped_early,
        "seconds": sum(row["seconds"] for row in history.rows),
        **describe(model, data.image_shape),
    }
    if history.rows and "C" in history.rows[-1]:  # of a head that was found for frozen features
        metrics["chosen_C"] = history.rows[-1]["C"]
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
            if experiment.measurement.six_views:
                figures[f"{part}_views_top1"] = measured(views=6)["top1"]
    return figures


def figures_so_far(history: History) -> dict[str, float]:
    """The best epoch's validation figures of a run that was stopped; the test split is for finished ones."""
    best = history.best if history.rows else {"validation_loss": math.nan, "validation_accuracy": math.nan}
    return {
        "validation_loss": best["validation_loss"],
        "validation_top1": best["validation_accuracy"],
        "test_loss": math.nan,
        "test_top1": math.nan,
    }


def load_experiment_data(experiment: Experiment) -> ImageData:
    """The data an experiment is about, kept in memory for the next run on them."""
    archive = data_root() / f"{experiment.data['name']}.npz"
    stat = archive.stat() if archive.is_file() else None
    version = None if stat is None else (stat.st_mtime_ns, stat.st_size)  # an archive may be replaced meanwhile
    return cached_data(tuple(sorted(experiment.data.items())), data_root(), version)


@functools.lru_cache(maxsize=2)
def cached_data(settings: tuple, root: Path, version: tuple | None) -> ImageData:
    """A data set; `version` says which state of its archive is meant."""
    return load_data(**dict(settings), root=root)
