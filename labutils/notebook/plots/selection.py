"""Choosing the runs that a figure shows, and saying where they come from."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pandas import DataFrame

from labutils.errors import SettingError, UnknownSetting
from labutils.experiments.results import SEEDS
from labutils.notebook.finished import check_finished

Tables = Mapping[str, DataFrame]  # by the label of a line or the title of a panel
Groups = Mapping[str, Mapping[str, object]]  # the values that a line's (or row's, panel's) runs have, by its label


def as_text(value: object) -> str:
    """A value as text, in one form: 1, 1.0 and "1.0" are the same; None is "none"; a list is its text."""
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_ | list):
        return str(value)
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value)


def matching(results: DataFrame, chosen: Mapping[str, object]) -> DataFrame:
    """The rows whose columns have the chosen values; possibly none.

    Values are compared in the form in which a table of results holds them: 1.0 matches "1.0", None matches "none", and
    a list matches its text.

    Args:
        results: one row per run.
        chosen: values by column.

    Raises:
        SettingError: there is no such column.
    """
    for column, value in chosen.items():
        if column not in results:
            raise UnknownSetting(column, map(str, results.columns))
        results = results[results[column].map(as_text) == as_text(value)]
    return results


def select(results: DataFrame, groups: Groups, *, kind: str = "line", metric: str | None = None) -> DataFrame:
    """The rows of each group one below the other, with the group's name in the column `label`.

    Args:
        results: one row per run.
        groups: the values that each group's runs have, by the group's label.
        kind: what a group is in the figure, for the error's message.
        metric: the column that is to be averaged.

    Raises:
        SettingError: there are no groups, a column does not exist, no run matches a group, or a run has no such figure.
    """
    if not groups:
        raise SettingError(f"{kind}s", dict(groups), f"at least one {kind}: a label and the values that its runs have")
    found = {label: matching(results, chosen) for label, chosen in groups.items()}
    for label, runs in found.items():
        if runs.empty:
            raise SettingError(f"{kind} {label!r}", dict(groups[label]), "values that at least one run has")
        if metric is not None:
            check_finished(runs, metric)
    return labelled(found)


def labelled(tables: Tables) -> DataFrame:
    """Tables one below the other, with each one's name in the column `label`."""
    return pd.concat([table.assign(label=label) for label, table in tables.items()], ignore_index=True)


def origin(results: DataFrame) -> str:
    """Where results come from, for captions: data, source, number of seeds, epochs, processor, torch version.

    Of runs with a column `label`, the number of seeds is that of each label: one number, or the least and the greatest.
    """
    groups = [runs for _, runs in results.groupby("label")] if "label" in results else [results]
    # Heads that are found without chance differ in the seed of the validation images instead.
    counts = {max((runs[name].nunique() for name in SEEDS if name in runs), default=1) for runs in groups}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))

    def distinct(column: str) -> str:
        return ", ".join(map(str, results[column].unique()))

    return (
        f"{distinct('data')} ({distinct('source')}); n = {seeds} seed{'' if seeds == '1' else 's'}; "
        f"{distinct('epochs')} epochs; {distinct('processor')}; torch {distinct('torch')}"
    )
