import pytest
import torch
from torch import nn

import labutils as lab
from labutils.training.device import autocast, has_native_bf16, seeded

CPU = torch.device("cpu")


def test_bf16_is_used_where_it_pays():
    convolution, mlp = nn.Sequential(nn.Conv2d(1, 1, 3)), lab.MLP(2, 16)
    assert isinstance(autocast(convolution, CPU, "auto"), torch.autocast) == has_native_bf16(CPU)
    assert not isinstance(autocast(mlp, CPU, "auto"), torch.autocast)
    assert not isinstance(autocast(convolution, CPU, "fp32"), torch.autocast)
    with autocast(mlp, CPU, "bf16"):
        assert mlp(torch.randn(2, 784)).dtype == torch.bfloat16


def test_a_seed_counts_inside_and_nothing_is_left_of_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's random state was set"))
    before = torch.get_rng_state()
    with seeded(5, CPU):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(5, CPU):
        assert torch.equal(torch.rand(3), first)
    with seeded(6, CPU):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(5)), first)
