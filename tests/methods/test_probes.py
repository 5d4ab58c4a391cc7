import copy
import math

import pandas as pd
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils.data import batches
from labutils.methods import probes
from labutils.methods.probes import filter_normalised
from labutils.training.numerics import autocast


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


def test_vanishing_gradients_are_small_but_not_zero(batch):
    torch.manual_seed(0)
    weights = lab.gradient_norms(lab.MLP(60, 16), *batch).query("kind == 'weight'")
    assert weights["norm"].min() < 1e-22  # of which float32 can't hold the square
    assert (weights["norm"] > 0).all()


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


def test_learned_scales_neither_count_as_layers_nor_have_a_row(batch):
    norms = lab.gradient_norms(lab.MLP(3, 16, residual=True, residual_scale="zero"), *batch)
    assert set(norms["kind"]) == {"weight", "bias"}
    assert norms["layer"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_activation_gradients_are_those_by_the_hidden_layers(batch):
    model = lab.MLP(3, 16)
    images, labels = batch
    hidden, outputs = images.flatten(1), []
    for layer in model.layers:
        hidden = layer(hidden)
        hidden.retain_grad()
        outputs.append(hidden)
    F.cross_entropy(model.head(hidden), labels).backward()
    found = probes.activation_gradients(model, images, labels)
    assert found["layer"].tolist() == [1, 2, 3]
    assert found["norm"].tolist() == pytest.approx([output.grad.norm().item() for output in outputs], rel=1e-5)


@pytest.mark.parametrize(
    "probe", [lab.probes.activation_gradients, lambda net, x, y: probes.gradient_correlation(net, x[0], x[1])]
)
def test_other_probes_leave_nothing_changed_either(batch, probe):
    model = lab.MLP(2, 16, normalization="batch", dropout=0.3).eval()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    probe(model, *batch)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model.layers)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_rate_is_the_geometric_mean_towards_the_image():
    rate = probes.rate_per_layer(pd.DataFrame({"layer": [1, 2, 3], "norm": [8.0, 4.0, 1.0]}))
    assert rate.mean == pytest.approx(8**0.5)
    assert rate.sd == pytest.approx(2**0.5)
    assert rate.layers == 2
    for norms in ([1.0], [0.0, 1.0], [math.nan, 1.0]):
        with pytest.raises(lab.SettingError, match="norms"):
            probes.rate_per_layer(pd.DataFrame({"layer": range(1, len(norms) + 1), "norm": norms}))


@pytest.mark.parametrize(
    ("settings", "rate", "tolerance"),
    [
        ({}, math.sqrt(1 / 6), 0.03),
        ({"init": "he"}, 1.0, 0.03),
        ({"normalization": "batch"}, 1.2112, 0.03),
        ({"normalization": "batch", "init": "he"}, 1.2112, 0.03),
        ({"residual": True, "residual_scale": 0.0}, 1.0, 1e-6),
        ({"residual": True, "residual_scale": "zero"}, 1.0, 1e-6),
        ({"residual": True, "residual_scale": "depth"}, math.sqrt(1 + 1 / 240), 0.01),
        ({"init": 1.0}, math.sqrt(1 / 2), 0.03),
        ({"activation": "tanh", "init": 0.5}, math.sqrt(1 / 2), 0.03),
        ({"activation": "tanh", "init": 4.0}, 1.1673, 0.03),
    ],
)
def test_theory_meets_measurement(digits, settings, rate, tolerance):
    batch = next(batches(digits.train, digits, 512))
    torch.manual_seed(0)
    model = lab.MLP(40, 128, **settings)
    assert probes.mean_field_rate(model) == pytest.approx(rate, rel=1e-4)
    assert probes.rate_per_layer(probes.activation_gradients(model, *batch)).mean == pytest.approx(rate, rel=tolerance)


def test_unscaled_skips_are_beyond_the_independence_argument(digits):
    torch.manual_seed(0)
    model = lab.MLP(40, 128, residual=True)
    assert probes.mean_field_rate(model) == pytest.approx(1.0801, rel=1e-4)
    rate = probes.rate_per_layer(probes.activation_gradients(model, *next(batches(digits.train, digits, 512)))).mean
    assert 1.15 < rate < 1.26


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"activation": "gelu"}, "plain net with .* activation='gelu'"),
        ({"activation": "tanh", "residual": True}, "residual net with .* activation='tanh'"),
        ({"activation": "tanh", "normalization": "batch"}, "activation='tanh'"),
        ({"dropout": 0.5}, "dropout=0.5"),
        ({"normalization": "layer"}, "plain net with normalization='layer'"),
        ({"normalization": "batch", "residual": True}, "residual net with normalization='batch'"),
    ],
)
def test_where_no_theory_is_known_the_reason_is_named(settings, named):
    with pytest.raises(NotImplementedError, match=named):
        probes.mean_field_rate(lab.MLP(3, 8, **settings))


def test_a_lesion_leaves_out_one_layer(digits):
    torch.manual_seed(0)
    model = lab.MLP(3, 16)
    lab.fit(model, digits, lab.Training(epochs=2), progress=False)
    study = probes.lesion_study(model, "validation", digits)
    assert study["dropped"].tolist() == [0, 2, 3]
    assert study["top1"][0] == lab.evaluate(model, "validation", digits)["top1"]
    without = copy.deepcopy(model)
    del without.layers[1]
    assert study["loss"][1] == pytest.approx(lab.evaluate(without, "validation", digits)["loss"], rel=1e-6)
    assert not any(layer._forward_hooks for layer in model.layers)
    with pytest.raises(lab.SettingError, match="two hidden layers"):
        probes.lesion_study(lab.MLP(1, 16), "validation", digits)


def test_gradients_shatter_with_depth_but_not_with_skips(batch):
    def correlation(**settings):
        torch.manual_seed(0)
        curve = probes.gradient_correlation(lab.MLP(width=64, init="he", **settings), *batch[0][:2])
        assert curve["correlation"][0] == pytest.approx(1)
        return curve["correlation"].iloc[-1]

    shallow, deep = correlation(depth=2), correlation(depth=30)
    residual = correlation(depth=30, residual=True, residual_scale="depth")
    assert deep < 0.5 < min(shallow, residual)


def test_correlations_are_given_by_distance(batch):
    start, end = batch[0][:2]
    curve = probes.gradient_correlation(lab.MLP(2, 16), start, end, points=8)
    assert curve["lag"].tolist() == [0, 1, 2]
    assert curve["distance"][2] == pytest.approx(2 * (end - start).norm().item() / 7)
    with pytest.raises(lab.SettingError, match="points"):
        probes.gradient_correlation(lab.MLP(2, 16), start, end, points=3)


@pytest.fixture(scope="module")
def small_net():
    torch.manual_seed(0)
    return lab.ResNet((1, 1, 1, 1), width=4, zero_init_residual=False)


def test_projections_do_not_shift_the_numbers_of_layers():
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    residual, plain = (
        lab.gradient_norms(lab.ResNet((1, 1, 1, 1), width=2, residual=residual), images, labels)
        for residual in (True, False)
    )
    numbers = {row.name: row.layer for row in residual.itertuples() if row.kind == "weight"}
    expected = {row.name: row.layer for row in plain.itertuples() if row.kind == "weight"}
    assert {name: layer for name, layer in numbers.items() if ".skip." not in name} == expected
    assert expected["head"] == 10
    assert numbers["stages.1.0.skip.0"] == numbers["stages.1.0.conv2"]


def test_the_middle_of_a_loss_surface_is_the_model(small_net):
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    before = {name: tensor.clone() for name, tensor in small_net.state_dict().items()}
    small_net.train()
    surface = probes.loss_surface(small_net, images, labels, points=3, reach=0.5)
    assert small_net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in small_net.state_dict().items())
    with torch.no_grad(), autocast(small_net, torch.device("cpu"), "auto"):
        logits = small_net.eval()(images).float()
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    middle = surface[(surface["x"] == 0) & (surface["y"] == 0)]["loss"].item()
    assert middle == pytest.approx(expected, rel=1e-6)
    assert sorted(set(surface["x"])) == sorted(set(surface["y"])) == [-0.5, 0.0, 0.5]
    assert surface["loss"].nunique() == 9
    again = probes.loss_surface(small_net, images, labels, points=3, reach=0.5)
    other = probes.loss_surface(small_net, images, labels, points=3, reach=0.5, seed=1)
    assert again.equals(surface)
    assert not other.equals(surface)


def test_directions_have_the_length_of_the_models_filters(small_net):
    for weight in (small_net.stages[1][0].conv1.weight, small_net.head.weight):
        direction = filter_normalised(weight, torch.Generator().manual_seed(0))
        assert torch.allclose(direction.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))


def test_a_loss_surface_does_not_depend_on_the_size_of_weights_before_a_normalization():
    """What filter normalisation is for: weights scaled by c before a batch norm are the same function."""
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    net = lab.ResNet((1, 1, 1, 1), width=4, residual=False).double()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-12
            module.momentum = None
    net.train()
    net(images.double())
    first = probes.loss_surface(net, images.double(), labels, points=3)
    with torch.no_grad():
        for block in [stage[0] for stage in net.stages]:
            block.conv1.weight *= 10
            block.norm1.running_mean *= 10
            block.norm1.running_var *= 100
    second = probes.loss_surface(net, images.double(), labels, points=3)
    assert second["loss"].to_numpy() == pytest.approx(first["loss"].to_numpy(), rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"points": 4}, ["points", "4", "odd"]), ({"points": 1}, ["points", "1", "3"]), ({"reach": 0}, ["reach", "0"])],
)
def test_wrong_arguments_of_a_loss_surface_are_named(small_net, arguments, words):
    with pytest.raises(lab.SettingError) as caught:
        probes.loss_surface(small_net, torch.randn(2, 3, 8, 8), torch.arange(2), **arguments)
    assert all(word in str(caught.value) for word in words)


def test_a_class_activation_maps_mean_is_the_classs_logit(small_net):
    images = torch.randn(3, 3, 32, 32)
    small_net.train()
    maps = probes.class_activation_maps(small_net, images)
    assert small_net.training
    assert maps.shape == (3, 10, 4, 4)
    assert torch.allclose(maps.mean((2, 3)), small_net.eval()(images), atol=1e-5)
    place = small_net.feature_maps(images)[1, :, 2, 3]
    assert torch.allclose(maps[1, :, 2, 3], small_net.head(place), atol=1e-5)


def test_a_network_that_is_as_often_right_as_it_is_sure_is_calibrated():
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40_000, 5, generator=random)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=random)[:, 0]
    assert probes.calibration_error(logits, labels) < 0.01
    table = probes.calibration(logits, labels, bins=10)
    assert table["share"].sum() == pytest.approx(1)
    assert (table["confidence"] - table["accuracy"]).abs().max() < 0.05
    assert probes.calibration_error(3 * logits, labels) > 0.1  # too sure
    assert probes.calibration_error(logits / 3, labels) > 0.1  # not sure enough


def test_logits_that_are_no_numbers_are_not_calibrated():
    with pytest.raises(lab.SettingError, match="logits: 'not finite in row 1'"):
        probes.calibration_error(torch.tensor([[1.0, 2.0], [math.nan, 0.0]]), torch.tensor([1, 0]))


def test_the_calibration_error_of_a_few_answers_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.45, 0.55]])
    labels = torch.tensor([0, 1, 0, 0])
    # two bins above one half: {0.9, 0.8} half of them right, {0.6, 0.55} half of them right
    found = probes.calibration_error(probabilities.log(), labels, bins=4)
    assert found == pytest.approx((0.5 * abs(0.85 - 0.5)) + 0.5 * abs(0.575 - 0.5))
    sure = torch.tensor([[100.0, 0.0]])
    assert probes.calibration_error(sure, torch.tensor([0])) == pytest.approx(0)
    with pytest.raises(lab.SettingError, match="bins: 0"):
        probes.calibration(sure, torch.tensor([0]), bins=0)
