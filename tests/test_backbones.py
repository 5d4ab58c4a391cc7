import json

import pytest
import torch

import labutils as lab
from labutils import backbones
from labutils.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.fixture
def exported(folder, store, capsys):
    assert main(["export", "cnn_backbone", "--profile", "smoke"]) == 0
    assert "cnn_backbone.safetensors" in capsys.readouterr().out
    return folder


def test_a_backbone_comes_back_with_its_weights_and_record(exported):
    experiment = lab.Experiment.load("cnn_backbone", profile="smoke")
    finished = lab.run(experiment)
    model, record = lab.load_backbone()
    data = lab.load_data(**experiment.data)
    assert lab.evaluate(model, "test", data)["top1"] == finished.metrics["test_top1"]
    assert record["metrics"] == finished.metrics
    settings = experiment.settings()
    assert record["settings"] == {section: settings[section] for section in ("data", "model", "training")}
    assert record["classes"] == list(data.classes)
    assert torch.allclose(torch.tensor(record["mean"]), data.mean)
    assert not model.training


def test_a_damaged_backbone_is_refused(exported):
    path = exported / "cnn_backbone.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 4
    path.write_bytes(contents)
    with pytest.raises(lab.CheckpointError, match="damaged"):
        lab.load_backbone()


def test_a_record_of_another_network_is_refused(exported):
    path = exported / "cnn_backbone.json"
    record = json.loads(path.read_text())
    other_settings = {**record, "settings": {**record["settings"], "model": {"kind": "resnet", "width": 8}}}
    for other in (other_settings, {**record, "sha256": "0" * 64}):
        path.write_text(json.dumps(other))
        with pytest.raises(lab.CheckpointError, match=r"cnn_backbone\.json is the record of another"):
            lab.load_backbone()
    path.unlink()
    with pytest.raises(lab.CheckpointError, match=r"record cnn_backbone\.json can't be read"):
        lab.load_backbone()


def test_weights_that_do_not_fit_the_settings_are_refused(exported):
    from labutils.checkpoints import load_tensors, save_tensors

    path = exported / "cnn_backbone.safetensors"
    tensors, record = load_tensors(path)
    record["settings"]["model"]["width"] = 8
    checksum = save_tensors(path, tensors, record)
    path.with_suffix(".json").write_text(json.dumps({"sha256": checksum, **record}))
    with pytest.raises(lab.CheckpointError, match="do not fit ResNet"):
        lab.load_backbone()


def test_an_unknown_backbone_is_named_with_those_there_are(exported):
    with pytest.raises(lab.SettingError, match="cnn_bakbone: no such name; did you mean cnn_backbone"):
        lab.load_backbone("cnn_bakbone")
