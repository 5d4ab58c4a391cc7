import shutil

import pytest
import torch

import labutils as lab
from labutils.experiments.running import load_experiment_data
from labutils.methods import pretrained


@pytest.fixture(scope="session")
def pretraining() -> lab.Experiment:
    """What the small network of `backbone` is trained by."""
    return lab.Experiment.load("cnn_backbone", profile="smoke", epochs=6, batch_size=32, limit=300)


@pytest.fixture(scope="session")
def shapes(pretraining) -> lab.ImageData:
    """A few drawn shapes of 10 classes: 270 to train on, 30 for validation, 300 for the test."""
    return load_experiment_data(pretraining)


@pytest.fixture(scope="session")
def small(pretraining, shapes, tmp_path_factory):
    """A small trained network, and the folder in which it is kept."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    model = lab.ResNet([1, 1, 1, 1], width=4, zero_init_residual=False)
    lab.fit(model, shapes, pretraining.training, progress=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretrained, "checkpoints_folder", lambda: folder)
        metrics = {"data": shapes.title}
        pretrained.save_pretrained("small", model, shapes, settings=pretraining.settings(), metrics=metrics)
    return model.eval(), folder


@pytest.fixture
def backbone(small, store, tmp_path, monkeypatch) -> lab.ResNet:
    """The network that is called "small", as it is kept, in a folder of its own."""
    model, folder = small
    shutil.copytree(folder, tmp_path / "checkpoints")
    monkeypatch.setattr(pretrained, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    return pretrained.rescaled(model)
