"""ShallowCNN, the net of the ladder's last rung."""

import pytest
import torch

import labutils as lab
from labutils.models.shallow import (
    FEATURE_SCALE,
    GHOST_BATCH,
    GHOST_MOMENTUM,
    PATCHED_AT_ONCE,
    GhostBatchNorm2d,
    PooledBlock,
    patch_covariance,
    whiten_stem,
)


@pytest.mark.parametrize("residual", [True, False])
def test_its_layers_are_ten_with_or_without_skips(residual):
    counted = lab.describe(lab.ShallowCNN(residual=residual))
    channels = ((24, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 256), (256, 256))
    sides = (31, 15, 15, 7, 7, 7, 3, 3)
    convolutions = 9 * sum(first * second for first, second in channels)
    normalizations = 2 * sum(width for _, width in channels)
    assert counted["parameters"] == convolutions + normalizations + 2560  # the first filters are not learned
    assert counted["layers"] == 10
    products = sum(9 * side**2 * first * second for side, (first, second) in zip(sides, channels, strict=True))
    assert counted["multiply_adds"] == 31**2 * 12 * 24 + products + 2560


def test_a_skip_adds_what_the_first_convolution_gave():
    torch.manual_seed(0)
    plain = PooledBlock(4, 6, 3, residual=False, ghost=True).eval()
    residual = PooledBlock(4, 6, 3, residual=True, ghost=True).eval()
    residual.load_state_dict(plain.state_dict())
    images = torch.randn(2, 4, 8, 8)
    first = torch.nn.functional.gelu(plain.norm1(torch.nn.functional.max_pool2d(plain.conv1(images), 2)))
    others = plain.branch(first)
    assert torch.allclose(plain(images), torch.nn.functional.gelu(others), atol=1e-6)
    assert torch.allclose(residual(images), torch.nn.functional.gelu(others + first), atol=1e-6)


def test_skips_are_where_there_are_three_convolutions():
    assert [block.residual for block in lab.ShallowCNN((2, 2, 2)).blocks] == [False, True, True]
    assert [block.residual for block in lab.ShallowCNN((2, 2, 2), residual=False).blocks] == [False] * 3


def test_without_ghost_batches_all_images_are_normalised_together():
    torch.manual_seed(0)
    images = torch.randn(GHOST_BATCH + 7, 2, 6, 6) + torch.arange(GHOST_BATCH + 7)[:, None, None, None] / 10
    ghost, plain = (PooledBlock(2, 3, 2, residual=False, ghost=ghost) for ghost in (True, False))
    plain.load_state_dict(ghost.state_dict())
    norm = torch.nn.BatchNorm2d(3)
    pooled = torch.nn.functional.max_pool2d(plain.conv1(images), 2)
    assert torch.allclose(plain.norm1(pooled), norm(pooled), atol=1e-5)
    assert not torch.allclose(ghost.norm1(pooled), norm(pooled), atol=1e-2)
    assert all(isinstance(one, GhostBatchNorm2d) == kept for kept, block in ((True, ghost), (False, plain))
               for one in block.modules() if isinstance(one, torch.nn.BatchNorm2d))  # fmt: skip


def test_ghost_batches_are_normalised_each_on_its_own():
    torch.manual_seed(0)
    norm = GhostBatchNorm2d(3)
    images = torch.randn(2 * GHOST_BATCH + 7, 3, 4, 4) + torch.arange(2 * GHOST_BATCH + 7)[:, None, None, None] / 10
    running = torch.zeros(3)
    for found, given in zip(norm(images).split(GHOST_BATCH), images.split(GHOST_BATCH), strict=True):
        mean, variance = given.mean((0, 2, 3), keepdim=True), given.var((0, 2, 3), correction=0, keepdim=True)
        assert torch.allclose(found, (given - mean) / (variance + norm.eps).sqrt(), atol=1e-5)
        running += GHOST_MOMENTUM * (mean.flatten() - running)
    assert torch.allclose(norm.running_mean, running, atol=1e-6)
    norm.eval()
    assert torch.equal(norm(images)[:5], norm(images[:5]))
    assert torch.equal(norm(images), torch.nn.BatchNorm2d.forward(norm, images))


def test_logits_are_read_off_the_highest_features():
    model = lab.ShallowCNN((4, 6, 8), classes=5).eval()
    images = torch.randn(3, 3, 32, 32)
    maps = model.blocks(model.stem(images))
    assert maps.shape == (3, 8, 3, 3)
    assert torch.allclose(model.features(images), maps.flatten(2).max(dim=2).values * FEATURE_SCALE)
    assert torch.allclose(model(images), model.features(images) @ model.head.weight.T)


def test_a_blocks_convolutions_start_by_passing_their_input_on():
    block = PooledBlock(4, 6, 3, residual=True, ghost=True)
    images = torch.randn(2, 4, 8, 8)
    assert torch.allclose(block.conv1(images)[:, :4], images)
    maps = torch.randn(2, 6, 4, 4)
    for number in (0, 3):
        assert torch.allclose(block.branch[number](maps), maps)


def test_whitening_makes_all_its_first_filters_and_training_leaves_them():
    data = lab.load_data("mnist", source="builtin", limit=100, device="cpu")
    torch.manual_seed(0)
    model = lab.ShallowCNN((4, 4, 4), in_channels=1)
    expected = lab.ShallowCNN((4, 4, 4), in_channels=1)
    whiten_stem(expected, data.normalise(data.train.images))
    training = lab.Training(epochs=2, batch_size=32, optimizer="muon", lr=0.05, whitening=True)
    lab.fit(model, data, training, progress=False)
    first, second = model.stem[0].weight.split(4)
    assert torch.equal(first, -second)
    assert torch.allclose(model.stem[0].weight, expected.stem[0].weight, atol=1e-5)


def test_patches_vary_together_as_their_definition_says_with_few_of_them_in_memory(monkeypatch):
    images = torch.randn(2 * PATCHED_AT_ONCE + 3, 2, 5, 6, generator=torch.Generator().manual_seed(0)) + 3
    patches = [images[:, :, y : y + 2, x : x + 2].flatten(1) for y in range(4) for x in range(5)]
    expected = torch.cov(torch.cat(patches).double().T)
    unfold, taken = torch.nn.functional.unfold, []

    def watched(some, size):
        taken.append(len(some))
        return unfold(some, size)

    monkeypatch.setattr(torch.nn.functional, "unfold", watched)
    assert torch.allclose(patch_covariance(images, 2), expected, rtol=1e-6)
    assert max(taken) <= PATCHED_AT_ONCE
    assert sum(taken) == len(images)


def test_gradients_are_those_of_what_is_learned():
    torch.manual_seed(0)
    model = lab.ShallowCNN((4, 4, 4))
    norms = lab.gradient_norms(model, torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))
    assert norms["layer"].unique().tolist() == list(range(2, 11))  # the first filters are not
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [f"{row.name}.{row.kind}" for row in norms.itertuples()] == learned


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widths": (4, 4)}, ["widths", "(4, 4)", "3 whole numbers"]),
        ({"widths": (4, 0, 4)}, ["widths", "(4, 0, 4)", "from 1"]),
        ({"classes": 0}, ["classes", "0", "from 1"]),
        ({"residual": 1}, ["residual", "1", "True, False"]),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.ShallowCNN(**arguments)
    assert all(word in str(caught.value) for word in words)


def test_wrong_images_are_named():
    with pytest.raises(lab.SettingError, match=r"images: \(2, 1, 32, 32\)"):
        lab.ShallowCNN((2, 2, 2))(torch.zeros(2, 1, 32, 32))
