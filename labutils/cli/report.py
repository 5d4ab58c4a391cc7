"""A sweep's results as a table and figures, on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from labutils.errors import SettingError, UnknownSetting
from labutils.experiments.results import (
    SEEDS,
    load_results,
    row,
    settings_row,
    settings_that_vary,
    tabulate,
    without_unused_settings,
)
from labutils.experiments.running import kept_run
from labutils.experiments.settings import Experiment, grid
from labutils.files import make_shared_folder
from labutils.notebook import plots

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
    axes = [axis for axis in settings_that_vary(runs) if axis not in SEEDS]
    summary = summarise(runs, axes)
    make_shared_folder(folder)
    tables = {folder / "runs.csv": runs, folder / "summary.csv": summary}
    for path, table in tables.items():
        table.to_csv(path, index=False)
    drawn = {folder / f"{stem}.png": figure for stem, figure in figures(runs, axes).items()}
    for path, figure in drawn.items():
        path.write_bytes(figure.png())
    return summary, [*tables, *drawn]


def finished_runs(experiments: Sequence[Experiment], name: str) -> pd.DataFrame:
    """The runs of a sweep that are in the store; where none is, the banked ones of these settings and that profile."""
    rows = [row(run) for run in map(kept_run, experiments) if run is not None]
    if rows:
        return tabulate(rows)
    profile = experiments[0].profile
    try:
        banked = load_results(experiments[0].name)
        asked = tabulate([settings_row(experiment) for experiment in experiments])
        shared = [name for name in asked if name in banked]
        asked, there = (
            without_unused_settings(table[shared]).astype(str).agg(" ".join, axis=1) for table in (asked, banked)
        )
        banked = banked[there.isin(asked) & (banked["profile"] == profile)]
    except UnknownSetting:
        banked = pd.DataFrame()
    if banked.empty:
        allowed = "a sweep with finished runs (`labutils sweep` makes them)"
        raise SettingError("report", f"{name} at the {profile} profile", allowed)
    return banked


def summarise(runs: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """A row a setting: n, and mean and standard deviation (NaN for a single run) of what was measured."""
    groups = runs.groupby(list(axes), sort=False, dropna=False) if axes else runs.groupby(lambda _: 0)
    summary = groups.agg(
        n=("test_top1", "size"),
        parameters=("parameters", "first"),
        **{f"{name}_{how}": (name, how) for name in MEASURED if name in runs for how in ("mean", "std")},
    )
    return summary.reset_index(drop=not axes)


def readable(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary with mean ± sd in one column each, accuracies in per cent; of a single run the figure alone."""
    table = summary[[name for name in summary if not name.endswith(("_mean", "_std"))]].copy()
    for name in (column.removesuffix("_mean") for column in summary if column.endswith("_mean")):
        unit, factor = ("s", 1) if name == "seconds" else ("%", 100)
        mean, sd = factor * summary[f"{name}_mean"], factor * summary[f"{name}_std"]
        spread = sd.map(" ± {:.2f}".format).where(sd.notna(), "")
        table[f"{name} ({unit})"] = mean.map("{:.2f}".format) + spread
    return table


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
