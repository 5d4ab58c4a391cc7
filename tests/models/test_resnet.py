"""The ResNet against torchvision's blocks in the arrangement of the CIFAR labs, and its plain twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import labutils as lab
from labutils.models.shallow import whiten_stem

PATTERNS = st.tuples(*[st.integers(1, 2)] * 4)


class Reference(nn.Module):
    """torchvision's BasicBlock behind kuangliu's stem."""

    def __init__(self, blocks, width, classes):
        from torchvision.models.resnet import BasicBlock, conv1x1

        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        # torchvision's class refuses widths other than 64 for no reason that its layers have.
        stages, inputs = [], width
        for number, count in enumerate(blocks):
            outputs, stage = width * 2**number, []
            for position in range(count):
                stride = 2 if number and not position else 1
                skip = None
                if stride != 1 or inputs != outputs:
                    skip = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
                stage.append(BasicBlock(inputs, outputs, stride, skip))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.stages(self.stem(x)), 1)
        return self.head(torch.flatten(x, 1))


@settings(max_examples=8, deadline=None)
@given(blocks=PATTERNS, width=st.sampled_from([2, 3, 8]), seed=st.integers(0, 99), training=st.booleans())
def test_outputs_are_those_of_torchvisions_blocks_for_the_same_weights(blocks, width, seed, training):
    torch.manual_seed(seed)
    ours = lab.ResNet(blocks, width=width, zero_init_residual=False).train(training)
    reference = Reference(blocks, width, 10).train(training)
    # Both register stem, blocks and head in the order in which the images meet them.
    theirs, mine = reference.state_dict(), ours.state_dict()
    assert [tensor.shape for tensor in mine.values()] == [tensor.shape for tensor in theirs.values()]
    reference.load_state_dict(dict(zip(theirs, mine.values(), strict=True)))
    images = torch.randn(4, 3, 32, 32)
    assert torch.allclose(ours(images), reference(images), atol=1e-5)


def test_width_64_has_the_parameters_of_the_labs_resnet_18():
    assert lab.describe(lab.ResNet())["parameters"] == 11_173_962  # github.com/kuangliu/pytorch-cifar


@settings(max_examples=8, deadline=None)
@given(blocks=PATTERNS, width=st.integers(1, 6))
def test_the_plain_twin_lacks_the_skips_and_nothing_else(blocks, width):
    residual, plain = (lab.ResNet(blocks, width=width, residual=residual) for residual in (True, False))
    without_skips = {name: tensor.shape for name, tensor in residual.state_dict().items() if ".skip." not in name}
    assert without_skips == {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert lab.describe(residual)["layers"] == lab.describe(plain)["layers"] == 2 * sum(blocks) + 2


def test_a_plain_net_is_its_layers_in_a_row():
    torch.manual_seed(0)
    model = lab.ResNet((1, 2, 1, 1), width=3, residual=False).eval()
    x = images = torch.randn(2, 3, 16, 16)
    x = model.stem(x)
    for stage in model.stages:
        for block in stage:
            x = torch.relu(block.norm1(block.conv1(x)))
            x = torch.relu(block.norm2(block.conv2(x)))
    assert torch.allclose(model(images), model.head(x.mean((2, 3))), atol=1e-6)


def test_zero_init_makes_each_block_of_a_residual_net_its_skip_alone():
    torch.manual_seed(0)
    images = torch.rand(2, 4, 8, 8)
    first = lab.ResNet((2, 1, 1, 1), width=4).stages[0][0]
    assert torch.equal(first(images), images)
    other = lab.ResNet((2, 1, 1, 1), width=4, zero_init_residual=False).stages[0][0]
    assert not torch.allclose(other(images), images)
    plain = lab.ResNet((2, 1, 1, 1), width=4, residual=False)
    assert all(torch.equal(block.norm2.weight, torch.ones_like(block.norm2.weight)) for block in plain.stages[1])


@settings(max_examples=5, deadline=None)
@given(blocks=PATTERNS, classes=st.integers(1, 20))
def test_the_head_reads_the_features(blocks, classes):
    model = lab.ResNet(blocks, width=2, in_channels=1, classes=classes).eval()
    images = torch.randn(3, 1, 28, 28)
    assert model.features(images).shape == (3, 16)
    assert torch.equal(model(images), model.head(model.features(images)))
    assert torch.allclose(model.features(images), model.feature_maps(images).mean((2, 3)))


def test_multiply_adds_are_counted_layer_by_layer():
    model = lab.ResNet((1, 1, 1, 1), width=2, classes=5)
    sizes = {"stem.0": 32**2}
    for number, side in enumerate((32, 16, 8, 4)):
        sizes |= {f"stages.{number}.0.{name}": side**2 for name in ("conv1", "conv2", "skip.0")}
    expected = sum(
        model.get_submodule(name).weight.numel() * places
        for name, places in sizes.items()
        if name != "stages.0.0.skip.0"
    )
    assert lab.describe(model)["multiply_adds"] == expected + 16 * 5
    assert lab.describe(lab.MLP(2, 8))["multiply_adds"] == 784 * 8 + 8 * 8 + 8 * 10
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"blocks": (2, 2, 0, 2)}, ["blocks", "(2, 2, 0, 2)", "from 1"]),
        ({"blocks": (2, 2, 2)}, ["blocks", "(2, 2, 2)", "4 whole numbers"]),
        ({"blocks": 2}, ["blocks", "2", "4 whole numbers"]),
        ({"blocks": (2, 2, 2, 2.5)}, ["blocks", "2.5", "whole"]),
        ({"width": 0}, ["width", "0", "from 1"]),
        ({"residual": "yes"}, ["residual", "yes", "True"]),
        ({"in_channels": 0}, ["in_channels", "0", "from 1"]),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.ResNet(**arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 1, 32, 32), ["images", "(2, 1, 32, 32)", "(N, 3, H, W)"]),
        (torch.zeros(3, 32, 32), ["images", "(3, 32, 32)", "(N, 3, H, W)"]),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ["images", "uint8", "normalised"]),
    ],
)
def test_wrong_images_are_named(images, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.ResNet((1, 1, 1, 1), width=1)(images)
    assert all(word in str(caught.value) for word in words)


def test_a_whitened_stem_answers_patches_uncorrelated_and_with_variance_one():
    torch.manual_seed(0)
    images = nn.functional.avg_pool2d(torch.randn(60, 3, 48, 48), 5, 1, 2)[:, :, 8:40, 8:40]  # neighbours alike
    images = images / images.std()
    model = lab.ResNet((1, 1, 1, 1), width=16)
    before = model.stem[0].weight.clone()
    whiten_stem(model, images)
    answers = nn.functional.conv2d(images, model.stem[0].weight).transpose(0, 1).flatten(1).detach()
    first, second = answers[:8], answers[8:]
    assert torch.allclose(first, -second, atol=1e-4)
    assert torch.allclose(torch.cov(first), torch.eye(8), atol=0.02)
    wide = lab.ResNet((1, 1, 1, 1), width=60)
    rest = wide.stem[0].weight[54:].clone()
    whiten_stem(wide, images)
    assert torch.equal(wide.stem[0].weight[54:], rest)
    assert not torch.equal(model.stem[0].weight, before)
