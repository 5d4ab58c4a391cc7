"""The course end to end, in short: what has to work with the oldest versions that pyproject.toml allows, too."""

import os
import subprocess
import sys

import pytest

import labutils as lab
from labutils.training.callbacks import Callback


class Epochs(Callback):
    """Counts the epochs that are trained, and interrupts the training in the one after `whole` of them."""

    def __init__(self, whole=None):
        self.trained, self.whole = 0, whole

    def before_step(self, state):
        if self.trained == self.whole:
            raise KeyboardInterrupt

    def after_epoch(self, state):
        self.trained += 1


@pytest.fixture
def images():
    """A few coloured shapes, and a short training on them."""
    data = lab.load_data("cifar10", source="builtin", limit=200, device="cpu")
    return data, lab.Training(epochs=2, batch_size=50, augment="basic")


@pytest.mark.parametrize(
    "make", [lambda: lab.MLP(2, 16, in_features=3072), lambda: lab.ResNet((1, 1, 1, 1), width=4)], ids=["MLP", "ResNet"]
)
def test_a_network_learns_and_is_measured(images, make):
    data, training = images
    model = make()
    history = lab.fit(model, data, training, progress=False)
    assert len(history.frame) == 2
    assert lab.evaluate(model, "test", data)["loss"] > 0
    features = lab.extract_features(model, "train", data), lab.extract_features(model, "test", data)
    assert 0 <= lab.knn(*features)["top1"] <= 1
    assert 0 <= lab.linear_svm(*features)["top1"] <= 1
    assert (lab.gradient_norms(model, data.train.images[:8] / 255, data.train.labels[:8])["norm"] >= 0).all()


def test_a_training_goes_on_where_it_was_interrupted(images, tmp_path):
    data, training = images
    kept = {"checkpoint": tmp_path / "checkpoint.safetensors", "progress": False}
    with pytest.raises(lab.Interrupted):
        lab.fit(lab.MLP(2, 16, in_features=3072), data, training, callbacks=[Epochs(whole=1)], **kept)
    rest = Epochs()
    history = lab.fit(lab.MLP(2, 16, in_features=3072), data, training, callbacks=[rest], **kept)
    assert (len(history.frame), rest.trained) == (2, 1)


def test_runs_of_several_processes_are_kept_and_drawn(store):
    base = lab.Experiment.load("mlp_mnist", profile="smoke", depth=1, width=8, epochs=1)
    experiments = [base.override(seed=seed) for seed in (0, 1)]
    results = lab.sweep(experiments, jobs=2, progress=False)
    assert results["test_top1"].between(0, 1).all()
    run = lab.run(experiments[0], progress=False)
    assert run.metrics["test_top1"] == results["test_top1"][0]
    assert run.model(lab.load_data("mnist", source="builtin", device="cpu").test.images[:2].float()).shape == (2, 10)
    assert lab.plots.history(run.history.frame).png().startswith(b"\x89PNG")


def test_the_command_line_runs_an_experiment(store):
    command = [sys.executable, "-m", "labutils", "run", "mlp_mnist", "--profile", "smoke", "--epochs", "1"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kept in" in done.stdout
