"""Chosen settings and what was tried for them: no choice lies on the edge of its grid, and each grid is banked."""

import dataclasses

import pytest

import labutils as lab
from labutils.experiments.configs import config_names, read_yaml
from labutils.experiments.results import load_results
from labutils.notebook.plots.selection import matching

# Beyond these there is nothing to try.
NATURAL_BOUNDS = {
    **{name: {0.0} for name in ("momentum", "weight_decay", "label_smoothing", "averaging")},
    "alpha": {0.0, 1.0},
}
# Chosen by somebody, where they are not the defaults; epochs and batch sizes say how long and how large, not how well.
CHOSEN = ("lr", "momentum", "weight_decay", "label_smoothing", "averaging", "stage_lr", "head_lr")
DEFAULTS = {field.name: field.default for field in dataclasses.fields(lab.Training)}
# Momentum counts where it is used.
USED_WITH = {"momentum": ("sgd", "muon"), "averaging": None}


def tuned_of(name):
    return read_yaml(name)[1].get("tuned", [])


def experiments_of(name):
    """All that a config describes at the laptop profile."""
    try:
        return lab.grid(name, profile="laptop")
    except lab.SettingError:
        return [lab.Experiment.load(name, profile="laptop")]


def settings_of(experiment):
    settings = experiment.settings()
    return {f"{section}.{name}": value for section in settings for name, value in settings[section].items()}


def concerned(entry, experiments):
    """The experiments an entry of `tuned` is about."""
    where = entry.get("where", {})
    return [one for one in experiments if all(settings_of(one).get(name) == value for name, value in where.items())]


@pytest.mark.parametrize("name", [name for name in config_names() if tuned_of(name)])
def test_no_choice_lies_on_the_edge_of_its_grid(name):
    for entry in tuned_of(name):
        experiments = concerned(entry, experiments_of(name))
        assert experiments, f"{name}: tuned {entry} is about no experiment"
        for setting, tried in entry["values"].items():
            bounds = NATURAL_BOUNDS.get(setting.partition(".")[2], set())
            for chosen in {settings_of(one)[setting] for one in experiments} - bounds:
                assert chosen in tried, f"{name}: {setting} is {chosen}, which was not tried"
                assert min(tried) < chosen < max(tried), f"{name}: {setting} {chosen} is on the edge of {tried}"


@pytest.mark.parametrize("name", [name for name in config_names() if tuned_of(name)])
def test_what_was_tried_is_banked(name):
    for entry in tuned_of(name):
        table = load_results(entry["table"])
        where = {setting.partition(".")[2]: value for setting, value in entry.get("where", {}).items()}
        rows = matching(table, {column: value for column, value in where.items() if column in table})
        for setting, tried in entry["values"].items():
            found = set(rows[setting.partition(".")[2]])
            assert set(tried) <= found, f"{name}: {entry['table']} lacks {setting} {sorted(set(tried) - found)}"


@pytest.mark.parametrize("name", config_names())
def test_every_choice_names_what_was_tried(name):
    """A learning rate that is not the default was chosen by somebody; the config says from what.

    What an entry of a sweep varies is studied, not chosen; an entry may also give a single value, which is chosen.
    """
    sweep = read_yaml(name)[1].get("sweep", [])
    entries = [sweep] if isinstance(sweep, dict) else sweep
    studied = {setting for entry in entries for setting, values in entry.items() if len(values) > 1}
    for experiment in experiments_of(name):
        training = experiment.training
        named = {setting for entry in tuned_of(name) if experiment in concerned(entry, [experiment])
                 for setting in entry["values"]}  # fmt: skip
        for setting in CHOSEN:
            value = getattr(training, setting)
            used = setting not in USED_WITH or training.optimizer in (USED_WITH[setting] or (training.optimizer,))
            if f"training.{setting}" in studied:
                continue
            if used and value != DEFAULTS[setting] and value not in NATURAL_BOUNDS.get(setting, ()):
                assert f"training.{setting}" in named, f"{name}: {setting} = {value} ({training.optimizer})"


OPTIMIZERS = {  # without the seeds
    f"{one.training.optimizer}, {one.transfer.stages}, {one.training.epochs} epochs, {one.transfer.backbone}": one
    for one in experiments_of("transfer_optimizers")
}


@pytest.mark.parametrize("experiment", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_are_compared_at_their_best_rates_and_all_neighbours_were_tried(experiment):
    training, stages, backbone = experiment.training, experiment.transfer.stages, experiment.transfer.backbone
    kind = {"optimizer": training.optimizer, "stages": stages, "backbone": backbone}
    table = matching(load_results("optimizer_tuning"), kind)
    reached = {
        (round(lr, 6), round(lr * factor, 6)): accuracy
        for lr, factor, accuracy in table[["lr", "head_lr", "validation_top1"]].itertuples(index=False)
    }
    rates = training.lr, training.lr * training.head_lr  # the backbone's and the head's
    both = [(2.0, 2.0), (0.5, 0.5)]  # the head alone has one rate
    factors = both if stages == 0 else [(2.0, 1.0), (0.5, 1.0), (1.0, 2.0), (1.0, 0.5)]
    neighbours = [(round(rates[0] * one, 6), round(rates[1] * other, 6)) for one, other in factors]
    best = reached[round(rates[0], 6), round(rates[1], 6)]
    assert best == max(reached.values())
    assert all(reached[neighbour] <= best for neighbour in neighbours)


@pytest.mark.parametrize(("activation", "edge"), [("relu", 2.0), ("tanh", 1.0)])
def test_each_activation_has_the_rate_that_did_best_at_its_edge_of_chaos(activation, edge):
    tried = matching(load_results("chaos_tuning"), {"activation": activation, "init": edge})
    chosen = {one.training.lr for one in experiments_of("mlp_chaos") if one.model["activation"] == activation}
    assert chosen == {tried.groupby("lr")["validation_top1"].mean().idxmax()}
