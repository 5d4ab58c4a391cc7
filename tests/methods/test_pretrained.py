"""The course's networks: kept, loaded, and refused where they are not what their record says."""

import json

import pytest
import torch

import labutils as lab
from labutils.methods import pretrained
from labutils.training.checkpoints import load_tensors, save_tensors


@pytest.fixture
def folder(backbone):
    return pretrained.checkpoints_folder()


def test_a_network_comes_back_with_its_weights_and_record(backbone, folder, pretraining, shapes):
    model, record = lab.load_pretrained("small")
    assert not model.training
    assert repr(model) == repr(backbone)
    kept = backbone.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    settings = pretraining.settings()
    assert record["settings"] == json.loads(
        json.dumps({section: settings[section] for section in ("data", "model", "training")})
    )
    assert record["image_shape"] == [3, 32, 32]
    assert record["classes"] == list(shapes.classes)
    assert set(record) == {"settings", "image_shape", "classes", "metrics"}  # nothing that nobody uses
    assert record["metrics"] == {"data": shapes.title}


def test_a_damaged_network_is_refused(folder):
    path = folder / "small.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 4
    path.write_bytes(contents)
    with pytest.raises(lab.CheckpointError, match="damaged"):
        lab.load_pretrained("small")


def test_a_record_of_another_network_is_refused(folder):
    path = folder / "small.json"
    record = json.loads(path.read_text())
    other_settings = {**record, "settings": {**record["settings"], "model": {"kind": "resnet", "width": 8}}}
    for other in (other_settings, {**record, "sha256": "0" * 64}):
        path.write_text(json.dumps(other))
        with pytest.raises(lab.CheckpointError, match=r"small\.json is the record of another"):
            lab.load_pretrained("small")
    path.write_text("{")
    with pytest.raises(lab.CheckpointError, match=r"record small\.json can't be read"):
        lab.load_pretrained("small")
    path.unlink()
    with pytest.raises(lab.CheckpointError, match=r"record small\.json can't be read"):
        lab.load_pretrained("small")


def test_weights_that_do_not_fit_the_settings_are_refused(folder):
    path = folder / "small.safetensors"
    tensors, record = load_tensors(path)
    record["settings"]["model"]["width"] = 8
    checksum = save_tensors(path, tensors, record)
    path.with_suffix(".json").write_text(json.dumps({"sha256": checksum, **record}))
    with pytest.raises(lab.CheckpointError, match="do not fit ResNet"):
        lab.load_pretrained("small")


def test_what_is_no_name_is_named():
    with pytest.raises(lab.SettingError, match="name: 3 was given; allowed: text"):
        lab.load_pretrained(3)


def test_an_unknown_network_is_named_with_those_there_are(folder):
    with pytest.raises(lab.SettingError, match="smal: no such name; did you mean small"):
        lab.load_pretrained("smal")


@pytest.mark.parametrize("name", ["cnn_backbone", "shapes_teacher"])
def test_the_networks_that_the_course_ships_are_whole(name):
    model, record = lab.load_pretrained(name)
    assert model.head.out_features == len(record["classes"])
    assert 0.8 < record["metrics"]["validation_top1"] <= 1
