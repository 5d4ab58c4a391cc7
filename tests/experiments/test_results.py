"""Tables of runs: the same types wherever they come from."""

import dataclasses

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.experiments import results
from labutils.experiments.configs import config_names
from labutils.experiments.running import kept_run

BANKED = sorted(path.stem for path in results.results_folder().glob("*.csv"))

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
numbers = st.floats(allow_nan=True, allow_infinity=True)
COLUMNS = {
    "run": st.sampled_from(["9f2492405cd5fa58", "1234567890123456", "12345678901234e6"]),
    "depth": st.integers(1, 2**53),
    "residual": st.booleans(),
    "residual_scale": st.sampled_from(["1.0", "0.25", "depth"]),
    "per_class": st.sampled_from(["none", 10, 450]),
    "C": st.sampled_from(["none", 0.01, 1.0]),
    "normalization": st.sampled_from(["none", "batch"]),
    "test_loss": numbers,
    "test_top1": st.none() | numbers,
    "six_views": st.none() | st.booleans(),
    "processor": texts,
    "error": st.none() | texts,
    "nothing": st.none(),
}


@pytest.fixture
def bank(tmp_path, monkeypatch):
    folder = tmp_path / "bank"
    monkeypatch.setattr(results, "results_folder", lambda: folder)
    return folder


@pytest.fixture
def tiny():
    return lab.Experiment.load("mlp_mnist", profile="smoke", depth=1, width=4, epochs=2, limit=100)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({}, optional=COLUMNS).filter(bool), min_size=1, max_size=5))
def test_the_bank_gives_back_the_table_that_was_put_in(bank, rows):
    table = results.tabulate(rows)
    results.save_results("some", table)
    pd.testing.assert_frame_equal(lab.load_results("some"), table, check_exact=True)


@pytest.mark.parametrize("scale", [0.5, 1, "depth"])
def test_a_sweeps_table_is_what_the_bank_gives_back(store, bank, tiny, scale):
    table = lab.sweep([tiny.override(residual=True, residual_scale=scale, lr=1)], jobs=1, progress=False)
    results.save_results("swept", table)
    pd.testing.assert_frame_equal(lab.load_results("swept"), table, check_exact=True)
    assert table["residual_scale"].tolist() == [scale if scale == "depth" else str(float(scale))]
    assert table["lr"].tolist() == [1.0]
    assert table["lr"].dtype == float
    assert table["seed"].dtype == int
    assert table["residual"].dtype == bool


def test_text_that_pandas_might_take_for_something_else_stays_text():
    rows = [{"run": "1234567890123456", "processor": "NA", "backbone": "007", "residual_scale": "1.0", "error": "nan"}]
    assert results.tabulate(rows).to_dict("records") == rows


def test_the_bank_is_written_whole_and_alone(bank):
    results.save_results("small", pd.DataFrame({"test_loss": [0.1 + 0.2, 1e-17]}))
    assert lab.load_results("small")["test_loss"].tolist() == [0.1 + 0.2, 1e-17]
    assert [path.name for path in bank.iterdir()] == ["small.csv"]


def test_a_name_that_is_not_banked_is_refused_with_the_nearest(bank):
    results.save_results("small", pd.DataFrame({"test_loss": [0.5]}))
    with pytest.raises(lab.SettingError, match=r"smal: .*did you mean small"):
        lab.load_results("smal")
    with pytest.raises(lab.SettingError, match=r"name: 3 was given"):
        lab.load_results(3)


@pytest.mark.parametrize("content", [b"", "run,processor\n1,Müller\n".encode("latin-1")], ids=["empty", "Latin-1"])
def test_a_file_that_is_no_table_is_named(bank, content):
    bank.mkdir()
    (bank / "broken.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.csv can't be read as a table"):
        results.banked_rows()


def test_a_row_that_was_cut_off_counts_as_no_run(store, bank, tiny):
    table = lab.sweep([tiny, tiny.override(seed=1)], jobs=1, progress=False)
    path = results.save_results("some", table)
    text = path.read_text()
    path.write_text(text[: text.rindex(table["torch"].iloc[1])])
    assert list(results.banked_rows()) == table["run"].tolist()[:1]


def test_a_part_of_a_sweep_replaces_rows_of_other_data_and_keeps_those_of_the_same(store, bank, tiny):
    sweep = [tiny.override(seed=seed) for seed in range(3)]
    table = lab.sweep(sweep[:2], jobs=1, progress=False)
    results.save_results("some", table.assign(run=["same", "other"], data=[table["data"].iloc[0], "others"]))
    results.save_sweep("some", sweep)
    assert lab.load_results("some")["run"].tolist() == ["same", *table["run"]]
    results.save_results("some", table.rename(columns={"run": "runs"}))
    with pytest.raises(ValueError, match="it has no column run"):
        results.save_sweep("some", sweep)


@pytest.mark.parametrize("name", BANKED)
def test_what_is_banked_has_the_types_of_a_new_table(name):
    banked = lab.load_results(name)
    pd.testing.assert_frame_equal(results.tabulate(banked), banked, check_exact=True)
    for setting, types in results.setting_types().items():
        if setting in banked:
            text = str in types or "none" in banked[setting].tolist()
            expected = "str" if text else {int: "int64", float: "float64", bool: "bool"}.get(types[0], "str")
            assert banked[setting].dtype == expected, setting


def test_the_bank_holds_five_seeds_of_every_cell():
    bank = lab.load_results("mlp_depth_width")
    cells = bank.groupby(["depth", "width", "normalization", "scheduler"])["seed"].agg(set)
    assert len(cells) == 6 * 3 * 2 * 2
    assert all(seeds == set(range(5)) for seeds in cells)
    assert set(bank["data"]) == {"MNIST"}
    assert set(bank["profile"]) == {"laptop"}


def test_the_bank_of_residual_nets_holds_five_seeds_of_every_cell():
    bank = lab.load_results("mlp_residual")
    cells = bank.groupby(["depth", "residual", "normalization", "residual_scale"])["seed"].agg(set)
    assert len(cells) == 5 * (2 * 2 + 2)
    assert all(seeds == set(range(5)) for seeds in cells)
    assert (set(bank["data"]), set(bank["profile"]), set(bank["width"])) == ({"MNIST"}, {"laptop"}, {128})


# Banks in which some cells have fewer than five seeds though a run took less than five minutes.
THREE_SEEDS = {
    "cnn_depth",
    "cnn_exchange",
    "cnn_improved",
    "distillation",
    "mlp_chaos",
    "transfer_ladder",
    "transfer_reinit",
}
COMPARED = [name for name in BANKED if name in config_names() and not name.endswith("_tuning")]


@pytest.mark.parametrize("name", COMPARED)
def test_every_cell_has_three_seeds_and_short_ones_five(name):
    bank = lab.load_results(name)
    by = [setting for setting in results.setting_types() if setting in bank and setting not in results.SEEDS]
    if name == "cnn_depth":  # but for twins of half the width, which only the explorer shows
        bank = bank[bank["width"] == 16]
    cells = bank.groupby(by, dropna=False)["seconds"].agg(["size", "median"])
    assert (cells["size"] >= 3).all()
    assert (cells["size"][cells["median"] < 300] >= 5).all() != (name in THREE_SEEDS)


@pytest.mark.parametrize("name", ["mlp_depth_width", "mlp_residual", "mlp_chaos"])
def test_every_banked_run_says_where_it_comes_from(name):
    bank = lab.load_results(name)
    assert bank[["data", "source", "profile", "torch", "processor", "date", "version"]].notna().all(axis=None)
    assert len(bank) == len(lab.grid(name, profile="laptop"))


def test_a_row_holds_every_setting_that_can_vary(tiny):
    row = results.settings_row(tiny.override(**{"data.seed": 3, "per_class": 5, "validation": 0.1, "seed": 4}))
    assert {name: row[name] for name in ("limit", "per_class", "validation", "data_seed", "seed")} == {
        "limit": 100,
        "per_class": 5,
        "validation": 0.1,
        "data_seed": 3,
        "seed": 4,
    }
    assert set(tiny.bare_settings()) < row.keys() <= results.setting_types().keys()
    assert (row["kind"], row["patience"], row["backbone"], row["six_views"]) == ("mlp", "none", "none", False)
    several = lab.Experiment.load("cnn_depth", profile="smoke", blocks=(1, 2, 1, 1))
    assert results.settings_row(several)["blocks"] == "[1, 2, 1, 1]"


def test_the_settings_that_vary_are_named():
    runs = pd.DataFrame(
        {"depth": [1, 2], "width": [4, 4], "whitening": [True, False], "seconds": [1.0, 2.0], "blocks": [None, "[1]"]}
    )
    assert results.settings_that_vary(runs) == ["depth", "whitening", "blocks"]


def test_an_unfinished_run_is_in_no_table(store, tiny):
    finished = lab.run(tiny, progress=False)
    row = results.row(finished)
    assert row["run"] == finished.path.name
    assert "identity" not in row
    finished.history.interrupted = True
    with pytest.raises(lab.SettingError, match=r"run: Run\(mlp_mnist, .*not finished.*allowed: a run that is finished"):
        results.row(finished)
    with pytest.raises(lab.SettingError, match=r"experiment: .*mlp_mnist.*seed=5.*run the sweep first"):
        results.histories([tiny.override(seed=5)])


def test_histories_have_a_row_an_epoch_beside_the_settings(store, bank, tiny):
    experiments = [tiny, tiny.override(seed=1, lr=0.01)]
    for experiment in experiments:
        lab.run(experiment, progress=False)
    table = results.histories(experiments)
    assert table["epoch"].tolist() == [1, 2, 1, 2]
    assert table["seed"].tolist() == [0, 0, 1, 1]
    assert table["lr"].tolist() == [0.001] * 2 + [0.01] * 2
    assert table["run"].unique().tolist() == [kept_run(experiment).path.name for experiment in experiments]
    assert table["train_loss"].tolist()[2:] == kept_run(experiments[1]).history.frame["train_loss"].tolist()
    results.save_results("epochs", table)
    pd.testing.assert_frame_equal(lab.load_results("epochs"), table, check_exact=True)


def test_gradients_have_a_row_a_layer_from_before_training_on(store, tiny):
    experiment = dataclasses.replace(tiny, measurement=dataclasses.replace(tiny.measurement, gradients=True))
    finished = lab.run(experiment, progress=False)
    table = results.gradients([experiment])
    assert table[["epoch", "layer"]].to_numpy().tolist() == [[epoch, layer] for epoch in (0, 1, 2) for layer in (1, 2)]
    last = finished.history.probes.query("epoch == 2 and kind == 'weight'")
    assert table.query("epoch == 2")["norm"].tolist() == last["norm"].tolist()
    assert table.query("epoch == 0")["norm"].tolist() != last["norm"].tolist()
    assert set(table["kind"]) == {"mlp"}
    lab.run(tiny, progress=False)
    with pytest.raises(lab.SettingError, match=r"measurement\.gradients: False"):
        results.gradients([tiny])
