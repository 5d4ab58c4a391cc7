from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.experiments import settings as settings_module
from labutils.experiments.configs import CONFIGS, config_names, parse_yaml
from labutils.experiments.settings import PROFILES
from labutils.experiments.settings import arguments_of as known
from labutils.identity import VERSIONS

# Every setting of the labs this course replaces, with a value other than the default.
ORIGINAL_SETTINGS = {
    "training.seed": 7,
    "training.batch_size": 64,
    "data.validation": 0.1,
    "model.depth": 10,
    "model.width": 128,
    "model.residual": True,
    "model.normalization": "layer",
    "model.activation": "tanh",
    "model.dropout": 0.1,
    "training.epochs": 50,
    "training.optimizer": "sgd",
    "training.lr": 0.1,
    "training.momentum": 0.5,
    "training.weight_decay": 5e-4,
    "training.scheduler": "plateau",
    "training.patience": 5,
    "measurement.gradients": True,
    "tracking.wandb": "offline",
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", config_names())
def test_every_config_loads_at_every_profile(name, profile):
    experiment = lab.Experiment.load(name, profile=profile)
    assert experiment.profile == profile
    assert profile != "smoke" or experiment.data["source"] == "builtin"
    if "sweep" in yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()):
        assert len(lab.grid(name, profile=profile)) > 1


@pytest.mark.parametrize(("name", "value"), ORIGINAL_SETTINGS.items())
def test_every_setting_of_the_original_labs_is_reachable(name, value):
    section, _, setting = name.partition(".")
    plain = lab.Experiment.load("mlp_mnist")
    assert plain.settings()[section][setting] != value
    for override in ({name: value}, {section: {setting: value}}, {setting: value}):
        assert lab.Experiment.load("mlp_mnist", **override).settings()[section][setting] == value


@pytest.mark.parametrize(
    "overrides",
    [
        {"kind": "resnet", "blocks": [1, 1, 1, 1]},
        {"model.kind": "resnet", "model.blocks": [1, 1, 1, 1]},
        {"model": {"kind": "resnet", "blocks": [1, 1, 1, 1]}},
    ],
    ids=["bare", "dotted", "nested"],
)
def test_another_kind_of_model_starts_from_its_own_defaults(overrides):
    mlp = lab.Experiment.load("mlp_mnist", width=8)
    for experiment in (lab.Experiment.load("mlp_mnist", **overrides), mlp.override(**overrides)):
        assert (
            experiment.model
            == lab.Experiment.load("cnn_depth", **{"model": {"blocks": [1, 1, 1, 1], "width": 64}}).model
        )
        assert experiment.training == mlp.training


def test_profiles_change_what_they_say(monkeypatch):
    monkeypatch.delenv("LABUTILS_PROFILE")
    assert lab.Experiment.load("mlp_mnist").profile == "laptop"
    assert lab.Experiment.load("mlp_mnist", profile="full").training.epochs == 50
    monkeypatch.setenv("LABUTILS_PROFILE", "smoke")
    assert lab.Experiment.load("mlp_mnist").data["source"] == "builtin"


@settings(max_examples=25, deadline=None)
@given(
    depth=st.integers(1, 8),
    residual=st.booleans(),
    normalization=st.sampled_from([None, "batch", "layer"]),
    lr=st.floats(1e-8, 1e3),
    patience=st.none() | st.integers(1, 9),
    tags=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
)
def test_yaml_reads_back_to_the_same_experiment(tmp_path_factory, digits, **overrides):
    experiment = lab.Experiment.load("mlp_mnist", profile="laptop", **overrides)
    path = tmp_path_factory.mktemp("yaml") / "mlp_mnist.yaml"
    path.write_text(experiment.to_yaml(), encoding="utf-8")
    again = lab.Experiment.load(path, profile="laptop")
    assert again == experiment
    assert again.identity(digits) == experiment.identity(digits)


def test_the_identity_covers_what_decides_a_result_and_nothing_else(digits):
    base = lab.Experiment.load("mlp_mnist", profile="laptop")
    plain = base.identity(digits)
    decisive = ORIGINAL_SETTINGS | {
        "data.limit": 100, "data.seed": 3, "model.init": "he", "measurement.six_views": True,
    }  # fmt: skip
    del decisive["tracking.wandb"]
    labels = replace(digits.train, labels=9 - digits.train.labels)
    identities = {plain, base.identity(replace(digits, train=labels))}
    identities |= {base.override(**{name: value}).identity(digits) for name, value in decisive.items()}
    assert len(identities) == len(decisive) + 2
    for name, value in {"wandb": "offline", "project": "p", "tags": ("a",), "source": "archive"}.items():
        assert base.override(**{name: value}).identity(digits) == plain
    assert base.identity(replace(digits, title="other", source="archive")) == plain


def test_the_identity_does_not_depend_on_how_a_number_is_written(digits):
    base = lab.Experiment.load("mlp_mnist", profile="laptop")
    for name, values in {"lr": (1, 1.0), "depth": (3, np.int64(3)), "tags": ([], ())}.items():
        assert len({base.override(**{name: value}).identity(digits) for value in values}) == 1


def test_a_default_that_changes_renames_the_runs(digits, monkeypatch):
    base = lab.Experiment.load("mlp_mnist", profile="laptop")
    before = base.identity(digits)
    changed = dict(known(lab.MLP))
    changed["activation"] = changed["activation"].replace(default="tanh")
    monkeypatch.setattr(settings_module, "arguments_of", lambda owner: changed if owner is lab.MLP else known(owner))
    assert lab.Experiment.load("mlp_mnist", profile="laptop").identity(digits) != before


def test_a_version_of_a_model_renames_its_runs(digits, monkeypatch):
    base = lab.Experiment.load("mlp_mnist", profile="laptop")
    before = base.identity(digits)
    monkeypatch.setitem(VERSIONS, lab.MLP, VERSIONS[lab.MLP] + 1)
    assert base.identity(digits) != before


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert parse_yaml("1e-2") == 0.01
    assert parse_yaml("-2E3") == -2000
    assert lab.Experiment.load("mlp_mnist", lr=1).training.lr == 1.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"dpeth": 3}, ["dpeth", "did you mean model.depth"]),
        ({"training.epoch": 3}, ["training.epoch", "did you mean training.epochs"]),
        ({"model": {"widht": 3}}, ["model.widht", "did you mean model.width"]),
        ({"depth": 0}, ["model.depth", "0", "from 1"]),
        ({"depth": "ten"}, ["model.depth", "ten", "whole number"]),
        ({"depth": 2.5}, ["model.depth", "2.5", "whole number"]),
        ({"depth": True}, ["model.depth", "True", "whole number"]),
        ({"lr": -1}, ["training.lr", "-1", "above 0"]),
        ({"lr": "fast"}, ["training.lr", "fast", "a number"]),
        ({"residual": "maybe"}, ["model.residual", "maybe", "True, False"]),
        ({"epochs": None}, ["training.epochs", "None", "whole number"]),
        ({"patience": "long"}, ["training.patience", "long", "whole number from 1"]),
        ({"normalization": "bach"}, ["model.normalization", "bach", "batch"]),
        ({"data.name": "minst"}, ["data.name", "minst", "mnist"]),
        ({"data.validation": 2}, ["data.validation", "2", "below 1"]),
        ({"wandb": "on"}, ["tracking.wandb", "on", "offline"]),
        ({"model": {"kind": "cnn"}}, ["model.kind", "cnn", "mlp"]),
        ({"model": 3}, ["model", "3"]),
        ({"depth": 3, "model.depth": 4}, ["model.depth", "4", "given twice"]),
        ({"x.y": 3}, ["x.y", "(there are data.limit, data.name, ", ", …)"]),
    ],
)
def test_wrong_settings_are_named_with_what_is_allowed(overrides, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.Experiment.load("mlp_mnist", **overrides)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {name: mnist}\nmodle: {kind: mlp}\n", ["modle", "did you mean model"]),
        ("data: {name: mnist}\nmodel: {kind: mlp, width: 8}\ntraining: {epochs: 1}\n", ["model.depth", "no default"]),
        ("data: {name: mnist}\nmodel: {depth: 1, width: 8}\ntraining: {epochs: 1}\n", ["model.kind", "mlp"]),
        ("profiles: {quick: {}}\n", ["profiles", "quick", "smoke"]),
        ("- a list\n", ["config", "sections"]),
        ("data: {name: [\n", ["config", "valid YAML"]),
    ],
)
def test_wrong_files_are_named_with_what_is_allowed(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(lab.SettingError) as caught:
        lab.Experiment.load(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_files_and_profiles_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(lab.SettingError, match="did you mean mlp_mnist"):
        lab.Experiment.load("mlp_mnits")
    with pytest.raises(lab.SettingError, match=r"nowhere\.yaml.*No such file"):
        lab.Experiment.load(tmp_path / "nowhere.yaml")
    with pytest.raises(lab.SettingError, match="profile: 'fast'"):
        lab.Experiment.load("mlp_mnist", profile="fast")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": {"name": "mnist", "limt": 100}}, ["limt", "did you mean limit"]),
        ({"data": {}}, ["data.name", "no default"]),
        ({"model": {"kind": "mlp", "depth": 1, "width": 4, "residul": True}}, ["residul", "did you mean residual"]),
        ({"model": {"kind": "mlp", "width": 4}}, ["model.depth", "no default"]),
        ({"data": {"name": "mnist", "root": "elsewhere"}}, ["root"]),  # what the data and the machine decide
        ({"model": {"kind": "mlp", "depth": 1, "width": 4, "in_features": 3}}, ["in_features"]),
    ],
)
def test_an_experiment_of_ones_own_names_wrong_settings_as_well(changed, words):
    given = {"data": {"name": "mnist"}, "model": {"kind": "mlp", "depth": 1, "width": 4}} | changed
    with pytest.raises(lab.SettingError) as caught:
        lab.Experiment(name="own", training=lab.Training(epochs=1), **given)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_grid_is_every_combination_once():
    experiments = lab.grid("mlp_mnist", axes={"depth": [1, 2, 3], "training.seed": [0, 1]}, width=8)
    found = [(e.model["depth"], e.training.seed) for e in experiments]
    assert found == [(depth, seed) for depth in (1, 2, 3) for seed in (0, 1)]
    assert all(e.model["width"] == 8 for e in experiments)


def test_an_override_of_an_axis_replaces_it():
    whole, chosen = (lab.grid("mlp_depth_width", profile="laptop", **o) for o in ({}, {"depth": 40, "seed": 9}))
    assert len(whole) == 6 * 3 * 2 * 2 * 5
    assert len(chosen) == 3 * 2 * 2
    assert {(e.model["depth"], e.training.seed) for e in chosen} == {(40, 9)}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"depth": []}, ["sweep.model.depth", "one value or more"]),
        ({"depth": 3}, ["sweep.model.depth", "3"]),
        ({"dpeth": [1]}, ["dpeth", "did you mean model.depth"]),
        ({"depth": [1, 0]}, ["model.depth", "0"]),
        ({"depth": [1], "model.depth": [2]}, ["sweep", "each setting once"]),
        (None, ["sweep", "mlp_mnist"]),
        ([], ["sweep", "mlp_mnist"]),
    ],
)
def test_wrong_grids_are_named(axes, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.grid("mlp_mnist", axes=axes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_sweep_of_several_grids_runs_each_experiment_once():
    experiments = lab.grid("mlp_residual", profile="smoke")
    assert len(experiments) == 2 * (2 * 2 + 2) * 3
    grids = [{"depth": [1, 2]}, {"depth": [2], "width": [8, 64]}]
    shapes = [(e.model["depth"], e.model["width"]) for e in lab.grid("mlp_mnist", axes=grids)]
    assert shapes == [(1, 64), (2, 64), (2, 8)]


@pytest.mark.parametrize("axes", [{}, [], [{}], {"depth": []}, {"depth": 3}])
def test_an_empty_grid_is_refused(axes):
    with pytest.raises(lab.SettingError, match="sweep"):
        lab.grid("mlp_mnist", axes=axes)


def test_a_sweep_key_that_no_experiment_has_is_named():
    with pytest.raises(lab.SettingError, match=r"dephts: .*did you mean model.depth"):
        lab.grid("mlp_mnist", axes=[{"depth": [1]}, {"dephts": [1]}])


@pytest.mark.parametrize("name", config_names())
def test_an_experiment_is_what_its_code_loads(name):
    for profile in PROFILES:
        changed = lab.Experiment.load(name, profile=profile).override(
            seed=5, backbone=None, teacher=None, **{"data.seed": 3}
        )
        assert eval(changed.to_code()) == changed


def test_the_code_of_an_own_config_names_its_file_and_every_setting(tmp_path, monkeypatch):
    experiment = lab.Experiment.load("mlp_mnist", profile="smoke", depth=7)
    (tmp_path / "mine.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    mine = lab.Experiment.load("mine.yaml", profile="smoke", width=9)
    assert eval(mine.to_code()) == mine
