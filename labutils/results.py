"""The committed bank of results: data/results, a CSV file a sweep, a row a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from labutils.data import home
from labutils.errors import UnknownSetting

if TYPE_CHECKING:
    import pandas as pd


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


def settings_that_vary(runs: "pd.DataFrame") -> list[str]:
    """The columns of settings that have more than one value: those from the model's kind to the training's seed."""
    return [name for name in runs.loc[:, "kind":"seed"] if len(runs[name].unique()) > 1]
