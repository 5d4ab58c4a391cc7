"""Features and logits of whole splits, and the folder in which they can be kept."""

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

import labutils as lab
from labutils.methods import features as features_module
from labutils.methods.neighbours import NeighbourHead
from labutils.training.checkpoints import load_tensors


@pytest.fixture
def net() -> lab.ResNet:
    torch.manual_seed(0)
    return lab.ResNet([1, 1, 1, 1], width=2, zero_init_residual=False).eval()


@pytest.fixture(scope="module")
def few() -> lab.ImageData:
    return lab.load_data("mnist", source="builtin", limit=100, device="cpu")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "outputs"


def kept(cache):
    return list(cache.glob("*.safetensors"))


def test_features_are_what_the_head_sees(net, shapes):
    features, labels = lab.extract_features(net, "validation", shapes, precision="fp32")
    logits, truth = lab.predict(net, "validation", shapes, precision="fp32")
    assert features.shape == (len(shapes.validation), net.head.in_features)
    assert features.dtype == torch.float32
    assert torch.allclose(net.head(features), logits, atol=1e-5)
    assert torch.equal(labels, truth)
    assert torch.equal(lab.extract_logits(net, "validation", shapes, precision="fp32")[0], logits)
    assert torch.equal(lab.extract_features(net, shapes.validation, shapes, precision="fp32")[0], features)


def test_without_a_cache_nothing_is_written(net, shapes, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features_module, "save_tensors", lambda *_: pytest.fail("kept"))
    lab.extract_features(net, "validation", shapes)
    lab.extract_logits(net, "validation", shapes)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("extract", [lab.extract_features, lab.extract_logits])
def test_what_is_kept_is_found_again(net, shapes, cache, monkeypatch, extract):
    net.train()
    first, labels = extract(net, "validation", shapes, cache=cache)
    assert net.training
    assert len(kept(cache)) == 1
    monkeypatch.setattr(features_module, "outputs", lambda *_, **__: pytest.fail("extracted again"))
    again, same = extract(net, "validation", shapes, cache=cache)
    assert torch.equal(again, first)
    assert torch.equal(same, labels)


def test_features_do_not_depend_on_the_head_and_logits_do(net, few, cache):
    model = lab.MLP(1, 4)
    features, _ = lab.extract_features(model, "test", few, cache=cache)
    logits, _ = lab.extract_logits(model, "test", few, cache=cache)
    nn.init.zeros_(model.head.weight)
    assert torch.equal(lab.extract_features(model, "test", few, cache=cache)[0], features)
    assert not torch.equal(lab.extract_logits(model, "test", few, cache=cache)[0], logits)
    assert len(kept(cache)) == 3


def test_other_weights_images_precisions_and_normalisations_have_features_of_their_own(net, few, cache):
    model = lab.MLP(2, 8)
    changes = [
        {},
        {"part": "validation"},
        {"precision": "bf16"},
        {"data": replace(few, mean=few.mean + 1)},
        {"data": replace(few, test=lab.Split(few.test.images.flip(0), few.test.labels.flip(0)))},
    ]
    for number, change in enumerate(changes, start=1):
        settings = {"part": "test", "precision": "fp32", "data": few} | change
        data, part = settings["data"], settings["part"]
        found, _ = lab.extract_features(model, part, data, precision=settings["precision"], cache=cache)
        assert torch.equal(found, lab.extract_features(model, part, data, precision=settings["precision"])[0])
        assert len(kept(cache)) == number
    with torch.no_grad():
        model.layers[0].linear.weight[0, 0] += 1
    lab.extract_features(model, "test", few, precision="fp32", cache=cache)
    assert len(kept(cache)) == len(changes) + 1


def test_twins_of_equal_weights_have_features_of_their_own(few, cache):
    plain, residual = lab.MLP(3, 16), lab.MLP(3, 16, residual=True)
    residual.load_state_dict(plain.state_dict())
    for model in (plain, residual):
        found, _ = lab.extract_features(model, "test", few, cache=cache)
        assert torch.equal(found, lab.extract_features(model, "test", few)[0])
    assert len(kept(cache)) == 2


def test_a_students_class_whose_features_are_edited_gets_the_new_ones(few, cache):
    def student(power):
        class Student(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden, self.head = nn.Linear(784, 6), nn.Linear(6, 10)

            def features(self, images):
                return self.hidden(images.flatten(1)).relu() ** power

            def forward(self, images):
                return self.head(self.features(images))

        return Student()

    first, edited = student(1), student(2)
    edited.load_state_dict(first.state_dict())
    before, _ = lab.extract_features(first, "test", few, cache=cache)
    after, _ = lab.extract_features(edited, "test", few, cache=cache)
    assert torch.allclose(after, before.square())


def test_a_head_of_nearest_neighbours_has_logits_by_its_neighbours(few, cache):
    model = lab.MLP(1, 4)
    train = lab.extract_features(model, "train", few)
    found = []
    for k in (1, 10):
        model.head = NeighbourHead(train, k=k)
        found.append(lab.extract_logits(model, "test", few, cache=cache)[0])
    assert not torch.equal(*found)


def test_damaged_features_are_extracted_again(few, cache):
    model = lab.MLP(1, 4)
    features, _ = lab.extract_features(model, "test", few, cache=cache)
    (path,) = kept(cache)
    contents = bytearray(path.read_bytes())
    contents[-3] ^= 8
    path.write_bytes(contents)
    assert torch.equal(lab.extract_features(model, "test", few, cache=cache)[0], features)
    load_tensors(path)  # whole again


def test_a_folder_that_cannot_be_written_costs_no_features(few, cache):
    cache.write_text("no folder")
    with pytest.warns(UserWarning, match="features can't be kept"):
        features, _ = lab.extract_features(lab.MLP(1, 4), "test", few, cache=cache)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("extract", [lab.extract_features, lab.extract_logits])
@pytest.mark.parametrize("cached", [False, True])
def test_a_model_of_other_images_is_named(few, cache, extract, cached):
    options = {"cache": cache} if cached else {}
    with pytest.raises(lab.SettingError, match=r"in_features: 3072 .* 784, the numbers in an image"):
        extract(lab.MLP(1, 4, in_features=3072), "test", few, **options)
    with pytest.raises(lab.SettingError, match=r"in_channels: 3 .* 1, the channels"):
        extract(lab.ResNet([1, 1, 1, 1], width=1), "test", few, **options)
    with pytest.raises(lab.SettingError, match="split: 'tset'"):
        extract(lab.MLP(1, 4), "tset", few, **options)
