"""ShallowCNN, the net of the ladder's last rung."""

import pytest
import torch

import labutils as lab
from labutils.models import FEATURE_SCALE, PooledBlock, whiten_stem


def test_its_layers_are_those_of_the_paper():
    model = lab.ShallowCNN()
    counted = lab.describe(model)
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    normalizations = 2 * 2 * (64 + 256 + 256)
    assert counted["parameters"] == 24 + convolutions + normalizations + 2560  # the first filters are not learned
    assert counted["layers"] == 8
    sides = (31, 15, 15, 7, 7, 3)
    channels = ((24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256))
    products = sum(9 * side**2 * first * second for side, (first, second) in zip(sides, channels, strict=True))
    assert counted["multiply_adds"] == 31**2 * 12 * 24 + products + 2560


def test_logits_are_read_off_the_highest_features():
    model = lab.ShallowCNN((4, 6, 8), classes=5).eval()
    images = torch.randn(3, 3, 32, 32)
    maps = model.blocks(model.stem(images))
    assert maps.shape == (3, 8, 3, 3)
    assert torch.allclose(model.features(images), maps.flatten(2).max(dim=2).values * FEATURE_SCALE)
    assert torch.allclose(model(images), model.features(images) @ model.head.weight.T)


def test_a_blocks_convolutions_start_by_passing_their_input_on():
    block = PooledBlock(4, 6)
    images = torch.randn(2, 4, 8, 8)
    assert torch.allclose(block.conv1(images)[:, :4], images)
    maps = torch.randn(2, 6, 4, 4)
    assert torch.allclose(block.conv2(maps), maps)


def test_whitening_makes_all_its_first_filters_and_training_leaves_them():
    data = lab.load_data("cifar10", source="builtin", limit=200, device="cpu")
    torch.manual_seed(0)
    model = lab.ShallowCNN((4, 4, 4))
    expected = lab.ShallowCNN((4, 4, 4))
    whiten_stem(expected, data.normalise(data.train.images))
    training = lab.Training(epochs=2, batch_size=32, optimizer="muon", lr=0.05, whitening=True)
    lab.fit(model, data, training, progress=False)
    first, second = model.stem[0].weight.split(12)
    assert torch.equal(first, -second)
    assert torch.allclose(model.stem[0].weight, expected.stem[0].weight, atol=1e-5)


def test_gradients_are_those_of_what_is_learned():
    torch.manual_seed(0)
    model = lab.ShallowCNN((4, 4, 4))
    norms = lab.gradient_norms(model, torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))
    assert norms["layer"].max() == 8
    assert norms[norms["layer"] == 1]["kind"].tolist() == ["bias"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widths": (4, 4)}, ["widths", "(4, 4)", "3 whole numbers"]),
        ({"widths": (4, 0, 4)}, ["widths", "(4, 0, 4)", "from 1"]),
        ({"classes": 0}, ["classes", "0", "from 1"]),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.ShallowCNN(**arguments)
    assert all(word in str(caught.value) for word in words)


def test_wrong_images_are_named():
    with pytest.raises(lab.SettingError, match=r"images: \(2, 1, 32, 32\)"):
        lab.ShallowCNN((2, 2, 2))(torch.zeros(2, 1, 32, 32))
