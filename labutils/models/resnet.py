"""Plain and residual convolutional networks for small images."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.errors import SettingError, check_counts, check_flag, check_whole
from labutils.models.counting import parameter_count

STAGES = 4
MOST_BLOCKS, WIDEST = 1_000, 10_000  # blocks in a stage, channels in the first one


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each normalised; a residual block adds its input, projected where the shape changes.

    He et al. 2016, figure 2 and option B.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, residual: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.skip = None
        if residual:
            self.skip = nn.Sequential()
            if stride != 1 or inputs != width:
                self.skip.append(nn.Conv2d(inputs, width, 1, stride, bias=False))
                self.skip.append(nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y if self.skip is None else y + self.skip(x))


class CNN(nn.Module):
    """What the course's CNNs share: a head that reads their features, and frozen layers that stay as they are.

    A subclass has `stem`, `stages`, `head` and `features(images)`.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        return self.head(self.features(images))

    def train(self, mode: bool = True) -> "CNN":
        """Set the mode of all layers; frozen batch normalizations stay in eval mode and so keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.bias.requires_grad:
                module.eval()
        return self


class ResNet(CNN):
    """A convolutional network for small images: a 3x3 stem, stages of basic blocks, global average pooling, a head.

    Stage s has width * 2**s channels, and halves height and width from the second stage on. With width 64 the residual
    net is the ResNet-18 that CIFAR labs use (github.com/kuangliu/pytorch-cifar), not He et al. 2016's thinner ones.
    The plain twin is the same without skips and projections.

    Args:
        blocks: basic blocks in each stage, each from 1.
        width: channels of the stem and of the first stage, from 1.
        residual: whether each block adds its input to its output (He et al. 2016, "Deep Residual Learning for Image
            Recognition").
        zero_init_residual: whether each residual block starts as its skip alone, the weight of its last normalization
            being 0 (Goyal et al. 2017); a plain net, which would start as nothing, is not changed by it.
        in_channels: of the images.
        classes: outputs.

    Raises:
        SettingError: an argument that is not allowed.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        *,
        width: int = 64,
        residual: bool = True,
        zero_init_residual: bool = True,
        in_channels: int = 3,
        classes: int = 10,
    ):
        check_counts("blocks", blocks, STAGES, MOST_BLOCKS)
        for name, value in {"width": width, "in_channels": in_channels, "classes": classes}.items():
            check_whole(name, value, 1, WIDEST)
        check_flag("residual", residual)
        check_flag("zero_init_residual", zero_init_residual)
        super().__init__()
        self.blocks, self.width, self.residual = tuple(blocks), width, residual
        self.zero_init_residual, self.in_channels, self.classes = zero_init_residual, in_channels, classes
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages, inputs = nn.Sequential(), width
        for number, count in enumerate(blocks):
            stage, outputs = nn.Sequential(), width * 2**number
            for stride in [2 if number else 1] + [1] * (count - 1):
                stage.append(BasicBlock(inputs, outputs, stride, residual=residual))
                inputs = outputs
            self.stages.append(stage)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, BasicBlock) and residual and zero_init_residual:
                nn.init.zeros_(module.norm2.weight)

    def feature_maps(self, images: torch.Tensor) -> torch.Tensor:
        """The last stage's outputs (N, F, H', W') for normalised images (N, C, H, W), before pooling.

        Raises:
            SettingError: the images have another shape, or are not normalised floats.
        """
        check_images(images, self.in_channels)
        return self.stages(self.stem(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last stage's outputs, averaged over the image: (N, F) for normalised images (N, C, H, W)."""
        return self.feature_maps(images).mean(dim=(2, 3))

    def __repr__(self) -> str:
        kind = "residual" if self.residual else "plain"
        return (
            f"ResNet({kind}: blocks {list(self.blocks)}, width {self.width} -> {self.head.out_features}, "
            f"{parameter_count(self):,} parameters)"
        )


def check_images(images: torch.Tensor, channels: int) -> None:
    """Raise SettingError unless a CNN of so many input channels can see these images."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise SettingError("images", tuple(images.shape), f"the shape (N, {channels}, H, W)")
    if not images.is_floating_point():
        raise SettingError("images", images.dtype, "normalised floating-point numbers, as data.normalise makes them")
