"""The course's networks: kept, loaded, and refused where they are not what their record says."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("record", ["{}", "[]", "null"])
def test_a_record_without_a_checksum_is_refused(folder, record):
    (folder / "small.json").write_text(record)
    with pytest.raises(lab.CheckpointError, match=r"small\.json can't be read \(it names no checksum"):
        lab.load_pretrained("small")


def test_a_network_that_can_not_be_written_whole_leaves_the_old_one(backbone, folder, shapes, pretraining, monkeypatch):
    other = copy.deepcopy(backbone)
    torch.nn.init.ones_(other.head.weight)

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(folder), "write_text", full)
    with pytest.raises(OSError, match="no space"):
        pretrained.save_pretrained("small", other, shapes, settings=pretraining.settings(), metrics={"data": "other"})
    monkeypatch.undo()
    monkeypatch.setattr(pretrained, "checkpoints_folder", lambda: folder)
    model, _ = lab.load_pretrained("small")
    assert torch.equal(model.head.weight, backbone.head.weight)
    assert {path.name for path in folder.iterdir()} == {"small.json", "small.safetensors"}


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


NETWORKS = {  # and how many layers of each stand before a batch normalization
    "residual": (lambda: lab.ResNet([1, 2, 1, 1], width=4), 14),
    "plain": (lambda: lab.ResNet([1, 1, 1, 1], width=4, residual=False), 9),
    "shallow": (lambda: lab.ShallowCNN([4, 8, 8]), 8),
    "shallow, whole batches": (lambda: lab.ShallowCNN([4, 8, 8], ghost=False), 8),
    "MLP": (lambda: lab.MLP(3, 8, normalization="batch", in_features=3 * 32 * 32), 3),
    "MLP, layer normalization": (lambda: lab.MLP(3, 8, normalization="layer", in_features=3 * 32 * 32), 0),
}


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**31), powers=st.integers(0, 4))
def test_a_rescaled_network_answers_as_before_with_layers_of_untrained_norm(name, seed, powers):
    torch.manual_seed(seed)
    make, normalised = NETWORKS[name]
    images = torch.randn(64, 3, 32, 32)
    lengthened = make()
    with torch.no_grad():
        for parameter in lengthened.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if normalised:  # what no normalization follows would change the answers
            for layer in [each for each in lengthened.modules() if each is not lengthened.head]:
                if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and layer.weight.requires_grad:
                    layer.weight *= 10**powers
                    if layer.bias is not None:
                        layer.bias *= 10**powers
        for norm in lengthened.modules():
            norm.momentum = 1  # the running statistics are the last batch's
        lengthened.train()(images)
    lengthened.eval()
    before = copy.deepcopy(lengthened.state_dict())
    found = pretrained.rescaled(lengthened)
    with torch.no_grad():
        torch.testing.assert_close(found(images), lengthened(images), rtol=1e-2, atol=1e-2)
    assert all(torch.equal(before[key], tensor) for key, tensor in lengthened.state_dict().items())
    weights = {key: weight for key, weight in found.state_dict().items() if key.endswith("weight") and weight.ndim > 1}
    changed = [weight for key, weight in weights.items() if not torch.equal(weight, before[key])]
    assert len(changed) == normalised
    for weight in changed:
        assert weight.norm().item() == pytest.approx(math.sqrt(len(weight) / 3), rel=1e-4)


def test_the_rescaled_backbone_is_the_backbone_with_smaller_filters():
    long, record = lab.load_pretrained("cnn_backbone")
    short, other = lab.load_pretrained("cnn_backbone_rescaled")
    assert {**record, "sha256": None} == {**other, "sha256": None}
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(short(images), long(images), rtol=1e-3, atol=1e-2)
    assert long.stages[0][0].conv1.weight.norm() > 1000 * short.stages[0][0].conv1.weight.norm()
