"""Runs as the format before this one kept them."""

import json
import shutil

import pytest
import torch
import yaml

import labutils as lab
from labutils.experiments.conversion import convert_store


@pytest.fixture
def old(store, experiment):
    """A run, and the same as format 2 would have kept it, under another name."""
    run = lab.run(experiment.override(gradients=True), progress=False)
    folder = store / "0123456789abcdef"
    run.path.rename(folder)
    (folder / "SHA256SUMS").unlink()
    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    settings["tracking"] |= settings.pop("measurement")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["identity"]
    (folder / "metrics.json").write_text(json.dumps(metrics | {"trained_together": 8}))
    return run, folder


def test_an_old_run_is_found_under_its_new_name(store, old):
    before, folder = old
    assert list(convert_store()) == [(folder.name, f"now {before.path.name}")]
    assert not folder.exists()
    after = lab.run(before.experiment)
    assert after.path == before.path
    assert after.metrics == before.metrics
    assert after.history.frame.equals(before.history.frame)
    assert after.history.probes["norm"].tolist() == pytest.approx(before.history.probes["norm"].tolist())
    assert torch.equal(after.model.head.weight, before.model.head.weight)
    assert list(convert_store()) == []


@pytest.mark.parametrize("change", [{"width": 3}, {"depth": 5}, {"kind": "shallow"}])
def test_one_whose_weights_fit_no_model_of_today_stays(store, old, change):
    _, folder = old
    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    settings["model"] |= change
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    check_left(folder)


def test_one_of_other_data_stays(store, old):
    _, folder = old
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"data": "other images"}))
    check_left(folder)


def test_one_that_is_damaged_stays(store, old):
    _, folder = old
    (folder / "history.csv").unlink()
    check_left(folder)


def check_left(folder):
    copy = folder.parent / ".copy"
    shutil.copytree(folder, copy)
    ((name, outcome),) = convert_store()
    assert name == folder.name
    assert outcome.startswith("left as it is (")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in copy.iterdir()
    }
