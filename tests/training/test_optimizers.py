import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.training.optimizers import PLAIN_RATE, Muon, make_optimizer, make_scheduler, orthogonal


@settings(deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_orthogonal_keeps_the_directions_and_evens_out_their_lengths(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, lengths, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    assert found.shape == matrix.shape
    assert found.dtype == matrix.dtype
    along = torch.diagonal(left.T @ found @ right.T)
    weak = lengths < 0.05 * lengths.max()  # too little of a direction to be brought up in so few turns
    assert ((along > 0.5) & (along < 1.3))[~weak].all()


def test_a_step_is_the_orthogonal_momentum():
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(6, 4, 3, 3)), torch.nn.Parameter(torch.randn(6))
    start, bias_start = weight.detach().clone(), bias.detach().clone()
    optimizer = Muon([weight], [bias], lr=0.1, momentum=0.5, weight_decay=0.2)
    gradients = [torch.randn(6, 4, 3, 3) for _ in range(2)]
    buffer = torch.zeros(6, 4, 3, 3)
    expected, expected_bias, bias_buffer = start, bias_start, torch.zeros(6)
    for gradient in gradients:
        weight.grad, bias.grad = gradient, gradient[:, 0, 0, 0]
        optimizer.step()
        buffer = 0.5 * buffer + gradient
        direction = orthogonal((gradient + 0.5 * buffer).reshape(6, 36)).reshape(6, 4, 3, 3)
        share = 0.1 * expected.norm() / direction.norm()
        expected = expected * (1 - 0.1 * 0.2) - share * direction
        bias_buffer = 0.5 * bias_buffer + bias.grad
        expected_bias = expected_bias - PLAIN_RATE * 0.1 * (bias.grad + 0.5 * bias_buffer)
    assert torch.allclose(weight, expected, atol=1e-5)
    assert torch.allclose(bias, expected_bias, atol=1e-6)


def test_the_length_of_a_gradient_does_not_matter_to_hidden_weights():
    steps = []
    for scale in (1.0, 1_000.0):
        weight = torch.nn.Parameter(torch.ones(8, 5))
        weight.grad = scale * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
        Muon([weight], [], lr=0.1, momentum=0.0, weight_decay=0.0).step()
        steps.append(weight.detach() - 1)
    assert torch.allclose(*steps, atol=1e-2)
    assert steps[0].norm() == pytest.approx(0.1 * 40**0.5, rel=1e-3)


def test_weights_that_are_zero_can_grow():
    weight = torch.nn.Parameter(torch.zeros(3, 3))
    weight.grad = torch.eye(3)
    Muon([weight], [], lr=0.1, momentum=0.0, weight_decay=0.0).step()
    assert weight.norm() > 0


def test_weights_that_no_gradient_reaches_stay():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    Muon([weight], [], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    assert torch.equal(weight, torch.ones(3, 3))


def test_the_head_the_biases_and_the_normalizations_take_plain_steps():
    net = lab.ResNet((1, 1, 1, 1), width=2)
    optimizer = make_optimizer(net, lab.Training(epochs=1, optimizer="muon"))
    names = {parameter: name for name, parameter in net.named_parameters()}
    hidden, others, head = ({names[one] for one in group["params"]} for group in optimizer.param_groups)
    assert [group["orthogonal"] for group in optimizer.param_groups] == [True, False, False]
    assert others == {name for name in names.values() if "norm" in name or "skip.1" in name or "stem.1" in name}
    assert head == {"head.weight", "head.bias"}
    assert hidden | others | head == set(names.values())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": "muon"}, "model: 'Sequential'"),
        ({"head_lr": 2.0}, "model: 'Sequential'"),
        ({"stage_lr": 0.5}, "stage_lr"),
    ],
)
def test_networks_without_a_head_or_stages_are_named(settings, named):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    with pytest.raises(lab.SettingError, match=named):
        make_optimizer(net, lab.Training(epochs=1, **settings))


def test_layers_beside_the_stages_are_not_left_out_of_rates_by_stage():
    net = lab.ResNet((1, 1, 1, 1), width=2)
    net.neck = torch.nn.Linear(16, 16)
    with pytest.raises(lab.SettingError, match=r"stage_lr: 0.5 .* layers beside its stages"):
        make_optimizer(net, lab.Training(epochs=1, stage_lr=0.5))


def test_muon_learns(digits):
    torch.manual_seed(0)
    model = lab.MLP(2, 32)
    lab.fit(model, digits, lab.Training(epochs=4, optimizer="muon", lr=0.02), progress=False)
    assert lab.evaluate(model, "test", digits)["top1"] > 0.85


# Schedules


def trained(data, training):
    torch.manual_seed(0)
    return lab.fit(lab.MLP(1, 4), data, training, progress=False)


def test_cosine_lowers_the_rate_epoch_by_epoch(few):
    history = trained(few, lab.Training(epochs=4, lr=0.1, optimizer="sgd", scheduler="cosine"))
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert history.frame["lr"].tolist() == pytest.approx(expected)


def test_onecycle_rises_to_the_rate_and_falls(few):
    history = trained(few, lab.Training(epochs=10, batch_size=16, lr=0.01, scheduler="onecycle"))
    rates = history.frame["lr"].tolist()
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates.index(max(rates)) == 0  # the first epoch is the tenth in which it rises
    assert rates[-1] < 1e-5


@pytest.mark.parametrize("scheduler", ["onecycle", "triangular"])
@pytest.mark.parametrize("steps", range(3, 30))
def test_a_cycle_of_any_length_reaches_its_peak(scheduler, steps):
    training = lab.Training(epochs=1, lr=0.1, scheduler=scheduler)
    optimizer = make_optimizer(lab.MLP(1, 4), training)
    schedule, rates = make_scheduler(optimizer, training, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < steps else None
    assert max(rates) == pytest.approx(0.1, rel=0.06 if steps > 20 else 1e-6)


@pytest.mark.parametrize("scheduler", ["onecycle", "triangular"])
def test_a_cycle_too_short_to_rise_and_fall_is_refused(few, scheduler):
    with pytest.raises(lab.SettingError, match=f"scheduler: '{scheduler}' .* one cycle of 3 steps or more"):
        trained(few, lab.Training(epochs=2, batch_size=160, scheduler=scheduler))
    trained(few, lab.Training(epochs=3, batch_size=160, scheduler=scheduler))


def test_triangular_falls_along_a_line(few):
    history = trained(few, lab.Training(epochs=10, batch_size=16, lr=0.01, scheduler="triangular"))
    rates = history.frame["lr"].tolist()
    assert rates[0] == pytest.approx(0.01, rel=0.05)
    assert rates == pytest.approx([0.01 * (10 - epoch) / 9 for epoch in range(1, 11)], abs=0.01 * 0.05)


@pytest.mark.parametrize("scheduler", ["onecycle", "triangular"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adam"])
def test_one_cycle_leaves_momentum_as_it_was_set(optimizer, scheduler):
    training = lab.Training(epochs=2, optimizer=optimizer, momentum=0.6, scheduler=scheduler)
    model = lab.MLP(1, 8)
    made = make_optimizer(model, training)
    scheduler = make_scheduler(made, training, steps=4)
    for _ in range(7):
        made.step()
        scheduler.step()
        group = made.param_groups[0]
        assert group.get("betas", (0.6,))[0] == (0.9 if optimizer == "adam" else 0.6)
        assert group.get("momentum", 0.6) == 0.6
