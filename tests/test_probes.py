import copy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils.data import batches


@pytest.fixture
def batch(digits):
    return next(batches(digits.train, digits, 64))


def test_norms_are_those_of_backward(batch):
    model = lab.MLP(3, 16, normalization="batch")
    norms = lab.gradient_norms(model, *batch)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    expected = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    found = {f"{row.name}.{row.kind}": row.norm for row in norms.itertuples()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_layers_are_counted_from_the_input(batch):
    norms = lab.gradient_norms(lab.MLP(3, 16, normalization="batch"), *batch)
    weights = norms[(norms["kind"] == "weight") & ~norms["name"].str.contains("norm")]
    assert weights["layer"].tolist() == [1, 2, 3, 4]
    assert weights["name"].tolist() == ["layers.0.linear", "layers.1.linear", "layers.2.linear", "head"]
    assert norms[norms["name"] == "layers.1.norm"]["layer"].tolist() == [2, 2]


def test_nothing_is_left_changed(batch):
    model = lab.MLP(2, 16, normalization="batch", dropout=0.3).eval()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    lab.gradient_norms(model, *batch)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all((parameter.grad == 7).all() for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
