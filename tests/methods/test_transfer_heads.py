"""Runs of heads that a method fits: whatever backbone they are for, the store gives back the model it was given."""

import pytest
import torch

import labutils as lab
from labutils.experiments.running import load_experiment_data
from labutils.methods import pretrained, transfer
from labutils.models.building import build_model

BACKBONES = {
    "resnet": {"blocks": [1, 1, 1, 1], "width": 2},
    "shallow": {"widths": [4, 4, 4]},  # whose own head has no biases
}


@pytest.fixture
def transferable(store, tmp_path, monkeypatch):
    """Makes an experiment that transfers an untrained backbone of a kind by a method."""
    monkeypatch.setattr(pretrained, "checkpoints_folder", lambda: tmp_path)

    def make(kind, method):
        training = {"epochs": 1}
        sources = {"name": "mnist", "source": "builtin", "limit": 100}
        settings = {"data": sources, "model": {"kind": kind, **BACKBONES[kind]}, "training": training}
        data = lab.load_data(**sources, device="cpu")
        torch.manual_seed(0)
        model = build_model(kind, **BACKBONES[kind], image_shape=data.image_shape, classes=len(data.classes))
        pretrained.save_pretrained(kind, model, data, settings=settings, metrics={"data": data.title})
        return lab.Experiment(
            name=kind,
            data=sources,
            model=settings["model"],
            training=lab.Training(**training),
            transfer=transfer.Transfer(backbone=kind, method=method, k=3, C=None if method == "knn" else 0.01),
        )

    return make


@pytest.mark.parametrize("method", ["knn", "svm", "probe"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_stored_head_loads_and_answers_as_the_one_that_was_stored(transferable, kind, method):
    experiment = transferable(kind, method)
    first = lab.run(experiment, progress=False)
    again = lab.run(experiment, progress=False)
    assert again is not first
    data = load_experiment_data(experiment)
    logits, _ = lab.predict(first.model, "test", data, precision="fp32")
    assert torch.equal(lab.predict(again.model, "test", data, precision="fp32")[0], logits)


@pytest.mark.parametrize("method", ["knn", "svm", "probe"])
def test_features_are_computed_in_the_experiments_precision(transferable, method):
    learned = {}
    for precision in ("fp32", "bf16"):
        head = lab.run(transferable("resnet", method).override(precision=precision), progress=False).model.head
        learned[precision] = head.features if method == "knn" else head.weight
    assert not torch.equal(*learned.values())


@pytest.mark.parametrize(("kind", "biased"), [("resnet", True), ("shallow", False)])
def test_a_head_to_be_trained_has_biases_where_the_backbones_has(transferable, kind, biased):
    experiment = transferable(kind, "fine_tuning")
    model = transfer.pretrained_model(experiment.transfer, experiment.model, load_experiment_data(experiment))
    assert (model.head.bias is not None) is biased
