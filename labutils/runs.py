"""The store of runs: run an experiment once, find it again ever after; sweeps; the committed bank of results.

A run's folder is named by its experiment's hash and holds experiment.yaml, history.csv, metrics.json and
model.safetensors (and gradients.csv where gradients were logged). It is written under another name and renamed
when whole. Nothing in it is ever unpickled.
"""

import datetime
import functools
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from labutils.data import ImageData, batches, data_root, home, load_data
from labutils.errors import SettingError, UnknownSetting, check_whole
from labutils.experiment import Experiment
from labutils.models import build_model, parameter_count
from labutils.probes import gradient_norms
from labutils.tracking import Mirror
from labutils.training import History, evaluate, fit, progress_bar

if TYPE_CHECKING:
    import pandas as pd

PROBE_IMAGES = 512  # of the training split, whose gradients are logged


class DamagedRun(UserWarning):
    """A run's folder could not be read and is trained anew."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        experiment: its settings.
        history: what happened in each epoch.
        metrics: the final figures (validation_loss, validation_top1, validation_top5 and the same of test, of the
            best epoch's weights; best_epoch; epochs_run; parameters; seconds) and where they come from (experiment,
            profile, data, source, device, processor, threads, torch, version, date).
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


def store_root() -> Path:
    """The folder of all runs: $LABUTILS_RUNS, else runs/ at home."""
    return Path(os.environ.get("LABUTILS_RUNS") or home() / "runs")


def run(
    experiment: Experiment,
    *,
    force: bool = False,
    progress: bool = True,
    on_epoch: Callable[[History], None] | None = None,
) -> Run:
    """Run an experiment, or load it where it has been run before.

    Of several processes that want the same run at once, one trains and the others load what it has found.

    Args:
        experiment: what to run.
        force: train anew even if the run is there.
        progress: whether to show a progress bar.
        on_epoch: called after each epoch of training with the history so far.

    Returns:
        The run. After an interrupt of the kernel it holds the epochs so far and is not kept.

    Raises:
        Diverged: the loss became NaN or infinite.
        OSError: the store can't be written.
    """
    from filelock import FileLock

    data = load_experiment_data(experiment)
    path = store_root() / experiment.hash(data.title)
    locks = store_root() / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / path.name):
        if path.is_dir() and not force:
            try:
                return load_run(path)
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"{path} is damaged ({error}); it is trained anew", DamagedRun, stacklevel=2)
        finished = train(experiment, data, path, progress=progress, on_epoch=on_epoch)
        if not finished.history.interrupted:
            write_run(finished)
    return finished


def train(
    experiment: Experiment,
    data: ImageData,
    path: Path,
    *,
    progress: bool,
    on_epoch: Callable[[History], None] | None,
) -> Run:
    """Build an experiment's model, train it, measure it once on the test split."""
    torch.manual_seed(experiment.training.seed)
    model = build_for(experiment, data).to(data.device)
    probe = None
    if experiment.tracking.gradients:
        images, labels = next(batches(data.train, data, PROBE_IMAGES))
        probe = functools.partial(gradient_norms, images=images, labels=labels)

    with Mirror(
        experiment.tracking,
        config={"name": experiment.name, "profile": experiment.profile, "data_title": data.title}
        | experiment.settings(),
        residual=bool(experiment.model.get("residual")),
        name=f"{experiment.name} {path.name[:6]}",
        folder=store_root(),
    ) as mirror:

        def after_epoch(history: History) -> None:
            mirror.log(history.rows[-1] | latest_gradients(history))
            if on_epoch is not None:
                on_epoch(history)

        history = fit(model, data, experiment.training, probe=probe, on_epoch=after_epoch, progress=progress)
        metrics = measure(model, data, experiment, history)
        mirror.finish(metrics)
    return Run(experiment, history, metrics, None if history.interrupted else path, trained=model)


def latest_gradients(history: History) -> dict[str, float]:
    """The last epoch's gradient norms as wandb files them; none where none were logged."""
    rows = history.probed[-1].itertuples() if history.probed else ()
    return {f"gradients/{row.name}.{row.kind}": row.norm for row in rows}


def measure(model: nn.Module, data: ImageData, experiment: Experiment, history: History) -> dict[str, object]:
    """A run's final figures and where they come from; the one use of the test split."""
    metrics = {
        "best_epoch": history.best_epoch,
        "epochs_run": len(history.rows),
        "stopped_early": history.stopped_early,
        "seconds": sum(row["seconds"] for row in history.rows),
        "parameters": parameter_count(model),
    }
    for part in ("validation", "test"):
        if getattr(data, part) is not None:
            measured = evaluate(model, part, data, precision=experiment.training.precision)
            metrics |= {f"{part}_{figure}": value for figure, value in measured.items()}
    origin = {"experiment": experiment.name, "profile": experiment.profile, "data": data.title, "source": data.source}
    return metrics | origin | provenance(data.device)


@functools.lru_cache(maxsize=2)
def cached_data(settings: tuple, root: Path) -> ImageData:
    """A data set, kept in memory for the next run on it."""
    return load_data(**dict(settings), root=root)


def load_experiment_data(experiment: Experiment) -> ImageData:
    """The data an experiment is about."""
    return cached_data(tuple(sorted(experiment.data.items())), data_root())


def build_for(experiment: Experiment, data: ImageData) -> nn.Module:
    """An experiment's model, fitting its data, with the initial weights that torch's random state gives."""
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
    """The processor as the system names it."""
    return torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()


def write_run(finished: Run) -> None:
    """Write a run's folder: whole, or not at all."""
    from safetensors.torch import save_model

    path = finished.path
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        (partial / "experiment.yaml").write_text(finished.experiment.to_yaml(), encoding="utf-8")
        finished.history.frame.to_csv(partial / "history.csv", index=False)
        if finished.history.probed:
            finished.history.probes.to_csv(partial / "gradients.csv", index=False)
        save_model(finished.trained, str(partial / "model.safetensors"))
        (partial / "metrics.json").write_text(json.dumps(finished.metrics, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if path.exists():
            path.rename(partial / "replaced")
        partial.rename(path)
        shutil.rmtree(path / "replaced", ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_run(path: Path) -> Run:
    """Read a run's folder; its model is read when it is asked for.

    Raises:
        OSError, ValueError, KeyError: a file is missing or damaged.
    """
    import pandas as pd

    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    experiment = Experiment.load(path / "experiment.yaml", profile=metrics["profile"])
    experiment = replace(experiment, name=metrics["experiment"])
    frame = pd.read_csv(path / "history.csv")
    history = History(frame.to_dict("records"))
    history.stopped_early = metrics["stopped_early"]
    if experiment.tracking.gradients:
        probes = pd.read_csv(path / "gradients.csv")
        history.probed = [rows for _, rows in probes.groupby("epoch")]
    if not (path / "model.safetensors").is_file():
        raise FileNotFoundError("model.safetensors is missing")
    return Run(experiment, history, metrics, path)


def sweep(experiments: Sequence[Experiment], *, jobs: int | None = None, progress: bool = True) -> "pd.DataFrame":
    """Run many experiments, several at once, each in one thread of a process of its own.

    Small networks gain less from a second thread than from a second process. Every run lands in the store, so a
    sweep that was stopped goes on where it was.

    Args:
        experiments: what to run, such as `grid(...)`.
        jobs: how many at once; without it one a core.
        progress: whether to show a progress bar.

    Returns:
        A row a run, in the order of the experiments: its name in the store, the settings of its model and training
        by their bare names ("none" for None), its best epoch's train_loss and train_accuracy, its metrics. A
        run that failed has its message in the column `error`.

    Raises:
        SettingError: no experiments, or jobs below 1.
    """
    import joblib
    import pandas as pd

    if not experiments:
        raise SettingError("experiments", experiments, "one experiment or more")
    if jobs is not None:
        check_whole("jobs", jobs, 1)
    jobs = min(jobs or joblib.cpu_count(), len(experiments))
    # The data set is obtained once, here, before many processes ask for it at the same time.
    for experiment in {str(experiment.data): experiment for experiment in experiments}.values():
        load_experiment_data(experiment)
    with joblib.parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
        rows = joblib.Parallel(return_as="generator_unordered")(
            joblib.delayed(run_for_sweep)(number, experiment) for number, experiment in enumerate(experiments)
        )
        done = {}
        with progress_bar(len(experiments), unit="run", visible=progress) as bar:
            for number, row in rows:
                done[number] = row
                bar.update()
    return pd.DataFrame([done[number] for number in range(len(experiments))])


def run_for_sweep(number: int, experiment: Experiment) -> tuple[int, dict]:
    """One run of a sweep, in a worker: its number and its row of the result."""
    torch.set_num_threads(1)
    try:
        finished = run(experiment, progress=False)
    except Exception as error:  # reported in the sweep's table; the other runs go on
        return number, settings_row(experiment) | {"error": f"{type(error).__name__}: {error}"}
    trained = {name: finished.history.best[name] for name in ("train_loss", "train_accuracy")}
    return number, {"run": finished.path.name} | settings_row(experiment) | trained | finished.metrics


def settings_row(experiment: Experiment) -> dict:
    """An experiment's model and training settings as a table holds them: "none" for None."""
    return {name: "none" if value is None else value for name, value in experiment.bare_settings().items()}


def results_folder() -> Path:
    """Where the bank of measured results is kept."""
    return home() / "data" / "results"


def save_results(name: str, results: "pd.DataFrame") -> Path:
    """Write a sweep's results into the bank, whole or not at all; the path of its file."""
    folder = results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    partial = path.with_suffix(".partial")
    results.to_csv(partial, index=False)
    partial.replace(path)
    return path


def load_results(name: str) -> "pd.DataFrame":
    """The banked results of an experiment of the course: a row a run, as `sweep` returns them.

    Raises:
        SettingError: nothing of that name is banked.
    """
    import pandas as pd

    path = results_folder() / f"{name}.csv"
    if not path.is_file():
        raise UnknownSetting(name, [banked.stem for banked in results_folder().glob("*.csv")])
    return pd.read_csv(path, keep_default_na=False, na_values=[""])
