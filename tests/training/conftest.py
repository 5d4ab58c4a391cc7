import pytest

import labutils as lab


@pytest.fixture(scope="session")
def few() -> lab.ImageData:
    """A few digits: 160 to train on, 40 for validation, 200 for the test."""
    return lab.load_data("mnist", source="builtin", limit=200, device="cpu")


@pytest.fixture(scope="session")
def shapes() -> lab.ImageData:
    """A few coloured shapes: 96 to train on, 24 for validation, 120 for the test."""
    return lab.load_data("cifar10", source="builtin", limit=120, device="cpu")
