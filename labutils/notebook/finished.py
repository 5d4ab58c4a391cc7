"""Only finished runs may be averaged; what does average says which ones are not."""

import pandas as pd

from labutils.errors import SettingError


def check_finished(results: pd.DataFrame, figure: str) -> None:
    """Raise SettingError, naming the rows, where a figure of runs is missing, as that of a run that was stopped is.

    Args:
        results: a row a run; it is named by its column `run`, or else by its row.
        figure: the column that is to be averaged.
    """
    missing = results[results[figure].isna()]
    if len(missing):
        rows = [f"row {index}" for index in missing.index]
        names = missing["run"].fillna(pd.Series(rows, missing.index)) if "run" in missing else rows
        raise SettingError(figure, f"missing: {', '.join(names)}", "the figures of finished runs alone")


def check_all_epochs(epochs: pd.DataFrame) -> None:
    """Raise SettingError, naming the runs, where a table of epochs holds runs that were stopped before their last one.

    A run that may end by its own patience may have any number of epochs.

    Args:
        epochs: a row an epoch of each run: run, epoch, epochs (of the whole training), and patience where it varies.
    """
    if "patience" in epochs:
        epochs = epochs[epochs["patience"] == "none"]
    last = epochs.groupby("run")[["epoch", "epochs"]].max()
    unfinished = last.index[last["epoch"] < last["epochs"]]
    if len(unfinished):
        raise SettingError("epochs", f"missing: {', '.join(map(str, unfinished))}", "the epochs of finished runs alone")
