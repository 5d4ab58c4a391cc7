import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import labutils as lab
from labutils.models import parameter_count

SIZES = {"depth": st.integers(1, 6), "width": st.integers(1, 24)}


@given(**SIZES, normalization=st.sampled_from([None, "batch", "layer"]))
def test_twins_have_the_same_parameters(depth, width, normalization):
    plain = lab.MLP(depth, width, normalization=normalization)
    residual = lab.MLP(depth, width, normalization=normalization, residual=True)
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in residual.state_dict().items()}


def test_numpys_whole_numbers_are_sizes():
    model = lab.MLP(depth=np.int64(2), width=np.int32(8), classes=np.uint8(3))
    assert model(torch.zeros(1, 784)).shape == (1, 3)
    assert len(model.layers) == 2


@given(**SIZES, classes=st.integers(1, 20))
def test_the_head_reads_the_features(depth, width, classes):
    model = lab.MLP(depth, width, in_features=12, classes=classes).eval()
    images = torch.randn(3, 1, 3, 4)
    features = model.features(images)
    assert features.shape == (3, width)
    assert torch.equal(model(images), model.head(features))
    assert model(images).shape == (3, classes)
    assert torch.equal(model(images), model(images.flatten(1)))


@given(**SIZES)
def test_parameters_are_those_of_the_layers(depth, width):
    model = lab.MLP(depth, width)
    expected = 784 * width + width + (depth - 1) * (width * width + width) + width * 10 + 10
    assert parameter_count(model) == expected
    assert f"{expected:,} parameters" in repr(model)
    assert f"{depth} x {width}" in repr(model)


def test_a_residual_layer_adds_its_input():
    torch.manual_seed(0)
    model = lab.MLP(3, 8, residual=True, residual_scale=0.5, in_features=4)
    x = torch.randn(5, 4)
    first, second, third = (layer.linear for layer in model.layers)
    hidden = first(x).relu()  # the first changes the shape, so it has no skip
    hidden = hidden + 0.5 * second(hidden).relu()
    hidden = hidden + 0.5 * third(hidden).relu()
    assert torch.allclose(model.features(x), hidden)


def test_a_plain_net_is_its_layers_in_a_row():
    torch.manual_seed(0)
    model = lab.MLP(2, 8, in_features=4, activation="tanh")
    x = torch.randn(5, 4)
    first, second = (layer.linear for layer in model.layers)
    assert torch.allclose(model(x), model.head(second(first(x).tanh()).tanh()))


@pytest.mark.parametrize(("init", "variance"), [("he", 2), (0.5, 0.5), (3, 3)])
def test_initial_weights_have_the_given_variance_over_inputs(init, variance):
    torch.manual_seed(0)
    model = lab.MLP(2, 400, init=init)
    for layer in model.layers:
        assert layer.linear.weight.var().item() * layer.linear.in_features == pytest.approx(variance, rel=0.02)
        assert not layer.linear.bias.any()


def test_dropout_drops_in_training_alone():
    model = lab.MLP(1, 200, dropout=0.5, in_features=4, activation="sigmoid")
    x = torch.randn(8, 4)
    assert (model.train().features(x) == 0).double().mean() == pytest.approx(0.5, abs=0.05)
    assert not (model.eval().features(x) == 0).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 0}, ["depth", "0", "from 1"]),
        ({"depth": True}, ["depth", "True"]),
        ({"width": -4}, ["width", "-4", "from 1"]),
        ({"width": 2.0}, ["width", "2.0", "whole number"]),
        ({"normalization": "bach"}, ["normalization", "bach", "'batch', 'layer'"]),
        ({"activation": "step"}, ["activation", "step", "relu"]),
        ({"dropout": 1}, ["dropout", "1", "below 1"]),
        ({"init": "xavier"}, ["init", "xavier", "he"]),
        ({"residual": 1}, ["residual", "1", "True"]),
        ({"residual_scale": float("nan")}, ["residual_scale", "nan"]),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.MLP(**{"depth": 2, "width": 8} | arguments)
    assert all(word in str(caught.value) for word in words)


def test_residual_scales_are_numbers_the_depth_or_learned_from_zero():
    torch.manual_seed(0)
    x = torch.randn(4, 784)
    plain = lab.MLP(3, 8)
    for scale, factor in ((0.5, 0.5), ("depth", 3**-0.5), ("zero", 0.0)):
        model = lab.MLP(3, 8, residual=True, residual_scale=scale)
        model.load_state_dict(plain.state_dict(), strict=False)
        hidden = plain.layers[0](x)
        for layer in plain.layers[1:]:
            hidden = hidden + factor * layer(hidden)
        assert torch.allclose(model.features(x), hidden, atol=1e-6)
    learned = [parameter for name, parameter in model.named_parameters() if name.endswith("residual_scale")]
    assert len(learned) == 2
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in learned)
    assert "residual_scale" not in str([name for name, _ in lab.MLP(3, 8, residual_scale="zero").named_parameters()])


@pytest.mark.parametrize("scale", ["half", -1.0, True, None])
def test_other_residual_scales_are_refused(scale):
    with pytest.raises(lab.SettingError, match=r"residual_scale: .*'depth' or 'zero'"):
        lab.MLP(3, 8, residual=True, residual_scale=scale)
