"""A shallow, wide CNN that trains within minutes, with the parts its recipe needs: whitening and ghost batch norm."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.errors import SettingError, check_counts, check_flag, check_whole
from labutils.models.counting import parameter_count
from labutils.models.resnet import CNN, WIDEST, ResNet, check_images

CONVOLUTIONS = (2, 3, 3)  # of the blocks; in the first, whose maps are largest, a third would cost most
GHOST_BATCH = 50  # images
GHOST_MOMENTUM = 0.02  # of the running statistics, which each ghost batch moves
FEATURE_SCALE = 1 / 9  # the maximum over many places is large; without this the first steps would overshoot
WHITENING_FLOOR = 1e-3  # variance below which a direction is noise, not to be amplified
WHITENING_IMAGES = 5_000  # training images whose patches the first filters are made from
PATCHED_AT_ONCE = 250  # images
VIEWS = (1, 2, 6)  # of an image that predictions can be averaged over


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that in training takes its statistics from GHOST_BATCH images at a time.

    So large batches, which a processor likes, keep the noise of small ones, which generalises (Hoffer et al. 2017,
    "Train longer, generalize better").
    """

    def __init__(self, width: int):
        super().__init__(width, momentum=GHOST_MOMENTUM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([*map(super().forward, x.split(GHOST_BATCH))])


class PooledBlock(nn.Module):
    """3x3 convolutions, each normalised, with max pooling after the first; they start by passing their input on.

    A residual block adds what comes out of the first to what the others make of it.
    """

    def __init__(self, inputs: int, width: int, convolutions: int, *, residual: bool, ghost: bool):
        super().__init__()
        self.residual = residual
        norm = GhostBatchNorm2d if ghost else nn.BatchNorm2d
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.branch = nn.Sequential()
        for number in range(1, convolutions):
            if number > 1:
                self.branch.append(nn.GELU())
            self.branch.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.branch.append(norm(width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight[: module.in_channels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        z = self.branch(y)
        return F.gelu(z + y if self.residual else z)


class ShallowCNN(CNN):
    """A CNN of ten layers, wide where images are small, made to be trained within minutes.

    Its first filters, of 2x2 pixels, are not learned: `whiten_stem` (Training(whitening=True)) makes them. Jordan 2024,
    "94% on CIFAR-10 in 3.29 seconds on a single GPU", after Page 2019, "How to train your ResNet 8: Bag of tricks". The
    blocks are those of its variant for 96 %, but for the first, which has no third convolution, and ghost batch
    normalization.

    Args:
        widths: channels of each block, each from 1; every block halves height and width.
        residual: whether the blocks of three convolutions have a skip around the last two; the plain twin has the same
            parameters.
        ghost: whether batch normalization takes its statistics from GHOST_BATCH images at a time instead of all.
        in_channels: of the images.
        classes: outputs.

    Raises:
        SettingError: an argument that is not allowed.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256),
        *,
        residual: bool = True,
        ghost: bool = True,
        in_channels: int = 3,
        classes: int = 10,
    ):
        check_counts("widths", widths, len(CONVOLUTIONS), WIDEST)
        check_flag("residual", residual)
        check_flag("ghost", ghost)
        check_whole("in_channels", in_channels, 1, WIDEST)
        check_whole("classes", classes, 1, WIDEST)
        super().__init__()
        self.widths, self.residual, self.ghost = tuple(widths), residual, ghost
        self.in_channels, self.classes = in_channels, classes
        filters = 2 * in_channels * 2 * 2  # each direction that patches can differ in, with either sign
        self.stem = nn.Sequential(nn.Conv2d(in_channels, filters, 2, bias=False), nn.GELU())
        self.stem[0].weight.requires_grad_(requires_grad=False)
        self.blocks = nn.Sequential(
            *(
                PooledBlock(inputs, width, convolutions, residual=residual and convolutions > 2, ghost=ghost)
                for inputs, width, convolutions in zip([filters, *widths], widths, CONVOLUTIONS, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], classes, bias=False)

    @property
    def stages(self) -> nn.Sequential:
        """Its blocks, each at a resolution of its own, as a ResNet's stages are."""
        return self.blocks

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last block's outputs, the highest over the image, scaled down: (N, F) for normalised images (N, C, H, W).

        Raises:
            SettingError: the images have another shape, or are not normalised floats.
        """
        check_images(images, self.in_channels)
        return self.blocks(self.stem(images)).amax(dim=(2, 3)) * FEATURE_SCALE

    def __repr__(self) -> str:
        kind = "residual" if self.residual else "plain"
        return (
            f"ShallowCNN({kind}: {' - '.join(map(str, self.widths))} -> {self.head.out_features}, "
            f"{parameter_count(self):,} parameters)"
        )


@torch.no_grad()
def whiten_stem(model: ResNet | ShallowCNN, images: torch.Tensor) -> None:
    """Start a CNN's first filters as the directions in which patches of its images differ most.

    Each direction is scaled to answer with variance 1, so that the first maps are uncorrelated, and comes twice, with
    either sign, because a ReLU lets only one of them pass (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single
    GPU", after Page 2019). Filters beyond twice the number of directions stay as they are.

    Args:
        model: changed in place.
        images: (N, C, H, W) float, normalised, on the model's device.

    Raises:
        SettingError: the model does not begin with a convolution.
    """
    if not isinstance(model, ResNet | ShallowCNN):
        raise SettingError("whitening", model, "for a ResNet or a ShallowCNN, whose first layer is a convolution")
    weight = model.stem[0].weight
    variances, directions = torch.linalg.eigh(patch_covariance(images, weight.shape[-1]))
    half = min(len(weight) // 2, len(variances))
    strongest = (directions / variances.clamp_min(WHITENING_FLOOR).sqrt()).T.flip(0)[:half]
    weight[: 2 * half] = torch.cat([strongest, -strongest]).view(2 * half, *weight.shape[1:]).to(weight)


def patch_covariance(images: torch.Tensor, size: int) -> torch.Tensor:
    """The covariance (C * size * size, C * size * size) of all square patches of images (N, C, H, W), in float64.

    Images are taken a few hundred at a time, because their patches take size * size times as much memory as they do.
    """
    count, total, products = 0, 0.0, 0.0
    for some in images.split(PATCHED_AT_ONCE):
        patches = F.unfold(some, size).transpose(1, 2).flatten(0, 1).cpu().double()
        count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
    mean = total / count
    return (products / count - mean[:, None] * mean) * (count / (count - 1))


def weighted_views(images: torch.Tensor, views: int) -> list[tuple[float, torch.Tensor]]:
    """Views of images (B, C, H, W) over which predictions can be averaged, each with its weight; the weights sum to 1.

    Args:
        images: normalised.
        views: 1, the images alone; 2, with their mirror images; 6, with both shifted by a pixel to either of two
            corners, at half the weight (Jordan 2024).
    """
    shown = [(1.0, images)]
    if views == 6:
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shown = [(0.5, images), (0.25, padded[..., :-2, :-2]), (0.25, padded[..., 2:, 2:])]
    if views == 1:
        return shown
    return [(weight / 2, side) for weight, view in shown for side in (view, view.flip(-1))]
