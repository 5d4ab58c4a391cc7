"""Tables of runs, and the bank of those that are committed: data/results, a CSV file a sweep."""

import functools
import inspect
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, get_args

from labutils.data.loading import load_data
from labutils.errors import SettingError, UnknownSetting, check_text
from labutils.experiments.running import build_for, gradient_probes, kept_run, load_experiment_data, run_name, untrained
from labutils.experiments.settings import Experiment, Measurement
from labutils.experiments.store import Run
from labutils.files import canonical, home, written_whole
from labutils.methods.distillation import Distillation
from labutils.methods.transfer import Transfer
from labutils.models.building import MODELS
from labutils.training.settings import Training

if TYPE_CHECKING:
    import pandas as pd

DATA_SETTINGS = {"limit": "limit", "per_class": "per_class", "validation": "validation", "data_seed": "seed"}
SEEDS = ("seed", "data_seed")  # columns in which repetitions of one experiment differ
# Settings without which the others of their owner decide nothing.
STARTS = {"backbone": Transfer, "teacher": Distillation}
ORIGIN = ("experiment", "profile", "data", "source", "device", "processor", "torch", "version", "date")


def results_folder() -> Path:
    """Where the bank of measured results is kept."""
    return home() / "data" / "results"


def save_results(name: str, results: "pd.DataFrame") -> Path:
    """Write a table into the bank, whole or not at all; the path of its file."""
    path = results_folder() / f"{name}.csv"
    with written_whole(path) as partial:
        results.to_csv(partial, index=False)
    return path


def load_results(name: str) -> "pd.DataFrame":
    """The banked results of an experiment of the course: a row a run, as `sweep` returns them.

    Raises:
        SettingError: nothing of that name is banked.
        ValueError: its file is no table.
    """
    check_text("name", name)
    path = results_folder() / f"{name}.csv"
    if not path.is_file():
        raise UnknownSetting(name, [banked.stem for banked in results_folder().glob("*.csv")])
    try:
        return read_table(path)
    except ValueError as error:
        raise ValueError(f"{path} can't be read as a table: {error}") from error


def banked_rows() -> dict[str, dict]:
    """All whole rows of the bank that are runs, whichever sweep they were of, by the run's name."""
    tables = [load_results(path.stem) for path in sorted(results_folder().glob("*.csv"))]
    needed = ["run", *ORIGIN, "test_top1"]  # a file that was cut off ends in a row without some
    runs = [table.dropna(subset=needed) for table in tables if {*needed} <= {*table}]
    return {row["run"]: row for table in runs for row in table.to_dict("records")}


def save_sweep(name: str, experiments: Sequence[Experiment]) -> Path | None:
    """Bank a sweep's runs from the store and from the bank itself; the path of its file, None while there are no runs.

    While some of the runs are nowhere yet, what was in the file of runs on the same data stays in it.
    """
    known = banked_rows()
    found = {run_name(experiment): experiment for experiment in experiments}
    rows = {}
    for run, experiment in found.items():
        if run in known:  # with the settings that have come since
            rows[run] = {"run": run} | settings_row(experiment) | known[run] | settings_row(experiment)
        elif kept := kept_run(experiment):
            rows[run] = row(kept)
    if len(rows) < len(found) and (results_folder() / f"{name}.csv").is_file():
        earlier, data = load_results(name), {row["data"] for row in rows.values()}
        if "run" not in earlier:
            raise ValueError(f"{results_folder() / name}.csv is no table of runs: it has no column run")
        earlier = earlier[earlier["data"].isin(data)] if rows else earlier
        rows = {before["run"]: before for before in earlier.to_dict("records")} | rows
    return save_results(name, tabulate(list(rows.values()))) if rows else None


def tabulate(rows: "Sequence[Mapping[str, object]] | pd.DataFrame") -> "pd.DataFrame":
    """Rows as the table that the bank would give back, so that a column's type never depends on where it comes from."""
    import pandas as pd

    return read_table(io.StringIO(pd.DataFrame(rows).to_csv(index=False)))


def read_table(source: Path | io.StringIO) -> "pd.DataFrame":
    """A table from CSV. Settings that may be text are text even where all of them are numbers; an empty cell is NaN."""
    import pandas as pd

    text = {"run", "name", "error", *ORIGIN} | {name for name, types in setting_types().items() if str in types}
    return pd.read_csv(source, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(text, str))


@functools.cache
def setting_types() -> dict[str, tuple[type, ...]]:
    """The types that the values of each setting may have, by its name in a table."""
    owners = (*MODELS.values(), Transfer, Distillation, Measurement, Training)
    arguments = {name: argument for owner in owners for name, argument in inspect.signature(owner).parameters.items()}
    data = inspect.signature(load_data).parameters
    arguments |= {name: data[argument] for name, argument in DATA_SETTINGS.items()}
    annotations = {"kind": str} | {name: argument.annotation for name, argument in arguments.items()}
    return {name: get_args(kind) if isinstance(kind, UnionType) else (kind,) for name, kind in annotations.items()}


def without_unused_settings(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Rows in which the settings of a transfer or a distillation from nothing, which decide nothing, are all alike."""
    rows = rows.astype(object)
    for start, owner in STARTS.items():
        columns = [name for name in inspect.signature(owner).parameters if name in rows]
        if columns:  # before there were transfers, tables had none of them
            rows.loc[rows[start] == "none", columns] = "none"
    return rows


def with_all_settings(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Rows with the defaults of all settings that their table lacks, and those that decide nothing made alike."""
    owners = (Transfer, Distillation, Measurement, Training)
    arguments = [argument for owner in owners for argument in inspect.signature(owner).parameters.values()]
    unknown = [one for one in arguments if one.name not in rows and one.default is not one.empty]
    defaults = {one.name: cell(one.default, setting_types()[one.name]) for one in unknown}
    return without_unused_settings(rows.assign(**defaults))


def settings_that_vary(runs: "pd.DataFrame") -> list[str]:
    """The columns of settings that have more than one value."""
    return [name for name in runs if name in setting_types() and len(runs[name].unique()) > 1]


def row(finished: Run) -> dict[str, object]:
    """A run's row of a table: its folder's name, its settings, its best epoch's training figures, its metrics.

    Raises:
        SettingError: the run is not finished.
    """
    if not finished.finished:
        raise SettingError("run", finished, "a run that is finished; this one goes on when it is asked for again")
    trained = {name: finished.history.best[name] for name in ("train_loss", "train_accuracy")}
    metrics = {name: value for name, value in finished.metrics.items() if name != "identity"}
    return {"run": finished.path.name} | settings_row(finished.experiment) | trained | metrics


def failed_row(experiment: Experiment, error: Exception) -> dict[str, object]:
    """The row of a run that failed: its settings and its error."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return {"run": None} | settings_row(experiment) | {"error": message}


def settings_row(experiment: Experiment) -> dict[str, object]:
    """An experiment's settings by their bare names, as a table holds them; of the data's, those that can vary."""
    settings = experiment.bare_settings()
    data = {name: experiment.data[argument] for name, argument in DATA_SETTINGS.items()}
    named = {"kind": settings["kind"]} | data | settings
    return {name: cell(value, setting_types()[name]) for name, value in named.items()}


def cell(value: object, types: tuple[type, ...]) -> object:
    """A setting's value in a table: "none" for None, lists as text, one form for each number."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return str(canonical(value))
    return float(value) if float in types and not isinstance(value, str) else value


def histories(experiments: Iterable[Experiment]) -> "pd.DataFrame":
    """The histories of experiments that are in the store: a row an epoch, beside the run's settings and origin.

    Raises:
        SettingError: an experiment is not in the store.
    """
    import pandas as pd

    return tabulate(pd.concat([with_origin(run.history.frame, run) for run in map(stored, experiments)]))


def check_gradients(experiments: Iterable[Experiment]) -> None:
    """Refuse experiments of which one does not measure its gradients.

    Raises:
        SettingError: one does not.
    """
    if not all(experiment.measurement.gradients for experiment in experiments):
        raise SettingError("measurement.gradients", False, "true, for a table of gradients")


def gradients(experiments: Iterable[Experiment]) -> "pd.DataFrame":
    """The gradient norms that experiments in the store measured.

    Returns:
        A row a layer and epoch, for the layer's weight alone, beside the run's settings and origin; epoch 0 is before
        training, measured now.

    Raises:
        SettingError: an experiment is not in the store, or did not measure its gradients.
    """
    import pandas as pd

    tables = []
    for run in map(stored, experiments):
        check_gradients([run.experiment])
        data = load_experiment_data(run.experiment)
        (probe,) = gradient_probes(run.experiment, data)
        start = untrained(run.experiment, data, functools.partial(build_for, run.experiment, data))
        norms = pd.concat([probe.measure(start).assign(epoch=0), run.history.probes])
        weights = norms[norms["kind"] == "weight"].drop_duplicates(["epoch", "layer"])
        tables.append(with_origin(weights.drop(columns="kind"), run))
    return tabulate(pd.concat(tables))


def stored(experiment: Experiment) -> Run:
    """An experiment's run, which a sweep has put into the store."""
    found = kept_run(experiment)
    if found is None:
        raise SettingError("experiment", experiment.to_code(), "one whose run is in the store; run the sweep first")
    return found


def with_origin(table: "pd.DataFrame", run: Run) -> "pd.DataFrame":
    """A run's table beside what names the run and says where it comes from; the table's own columns stay."""
    named = row(run)
    wanted = ("run", *settings_row(run.experiment), "layers", *ORIGIN)
    return table.assign(**{name: named[name] for name in wanted if name not in table})
