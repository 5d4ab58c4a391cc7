import pytest
import torch

import labutils as lab
from labutils.experiments import store as runs
from labutils.training import Callback


@pytest.fixture(scope="session")
def digits() -> lab.ImageData:
    return lab.load_data("mnist", source="builtin", device="cpu")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty run store."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("LABUTILS_RUNS", str(folder))
    monkeypatch.setattr(runs, "shipped_root", lambda: tmp_path / "shipped")  # nor are the course's own runs found
    return folder


@pytest.fixture
def one_thread():
    """A single thread, so that sums are taken in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def experiment() -> lab.Experiment:
    return lab.Experiment.load("mlp_mnist", profile="smoke", depth=2, width=16, epochs=2)


class InterruptAfter(Callback):
    """Interrupts once, after so many epochs, such as 1.5."""

    def __init__(self, epochs):
        self.epochs = epochs

    def after_step(self, state):
        if state.epochs >= self.epochs:
            raise KeyboardInterrupt


@pytest.fixture
def interrupt_after() -> type[InterruptAfter]:
    """A callback that ends a training as Ctrl-C does."""
    return InterruptAfter
