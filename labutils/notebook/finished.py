"""Only whole tables of runs may be averaged; what does average says which runs lack a figure."""

import pandas as pd

from labutils.errors import SettingError


def check_finished(results: pd.DataFrame, figure: str) -> None:
    """Raise SettingError, naming the rows, where a figure of runs is missing, as that of a run that failed is.

    Args:
        results: a row a run; it is named by its column `run`, or else by its row.
        figure: the column that is to be averaged.
    """
    missing = results[results[figure].isna()]
    if len(missing):
        rows = [f"row {index}" for index in missing.index]
        names = missing["run"].fillna(pd.Series(rows, missing.index)) if "run" in missing else rows
        raise SettingError(figure, f"missing: {', '.join(names)}", "the figures of finished runs alone")
