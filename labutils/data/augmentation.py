"""Random changes of training images that keep what they show, made to whole batches at once.

Of an epoch of the ResNet [2, 2, 2, 2] of width 16 the basic ones take a hundredth, the strong ones four to five (two
cores, AMD EPYC, n = 7). `make bench` measures it.
"""

import functools
from collections.abc import Callable

import torch

from labutils.data.device import moved

# Pixels on each side: 4 in He et al. 2016, 2 in Jordan 2024.
CROP_MARGINS = {"mild": 2, "slight": 2, "basic": 4, "strong": 4}
AUGMENTATIONS = (None, *CROP_MARGINS)
CUTOUT = 8  # pixels, a side of the square; DeVries & Taylor 2017 take 8 for CIFAR-100 and 16 for CIFAR-10
JITTERED_ALIKE = 64  # images
MID_GREY = 128  # of 0 to 255, near the mean of photographs
LARGEST_ANGLE, SCALES = 10.0, (0.9, 1.1)  # of jitter: degrees to either side, and factors


def augmented(
    images: torch.Tensor, indices: torch.Tensor, augment: str, generator: torch.Generator | None, epoch: int = 1
) -> torch.Tensor:
    """Images (N, C, H, W) uint8 gathered by their indices (B,) and changed at random.

    Args:
        images: of a split.
        indices: which of them.
        augment: basic (crop_and_flip), mild (the same by fewer pixels), slight (mild, but flipped as
            `every_other_epoch` says) or strong (basic, jitter and cutout).
        generator: a CPU generator that draws the changes.
        epoch: which pass over the images it is, from 1.

    Returns:
        (B, C, H, W) uint8.
    """
    flipped = None
    if augment == "slight":
        flipped = moved(every_other_epoch(len(images), epoch, generator), images.device)[indices]
    changed = crop_and_flip(images, indices, CROP_MARGINS[augment], generator, flipped)
    return cut_out(jitter(changed, generator), generator) if augment == "strong" else changed


def every_other_epoch(count: int, epoch: int, generator: torch.Generator | None) -> torch.Tensor:
    """Which of so many images are flipped in an epoch (count,): half of them at random, the other half in the next.

    Two epochs so show each image from both sides, where chance would show half of them twice from one (Jordan 2024).
    """
    first = torch.Generator().manual_seed((generator or torch.default_generator).initial_seed())
    return torch.randint(2, (count,), generator=first) == epoch % 2


def crop_and_flip(
    images: torch.Tensor,
    indices: torch.Tensor,
    margin: int,
    generator: torch.Generator | None,
    flipped: torch.Tensor | None,
) -> torch.Tensor:
    """Gather images (N, C, H, W) by index, each cropped at random from a reflected margin, and flip some of them.

    flipped (B,) says which; without it chance does, one in two.
    """
    height, width = images.shape[-2:]
    count, device = len(indices), images.device

    def rows(size: int) -> torch.Tensor:
        shift = torch.randint(-margin, margin + 1, (count, 1), generator=generator)
        place = (torch.arange(size) + shift).abs()  # reflected at the near edge ...
        return (size - 1) - ((size - 1) - place).abs()  # ... and at the far one

    y, x = moved(rows(height), device), moved(rows(width), device)
    if flipped is None:
        flipped = moved(torch.randint(2, (count,), generator=generator, dtype=torch.bool), device)
    x = torch.where(flipped[:, None], x.flip(1), x)
    return images[indices[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def jitter(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Brightness, contrast and saturation changed by up to a fifth; turned by up to 10 degrees, scaled by a tenth.

    JITTERED_ALIKE neighbours in the batch share a draw, because torchvision draws once for a whole tensor. Each draw
    makes the processor wait for a GPU.
    """
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own random state
        torch.default_generator.manual_seed(torch.randint(2**31, (), generator=generator).item())
        return torch.cat([jitter_alike(alike) for alike in images.split(JITTERED_ALIKE)])


def jitter_alike(images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) uint8, all jittered by the same draw."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    coloured = colour_jitter()(images)
    angle = torch.empty(1).uniform_(-LARGEST_ANGLE, LARGEST_ANGLE).item()
    scale = torch.empty(1).uniform_(*SCALES).item()
    straight = {"translate": [0, 0], "shear": [0.0, 0.0]}
    return functional.affine(
        coloured, angle, scale=scale, interpolation=InterpolationMode.BILINEAR, fill=MID_GREY, **straight
    )


@functools.cache
def colour_jitter() -> Callable[[torch.Tensor], torch.Tensor]:
    """What changes the colours in `jitter`; torchvision is imported where it is used."""
    from torchvision.transforms import v2

    return v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)


def cut_out(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Blank a square at a random place of each image (B, C, H, W); at an edge only part of it lies on the image.

    DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout".
    """
    count, _, height, width = images.shape

    def covered(size: int) -> torch.Tensor:
        start = torch.randint(1 - CUTOUT // 2, size - CUTOUT // 2 + 1, (count, 1), generator=generator)
        place = torch.arange(size) - start
        return moved((place >= 0) & (place < CUTOUT), images.device)

    blank = covered(height)[:, None, :, None] & covered(width)[:, None, None, :]
    return images.masked_fill(blank, MID_GREY)
