"""Sweeps: many experiments, on all cores of a machine or of a Ray cluster.

Whatever runs them, the store decides what is left to do: a worker takes a run by its lock, and a run that is there is
never trained again. So a sweep that was stopped goes on where it was, several sweeps share their work, and a worker
that dies costs no more than the runs it was training.
"""

import functools
import json
import math
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from labutils.data import data_root, store_root
from labutils.errors import SettingError
from labutils.experiment import Experiment, blueprint
from labutils.models import parameter_count
from labutils.runs import (
    Run,
    find_run,
    gradient_probe,
    kept_run,
    load_experiment_data,
    lock,
    run_path,
    store_errors,
    train,
    train_together,
    untrained,
    write_run,
)
from labutils.stacks import stack_shape
from labutils.training import progress_bar
from labutils.workers import Workers, WorkersDied, open_workers

if TYPE_CHECKING:
    import pandas as pd

LARGEST_STACK = 8  # nets trained as one; more would outgrow a processor's caches
BUSY_POLL_S = 1.0  # how often runs that another sweep is training are looked for
PROGRESS_POLL_S = 0.5
PROGRESS_FORMAT = "{percentage:3.0f}%|{bar:20}| {desc}[{elapsed} gone, {remaining} left]"
FRUITLESS_PASSES = 3  # passes that end with dead workers and no new run, after which the rest is given up


class SweepWarning(UserWarning):
    """Workers died, and what they were doing is done again."""


def sweep(
    experiments: Sequence[Experiment], *, jobs: int | None = None, cluster: str | None = None, progress: bool = True
) -> "pd.DataFrame":
    """Run many experiments, several at once, each in one thread of a process of its own.

    Small networks gain less from a second thread than from a second process, and most from being stacked: MLPs of
    one shape are trained as one (see `labutils.stacks`), and learn what they would have learnt alone, to rounding.

    Args:
        experiments: what to run, such as `grid(...)`.
        jobs: how many processes; without it, and at most, one a core (on a cluster with GPUs, one a GPU).
        cluster: None for this machine alone; auto for the Ray cluster this machine belongs to; ray://HOST:PORT for
            one elsewhere. All its machines must see the same store and data folders.
        progress: whether to show a progress line.

    Returns:
        A row a run, in the order of the experiments: its name in the store, the settings of its model and training
        by their bare names ("none" for None), its best epoch's train_loss and train_accuracy, its metrics. A
        run that failed has its message in the column `error`.

    Raises:
        SettingError: no experiments, or jobs below 1, or a cluster's address of another form.
        ClusterError: no cluster answers at that address.
        StoreError: the store can't be written.
    """
    import pandas as pd

    if not experiments:
        raise SettingError("experiments", experiments, "one experiment or more")
    with open_workers(jobs, cluster) as workers:
        # Each data set is obtained once, here, before many processes ask for it at the same time.
        paths = [run_path(experiment, load_experiment_data(experiment)) for experiment in experiments]
        distinct = {path.name: experiment for path, experiment in zip(paths, experiments, strict=True)}
        with lock(paths[0]):
            pass  # says at once when the store can't be written
        with journal() as folder, progress_line(folder, distinct, visible=progress):
            rows = run_all(distinct, workers, folder)
    return pd.DataFrame([rows[path.name] for path in paths])


def run_all(experiments: Mapping[str, Experiment], workers: Workers, folder: Path) -> dict[str, dict]:
    """Let the workers pass over the experiments, by name of run, until each has a row; the rows."""
    places = {"LABUTILS_RUNS": str(store_root().resolve()), "LABUTILS_DATA": str(data_root().resolve())}
    for name in experiments:
        kept = find_run(store_root() / name)
        if kept is not None:
            note(folder, name, "found", row(kept))
    fruitless = 0
    while True:
        before = read_rows(folder)
        waiting = {name: experiment for name, experiment in experiments.items() if name not in before}
        if not waiting:
            return before
        died = None
        try:
            workers.work(run_tasks, plan(waiting, workers.count()), folder, environment=places)
        except WorkersDied as error:
            died = error
            warnings.warn(f"{error}; what was being trained there is trained anew", SweepWarning, stacklevel=3)
        ended = read_rows(folder).keys()
        fruitless = fruitless + 1 if died and ended == before.keys() else 0
        if fruitless == FRUITLESS_PASSES:
            for name in waiting.keys() - ended:
                note(folder, name, "failed", failed_row(experiments[name], died))
        elif ended == before.keys():
            time.sleep(BUSY_POLL_S)  # all that is left is being trained elsewhere, or its dead worker not yet gone


@functools.cache
def cached_blueprint(settings: str) -> torch.nn.Module:
    """A blueprint of model settings in JSON, kept for the runs that differ in their seeds alone: of deep nets it takes
    a while to make."""
    return blueprint(json.loads(settings))


def plan(experiments: Mapping[str, Experiment], workers: int) -> list[dict[str, Experiment]]:
    """Experiments, by name of run, as tasks for so many workers, the longest first.

    Those whose networks have one shape make up a task together, unless that would leave a worker without one.
    """
    shapes = defaultdict(dict)
    for name, experiment in experiments.items():
        shape = stack_shape(cached_blueprint(json.dumps(experiment.model)), experiment.training)
        mirrored = experiment.tracking.wandb != "disabled"
        from_others = experiment.transfer.backbone or experiment.distillation.teacher
        key = (
            name
            if shape is None or mirrored or from_others
            else json.dumps([shape, experiment.data, experiment.tracking.gradients])
        )
        shapes[key][name] = experiment
    size = min(LARGEST_STACK, math.ceil(len(experiments) / workers))
    tasks = [
        dict(list(alike.items())[start : start + size])
        for alike in shapes.values()
        for start in range(0, len(alike), size)
    ]
    return sorted(tasks, key=lambda task: sum(map(cost, task.values())), reverse=True)


def cost(experiment: Experiment) -> int:
    """How long a run takes compared with others, roughly."""
    return parameter_count(cached_blueprint(json.dumps(experiment.model))) * experiment.training.epochs


def run_tasks(tasks: Sequence[Mapping[str, Experiment]], folder: Path) -> None:
    """A worker's part: of each task what no other worker has taken, noted in the journal."""
    for task in tasks:
        ended = read_rows(folder)
        run_task({name: experiment for name, experiment in task.items() if name not in ended}, folder)


def run_task(task: Mapping[str, Experiment], folder: Path) -> None:
    """The runs of a task that are neither in training nor there already."""
    from filelock import Timeout

    with ExitStack() as held:
        mine: dict[str, Experiment] = {}
        for name, experiment in task.items():
            path = store_root() / name
            try:
                held.enter_context(lock(path).acquire(timeout=0))
            except Timeout:
                continue
            kept = find_run(path)
            if kept is None:
                note(folder, name, "running")
                mine[name] = experiment
            else:
                note(folder, name, "found", row(kept))
        for name, outcome in train_all(mine).items():
            if isinstance(outcome, Run):
                note(folder, name, "done", row(outcome))
            else:
                note(folder, name, "failed", failed_row(mine[name], outcome))


def train_all(experiments: Mapping[str, Experiment]) -> "dict[str, Run | Exception]":
    """Train experiments of one task and keep their runs; for each its run, or what went wrong."""
    if not experiments:
        return {}
    try:
        first = next(iter(experiments.values()))
        data = load_experiment_data(first)
        if len(experiments) > 1:
            outcomes = train_together(list(experiments.values()), data)
        else:
            outcomes = [train(first, data, run_path(first, data), progress=False)]
        for outcome in outcomes:
            if isinstance(outcome, Run):
                write_run(outcome)
    except Exception as error:  # reported in the sweep's table; the other tasks go on
        return dict.fromkeys(experiments, error)
    return dict(zip(experiments, outcomes, strict=True))


def row(finished: Run) -> dict[str, object]:
    """A run's row of a sweep's table."""
    trained = {name: finished.history.best[name] for name in ("train_loss", "train_accuracy")}
    return {"run": finished.path.name} | settings_row(finished.experiment) | trained | finished.metrics


def histories(experiments: Sequence[Experiment]) -> "pd.DataFrame":
    """The histories of experiments that are in the store: a row an epoch, beside the run's settings and origin."""
    import pandas as pd

    return pd.concat(
        [finished.history.frame.assign(**labels(finished)) for finished in map(swept, experiments)],
        ignore_index=True,
    )


def gradients(experiments: Sequence[Experiment]) -> "pd.DataFrame":
    """The gradient norms that experiments logged, which are in the store.

    Returns:
        A row a layer and epoch, the weights of the layer itself alone, beside the run's settings and origin; epoch 0
        is before training, measured now.
    """
    import pandas as pd

    tables = []
    for experiment in experiments:
        finished, data = swept(experiment), load_experiment_data(experiment)
        start = gradient_probe(experiment, data)(untrained(experiment, data)).assign(epoch=0)
        table = pd.concat([start, finished.history.probes])
        table = table[table["kind"] == "weight"].drop_duplicates(["epoch", "layer"])
        tables.append(table.assign(**labels(finished)))
    return pd.concat(tables, ignore_index=True)


def swept(experiment: Experiment) -> Run:
    """An experiment's run, which a sweep has put into the store.

    Raises:
        SettingError: it is not there.
    """
    kept = kept_run(experiment)
    if kept is None:
        raise SettingError("experiment", experiment, "one that is in the store; run the sweep first")
    return kept


def labels(finished: Run) -> dict[str, object]:
    """What names a run in a table of many, and says where it comes from."""
    origin = ("layers", "data", "source", "profile", "device", "processor", "torch")
    settings = {name: value for name, value in settings_row(finished.experiment).items() if name != "lr"}
    return {"run": finished.path.name} | settings | {name: finished.metrics[name] for name in origin}


def failed_row(experiment: Experiment, error: Exception) -> dict[str, object]:
    """The row of a run that failed."""
    return settings_row(experiment) | {"error": f"{type(error).__name__}: {error}"}


def settings_row(experiment: Experiment) -> dict[str, object]:
    """An experiment's settings as a table holds them: "none" for None, lists as text; of the data's, what may vary."""
    data = {"per_class": experiment.data.get("per_class"), "data_seed": experiment.data.get("seed")}
    settings = experiment.bare_settings()
    return {
        name: "none" if value is None else str(value) if isinstance(value, list) else value
        for name, value in ({"kind": settings["kind"]} | data | settings).items()
    }


@contextmanager
def journal() -> Iterator[Path]:
    """A folder in the store in which workers, wherever they are, note what becomes of each run."""
    with store_errors():
        folder = Path(tempfile.mkdtemp(prefix=".sweep-", dir=store_root()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def note(folder: Path, name: str, state: str, row: Mapping[str, object] | None = None) -> None:
    """Note in the journal what has become of a run: running; or found, done or failed, with its row."""
    partial = folder / f".{name}.{os.getpid()}"
    partial.write_text(json.dumps({"state": state, "row": row}), encoding="utf-8")
    partial.replace(folder / f"{name}.json")


def read_journal(folder: Path) -> dict[str, dict]:
    """What the journal says of each run."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}


def read_rows(folder: Path) -> dict[str, dict]:
    """The rows of the runs that have ended."""
    return {name: noted["row"] for name, noted in read_journal(folder).items() if noted["row"] is not None}


@contextmanager
def progress_line(folder: Path, experiments: Mapping[str, Experiment], *, visible: bool) -> Iterator[None]:
    """Show how many runs are done, running and failed, and the time left, from the journal, as long as it is open."""
    costs = {name: cost(experiment) for name, experiment in experiments.items()}
    bar = progress_bar(sum(costs.values()), unit="", visible=visible, bar_format=PROGRESS_FORMAT)
    over = threading.Event()

    def show() -> None:
        noted = read_journal(folder)
        states = Counter(entry["state"] for entry in noted.values())
        done = states["found"] + states["done"]
        text = f"{done} of {len(costs)} done, {states['running']} running, {states['failed']} failed "
        bar.set_description_str(text, refresh=False)
        bar.n = sum(costs[name] for name, entry in noted.items() if entry["state"] != "running")
        # What was found took no time, and must not make the rest look quick.
        bar.initial = sum(costs[name] for name, entry in noted.items() if entry["state"] == "found")
        bar.refresh()

    def watch() -> None:
        while not over.wait(PROGRESS_POLL_S):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        show()
        bar.close()
