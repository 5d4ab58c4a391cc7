import dataclasses

import numpy as np
import pytest
import torch

import labutils as lab
from labutils.data import Split
from labutils.data.augmentation import CUTOUT, MID_GREY, augmented, cut_out, every_other_epoch, jitter
from labutils.training import Callback


def noise(count, size=12):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("augment", "margin"), [("mild", 2), ("slight", 2), ("basic", 4)])
def test_crops_are_shifted_flipped_reflections_of_their_image(augment, margin):
    images, indices = noise(6), torch.arange(6).repeat(40)
    cropped = augmented(images, indices, augment, seeded())
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="reflect")
    seen = set()
    for number, crop in zip(indices.tolist(), cropped.numpy(), strict=True):
        found = [
            (y, x, flipped)
            for y in range(2 * margin + 1)
            for x in range(2 * margin + 1)
            for flipped in (False, True)
            if np.array_equal(padded[number, :, y : y + 12, x : x + 12][:, :, :: -1 if flipped else 1], crop)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len({y for y, _, _ in seen}) == 2 * margin + 1
    assert len({x for _, x, _ in seen}) == 2 * margin + 1
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_every_other_epoch_shows_the_other_side():
    first, second, third = (every_other_epoch(1000, epoch, seeded()) for epoch in (1, 2, 3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert 400 < first.sum() < 600
    assert not torch.equal(first, every_other_epoch(1000, 1, seeded(2)))
    drawn_from = seeded()
    torch.randint(9, (5,), generator=drawn_from)
    assert torch.equal(first, every_other_epoch(1000, 1, drawn_from))  # however far the generator has got


def test_two_slight_epochs_show_each_image_from_both_sides():
    halves = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    halves[..., :14] = 255
    digits = lab.load_data("mnist", source="builtin", limit=50, validation=0, device="cpu")
    data = dataclasses.replace(digits, train=Split(halves, torch.zeros(40, dtype=torch.int64)))
    sides = []

    class Watch(Callback):
        def before_step(self, state):
            sides.append((state.images[..., 0] > state.images[..., -1])[:, 0, 14][state.indices.argsort()])

    training = lab.Training(epochs=4, batch_size=40, augment="slight")
    lab.fit(lab.MLP(1, 4), data, training, callbacks=[Watch()], progress=False)
    assert torch.equal(sides[0], ~sides[1])
    assert torch.equal(sides[0], sides[2])
    assert torch.equal(sides[1], sides[3])
    assert 0 < sides[0].sum() < 40


def test_cutout_blanks_one_square_an_image_and_nothing_else():
    images = torch.full((300, 3, 32, 32), 7, dtype=torch.uint8)
    cut = cut_out(images, seeded())
    assert set(cut.unique().tolist()) == {7, MID_GREY}
    blank = (cut == MID_GREY).all(dim=1)
    assert torch.equal(blank[:, None].expand_as(cut), cut == MID_GREY)
    rows, columns = blank.any(dim=2), blank.any(dim=1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])
    assert rows.sum(1).max() == columns.sum(1).max() == CUTOUT
    assert rows.sum(1).min() >= CUTOUT // 2
    assert (rows.sum(0) > 0).all()
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in blank}) > 100


def test_jitter_keeps_what_an_image_shows_but_changes_its_colours():
    ramp = torch.arange(32).mul(8).to(torch.uint8).expand(128, 3, 32, 32).contiguous()
    changed = jitter(ramp, seeded())
    assert changed.dtype == torch.uint8
    assert changed.shape == ramp.shape
    assert not torch.equal(changed[0], changed[-1])  # several draws a batch
    for image in changed[:, :, 8:24, 4:28]:
        assert np.corrcoef(image[0].flatten(), ramp[0, 0, 8:24, 4:28].flatten())[0, 1] > 0.9


@pytest.mark.parametrize("augment", ["basic", "strong"])
def test_the_generator_alone_draws_the_changes(augment):
    images, indices = noise(40, 32), torch.arange(40)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = augmented(images, indices, augment, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(first, augmented(images, indices, augment, seeded()))
    assert not torch.equal(first, augmented(images, indices, augment, seeded(2)))
    assert torch.equal(images, noise(40, 32))
