"""Runs of the format before this one, taken into the store under their new names.

Format 2 named a run by its data's title and the settings that were not defaults, had `gradients` and `six_views` among
the settings of tracking, and wrote no checksums. This module can go once nobody has such runs any more.
"""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from labutils.errors import SettingError
from labutils.experiments import store
from labutils.experiments.configs import read_yaml
from labutils.experiments.running import build_for, identify, load_experiment_data
from labutils.experiments.settings import SECTIONS, Experiment, from_settings

MOVED = ("gradients", "six_views")  # from tracking to measurement


def convert_store() -> Iterator[tuple[str, str]]:
    """Convert each run of format 2 in the store; what can't be converted stays as it is.

    Yields:
        A folder's name, and in words what became of it.
    """
    for path in sorted(store.store_root().glob("[!.]*/metrics.json")):
        folder = path.parent
        if (folder / store.SUMS).exists():
            continue
        try:
            goal = convert_run(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield folder.name, f"left as it is ({' '.join(str(error).split())})"
        else:
            yield folder.name, f"now {goal.name}"


def convert_run(folder: Path) -> Path:
    """Write a run of format 2 anew under its new name, and remove the old folder; the new one.

    Raises:
        SettingError: it was trained on other data than are here.
        OSError, ValueError, KeyError, TypeError: it can't be read, or its weights fit no model of today.
    """
    import pandas as pd

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    experiment = read_experiment(folder, metrics)
    data = load_experiment_data(experiment)
    if data.title != metrics["data"]:
        raise SettingError("data", metrics["data"], f"{data.title}, which is what is here")
    history = store.read_history(folder / "history.csv")
    history.stopped_early = metrics["stopped_early"]
    if (folder / "gradients.csv").exists():
        history.probed = [rows for _, rows in pd.read_csv(folder / "gradients.csv").groupby("epoch")]
    identity = identify(experiment, data)
    metrics = {"identity": identity} | {name: value for name, value in metrics.items() if name != "trained_together"}
    build = functools.partial(build_for, experiment, data)
    load_model = functools.partial(store.read_model, folder / store.WEIGHTS, build)
    run = store.Run(experiment, history, metrics, store.run_path(identity), load_model)
    with store.lock(run.path):
        store.write_run(run)
    shutil.rmtree(folder)
    return run.path


def read_experiment(folder: Path, metrics: dict) -> Experiment:
    """The experiment of a run of format 2."""
    settings = {section: read_yaml(folder / "experiment.yaml")[1].get(section, {}) for section in SECTIONS}
    moved = {name: settings["tracking"].pop(name) for name in MOVED if name in settings["tracking"]}
    settings["measurement"] = moved | settings["measurement"]
    return from_settings(settings, name=metrics["experiment"], profile=metrics["profile"])
