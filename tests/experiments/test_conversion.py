"""Runs and banked rows of before a setting came."""

import json
import shutil

import pandas as pd
import pytest
import torch
import yaml

import labutils as lab
from labutils.experiments import conversion, results
from labutils.experiments.conversion import convert_bank, convert_store
from labutils.experiments.running import load_experiment_data
from labutils.experiments.settings import run_identity
from labutils.files import canonical, file_digest
from labutils.identity import VERSIONS


@pytest.fixture
def earlier(store, experiment):
    """A run, and the same as it was kept before `head_lr` was a setting."""
    run = lab.run(experiment.override(gradients=True), progress=False)
    settings = run.experiment.settings()
    del settings["training"]["head_lr"]
    return run, as_of(settings, run, store)


def as_of(settings, run, store):
    """A run's folder as it was kept when these were all the settings there were."""
    identity = run_identity(settings, load_experiment_data(run.experiment))
    folder = store / identity[:16]
    run.path.rename(folder)
    (folder / "experiment.yaml").write_text(yaml.safe_dump({"about": "earlier", **canonical(settings)}))
    (folder / "metrics.json").write_text(json.dumps(run.metrics | {"identity": identity}))
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{file_digest(file)}  {file.name}\n" for file in files))
    return folder


def test_a_run_of_before_a_setting_came_is_found_under_its_new_name(earlier):
    before, folder = earlier
    assert list(convert_store()) == [(folder.name, f"now {before.path.name}")]
    after = lab.run(before.experiment)
    assert after.metrics == before.metrics
    assert after.history.frame.equals(before.history.frame)
    assert after.history.probes["norm"].tolist() == pytest.approx(before.history.probes["norm"].tolist())
    assert torch.equal(after.model.head.weight, before.model.head.weight)
    assert list(convert_store()) == []


def test_one_that_is_damaged_stays(earlier):
    _, folder = earlier
    (folder / "history.csv").unlink()
    copy = folder.parent / ".copy"
    shutil.copytree(folder, copy)
    ((name, outcome),) = convert_store()
    assert name == folder.name
    assert outcome.startswith("left as it is (")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in copy.iterdir()
    }


def test_one_that_differs_in_more_than_new_settings_keeps_its_name(store, earlier, monkeypatch):
    _, folder = earlier
    monkeypatch.setitem(VERSIONS, lab.MLP, 99)  # other code
    assert list(convert_store()) == []
    assert folder.is_dir()


@pytest.fixture
def banked(store, tmp_path, monkeypatch):
    """A table banked before `head_lr` was a setting: its runs' names then, and those they have now."""
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    monkeypatch.setattr(conversion, "BANKED_PROFILE", "smoke")
    monkeypatch.setattr(conversion, "config_names", lambda: ["mlp_chaos"])
    experiments = lab.grid("mlp_chaos", profile="smoke", epochs=1, seed=0, init=1.0, activation="relu")
    monkeypatch.setattr(conversion, "grid", lambda name, profile: experiments)
    table = lab.sweep(experiments, jobs=1, progress=False)
    names = []
    for one in experiments:
        settings = one.settings()
        del settings["training"]["head_lr"]
        names.append(run_identity(settings, load_experiment_data(one))[:16])
    results.save_results("mlp_chaos", table.drop(columns="head_lr").assign(run=names))
    return names, table["run"].tolist()


def test_banked_rows_get_the_names_that_their_runs_have_now(banked):
    _, now = banked
    stranger = lab.load_results("mlp_chaos").iloc[:1].assign(depth=7, run="stranger")
    results.save_results("mlp_chaos", pd.concat([lab.load_results("mlp_chaos"), stranger]))
    assert list(convert_bank()) == [("mlp_chaos", f"{len(now)} runs renamed")]
    assert lab.load_results("mlp_chaos")["run"].tolist() == [*now, "stranger"]
    assert list(convert_bank()) == []


def test_banked_rows_of_other_code_or_beside_a_value_that_is_no_default_keep_their_names(banked, monkeypatch):
    before, _ = banked
    changed = [one.override(head_lr=2.0) for one in conversion.grid("mlp_chaos", profile="smoke")]
    with monkeypatch.context() as patched:
        patched.setattr(conversion, "grid", lambda name, profile: changed)
        assert list(convert_bank()) == []
    monkeypatch.setitem(VERSIONS, lab.MLP, 99)
    assert list(convert_bank()) == []
    assert lab.load_results("mlp_chaos")["run"].tolist() == before


def test_a_run_whose_settings_are_cut_off_stays(earlier):
    _, folder = earlier
    (folder / "experiment.yaml").write_text("data:\nmodel:\n")
    ((name, outcome),) = convert_store()
    assert name == folder.name
    assert outcome.startswith("left as it is (")
