"""A sweep's results as a table and figures, on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from labutils import plots
from labutils.errors import SettingError
from labutils.experiment import Experiment, grid
from labutils.results import load_results, settings_that_vary
from labutils.runs import find_run, load_experiment_data, run_path
from labutils.sweeps import row

MEASURED = ("test_top1", "validation_top1", "train_accuracy", "seconds")
DEPTH_COLUMNS = {"depth": "depth", "blocks": "layers"}  # of a table, by the setting that makes a net deep
MOST_LINES = 8  # that can be told apart in one figure
MOST_ROWS = 40  # that can be read in one figure


def report(name: str, folder: Path, *, profile: str | None = None) -> tuple[pd.DataFrame, list[Path]]:
    """Write a sweep's runs, its summary and its figures.

    Args:
        name: a config of the course with a sweep section, or the path of one.
        folder: where the files go; made if absent.
        profile: as in `Experiment.load`.

    Returns:
        The summary (a row a setting: mean and standard deviation over seeds, and their number n), and the files:
        runs.csv, summary.csv and a PNG for each figure.

    Raises:
        SettingError: no run of the sweep is in the store, and none is banked.
    """
    runs = finished_runs(grid(name, profile=profile), name)
    axes = [axis for axis in settings_that_vary(runs) if axis not in ("seed", "data_seed")]
    summary = summarise(runs, axes)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for stem, table in (("runs", runs), ("summary", summary)):
        files.append(folder / f"{stem}.csv")
        table.to_csv(files[-1], index=False)
    for stem, figure in figures(runs, axes).items():
        files.append(folder / f"{stem}.png")
        files[-1].write_bytes(figure.png())
    return summary, files


def finished_runs(experiments: Sequence[Experiment], name: str) -> pd.DataFrame:
    """The runs of a sweep that are in the store; where none is, the banked ones of that name and profile."""
    kept = [find_run(run_path(experiment, load_experiment_data(experiment))) for experiment in experiments]
    rows = [row(run) for run in kept if run is not None]
    if rows:
        return pd.DataFrame(rows)
    profile = experiments[0].profile
    try:
        banked = load_results(experiments[0].name)
    except SettingError:
        banked = pd.DataFrame({"profile": []})
    banked = banked[banked["profile"] == profile]
    if banked.empty:
        raise SettingError(
            "report", f"{name} at the {profile} profile", "a sweep with finished runs (`labutils sweep` makes them)"
        )
    return banked


def summarise(runs: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """A row a setting: n, and mean and standard deviation (NaN for a single run) of what was measured."""
    groups = runs.groupby(list(axes), sort=False) if axes else runs.groupby(lambda _: 0)
    summary = groups.agg(
        n=("test_top1", "size"),
        parameters=("parameters", "first"),
        **{f"{name}_{how}": (name, how) for name in MEASURED if name in runs for how in ("mean", "std")},
    )
    return summary.reset_index(drop=not axes)


def figures(runs: pd.DataFrame, axes: Sequence[str]) -> dict[str, plots.Chart]:
    """The figures that suit a sweep over these axes."""
    drawn = {}
    depth = next((column for setting, column in DEPTH_COLUMNS.items() if setting in axes), None)
    if depth:
        beside_depth = [axis for axis in axes if axis not in DEPTH_COLUMNS]
        lines = combinations(runs, beside_depth)
        if len(lines) <= MOST_LINES:
            drawn["accuracy_by_depth"] = plots.accuracy_by_depth(runs, lines, metric="test_top1", depth=depth)
        if "width" in beside_depth:
            panels = combinations(runs, [axis for axis in beside_depth if axis != "width"])
            drawn["depth_width"] = plots.depth_width_heatmap(runs, metric="test_top1", depth=depth, panels=panels)
    rows = combinations(runs, axes)
    if len(rows) <= MOST_ROWS:
        drawn["accuracies"] = plots.accuracies(runs, rows, metric="test_top1")
    return drawn


def combinations(runs: pd.DataFrame, axes: Sequence[str]) -> dict[str, dict[str, object]]:
    """The combinations of values that these settings have in the runs, each by a label."""
    found = runs[list(axes)].drop_duplicates().to_dict("records") if axes else [{}]
    return {label(chosen): chosen for chosen in found}


def label(chosen: Mapping[str, object]) -> str:
    """What a line of these settings is called; plain or residual comes first."""
    kind = {True: ["residual"], False: ["plain"]}.get(chosen.get("residual"), [])
    rest = [f"{name.replace('_', ' ')} {value}" for name, value in chosen.items() if name != "residual"]
    return ", ".join(kind + rest)
