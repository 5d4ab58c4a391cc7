"""What was kept before a change of the course, taken over under the names it has now.

Settings that did not exist when a run was trained have their defaults in its identity now.
"""

import functools
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from labutils.errors import SettingError, UnknownSetting
from labutils.experiments import results, store
from labutils.experiments.configs import config_names, read_yaml
from labutils.experiments.results import DATA_SETTINGS, load_results, save_results
from labutils.experiments.running import build_for, identify, load_experiment_data, run_name
from labutils.experiments.settings import (
    SECTIONS,
    Experiment,
    arguments_of,
    from_settings,
    grid,
    run_identity,
    setting_owners,
)

BANKED_PROFILE = "laptop"


def convert_store() -> Iterator[tuple[str, str]]:
    """Convert each run in the store that has not the name it would have now; what can't be converted stays as it is.

    Yields:
        A folder's name, and in words what became of it.
    """
    for path in sorted(store.store_root().glob("[!.]*/metrics.json")):
        folder = path.parent
        try:
            goal = convert_run(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield folder.name, f"left as it is ({' '.join(str(error).split())})"
        else:
            if goal != folder:
                yield folder.name, f"now {goal.name}"


def convert_run(folder: Path) -> Path:
    """Write a run anew under its name of today, and remove the old folder; the new one.

    Raises:
        SettingError: its settings are not allowed today.
        OSError, ValueError, KeyError, TypeError: it can't be read, or its weights fit no model of today.
    """
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    _, kept = read_yaml(folder / "experiment.yaml")
    settings = {section: kept.get(section) or {} for section in SECTIONS}
    experiment = from_settings(settings, name=metrics["experiment"], profile=metrics["profile"])
    data = load_experiment_data(experiment)
    identity = identify(experiment, data)
    store.check_sums(folder)
    used = {section: values for section, values in settings.items() if values}
    if metrics["identity"] == identity or metrics["identity"] != run_identity(used, data):
        return folder  # named as it should be, or a student's own, or of other data or code
    history = store.read_history(folder, metrics, gradients=experiment.measurement.gradients)
    metrics = metrics | {"identity": identity}
    build = functools.partial(build_for, experiment, data)
    load_model = functools.partial(store.read_model, folder / store.WEIGHTS, build, keep=True)
    run = store.Run(experiment, history, metrics, store.run_path(identity), load_model)
    with store.lock(run.path), store.signed_lock(run.path):
        store.write_run(run)
    shutil.rmtree(folder)
    return run.path


def convert_bank() -> Iterator[tuple[str, str]]:
    """Give the rows of the bank the names that their runs have now that further settings have come.

    A row that was trained by other code, on other data or from another network than today's keeps its name.

    Yields:
        The name of a table that has changed, and how many of its runs.
    """
    for name in config_names():
        experiments = banked_sweep(name)
        if not experiments or not (results.results_folder() / f"{name}.csv").is_file():
            continue
        bank, now = load_results(name), {}
        for one in experiments:
            with suppress(UnknownSetting):  # its teacher or backbone is still to be trained
                now |= dict.fromkeys(names_before(one, bank.columns), run_name(one))
        for table in (name, f"{name}_epochs"):
            if (results.results_folder() / f"{table}.csv").is_file():
                rows = load_results(table)
                renamed = rows["run"].map(now).fillna(rows["run"])
                if not renamed.equals(rows["run"]):
                    save_results(table, rows.assign(run=renamed))
                    yield table, f"{len(set(renamed) - set(rows['run']))} runs renamed"


def names_before(experiment: Experiment, columns: Iterable[str]) -> Iterator[str]:
    """What a run may have been named before some settings came: those a table has no column of, at their defaults.

    Which of them had come when it was named is not known, so each combination is tried.
    """
    data, settings = load_experiment_data(experiment), experiment.settings()
    owners, named = setting_owners(experiment.model["kind"]), {inner: outer for outer, inner in DATA_SETTINGS.items()}
    lacking = [
        (section, name)
        for section in settings.keys() - {"tracking"}
        for name, parameter in arguments_of(owners[section]).items()
        if (named.get(name) if section == "data" else name) not in (None, *columns)
        and settings[section].get(name) == parameter.default
    ]
    for count in range(len(lacking) + 1):
        for unknown in itertools.combinations(lacking, count):
            known = {
                section: {name: value for name, value in values.items() if (section, name) not in unknown}
                for section, values in settings.items()
            }
            yield store.run_path(run_identity(known, data)).name


def banked_sweep(name: str) -> list[Experiment]:
    """The experiments of a course's sweep as the bank has them; none where the config has no sweep."""
    try:
        return grid(name, profile=BANKED_PROFILE)
    except SettingError:
        return []
