"""The networks of the course. Each computes features(images) and reads the classes off them with a linear head."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.errors import SettingError, check_choice, check_counts, check_number, check_whole

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
NORMALIZATIONS = {None: nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
INITS = ("default", "he")
RESIDUAL_SCALES = ("depth", "zero")  # beside any number from 0
STAGES = 4  # of a ResNet
CONVOLUTIONS = (2, 3, 3)  # of a ShallowCNN's blocks; in the first, whose maps are largest, a third would cost most
GHOST_BATCH = 50  # images
GHOST_MOMENTUM = 0.02  # of the running statistics, which each ghost batch moves
FEATURE_SCALE = 1 / 9  # the highest of many places is large; without this the first steps would overshoot
WHITENING_FLOOR = 1e-3  # variance below which a direction is noise, not to be blown up


class HiddenLayer(nn.Module):
    """Linear, normalization, activation, dropout; a residual one adds its input to scale times that.

    The scale is a number, or a parameter that is learned.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        normalization: str | None,
        activation: str,
        dropout: float,
        residual_scale: float | nn.Parameter | None,
    ):
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.norm = NORMALIZATIONS[normalization](width)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.residual_scale = residual_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dropout(self.activation(self.norm(self.linear(x))))
        return y if self.residual_scale is None else x + self.residual_scale * y


class MLP(nn.Module):
    """A multilayer perceptron: `depth` hidden layers of `width` units, and a linear head.

    The plain and the residual twin have the same parameters: a skip adds nothing to learn, unless its scale is learned.

    Args:
        depth: hidden layers, from 1.
        width: units in each hidden layer, from 1.
        residual: whether each hidden layer after the first adds its input to its output (He et al. 2016,
            "Deep Residual Learning for Image Recognition").
        normalization: None, batch (Ioffe & Szegedy 2015) or layer (Ba et al. 2016), before the activation.
        dropout: share of a hidden layer's outputs dropped in training, from 0 to below 1.
        activation: relu, tanh, gelu or sigmoid.
        init: default is PyTorch's, uniform within 1/sqrt(inputs); he is He et al. 2015's, normal with variance
            2/inputs and biases 0. The head keeps PyTorch's.
        residual_scale: what a residual layer's branch is multiplied by before its input is added: a number from 0;
            depth, which is 1/sqrt(depth) (Hayou et al. 2021, "Stable ResNet"); or zero, one learned number a layer
            that starts at 0 (SkipInit, De & Smith 2020; ReZero, Bachlechner et al. 2020).
        in_features: numbers in one image.
        classes: outputs.

    Raises:
        SettingError: an argument that is not allowed.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        residual: bool = False,
        normalization: str | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
        init: str = "default",
        residual_scale: float | str = 1.0,
        in_features: int = 784,
        classes: int = 10,
    ):
        for name, value in {"depth": depth, "width": width, "in_features": in_features, "classes": classes}.items():
            check_whole(name, value, 1)
        check_choice("residual", residual, (True, False))
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_number("dropout", dropout, 0, 1, open_ends="high")
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("init", init, INITS)
        check_residual_scale(residual_scale)
        super().__init__()
        self.depth, self.width, self.residual, self.normalization = depth, width, residual, normalization
        self.activation, self.init, self.dropout, self.residual_scale = activation, init, dropout, residual_scale
        self.layers = nn.Sequential(
            *(
                HiddenLayer(
                    width if number else in_features,
                    width,
                    normalization=normalization,
                    activation=activation,
                    dropout=dropout,
                    residual_scale=initial_scale(residual_scale, depth) if residual and number else None,
                )
                for number in range(depth)
            )
        )
        self.head = nn.Linear(width, classes)
        if init == "he":
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.linear.weight)
                nn.init.zeros_(layer.linear.bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last hidden layer's outputs (N, width) for normalised images (N, C, H, W) or (N, in_features)."""
        return self.layers(images.flatten(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        return self.head(self.features(images))

    def __repr__(self) -> str:
        scale = "" if self.residual_scale == 1 else f", scale {self.residual_scale}"
        kind = f"residual{scale}" if self.residual else "plain"
        norm = f", {self.normalization} normalization" if self.normalization else ""
        inputs, classes = self.layers[0].linear.in_features, self.head.out_features
        return (
            f"MLP({kind}{norm}: {inputs} -> {self.depth} x {self.width} -> {classes}, "
            f"{parameter_count(self):,} parameters)"
        )


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
    """What this module's CNNs share: a head that reads their features, and frozen layers that stay as they are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        return self.head(self.features(images))

    def train(self, mode: bool = True) -> "CNN":
        """Set the mode of all layers, but batch normalizations that do not learn: they keep to their statistics."""
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
        check_counts("blocks", blocks, STAGES)
        for name, value in {"width": width, "in_channels": in_channels, "classes": classes}.items():
            check_whole(name, value, 1)
        check_choice("residual", residual, (True, False))
        check_choice("zero_init_residual", zero_init_residual, (True, False))
        super().__init__()
        self.blocks, self.width, self.residual = tuple(blocks), width, residual
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [width * 2**number for number in range(len(blocks))]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        BasicBlock(
                            inputs if number == 0 else outputs,
                            outputs,
                            stride=2 if number == 0 and outputs > width else 1,
                            residual=residual,
                        )
                        for number in range(count)
                    )
                )
                for count, inputs, outputs in zip(blocks, [width, *widths], widths, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, BasicBlock) and residual and zero_init_residual:
                nn.init.zeros_(module.norm2.weight)

    def feature_maps(self, images: torch.Tensor) -> torch.Tensor:
        """The last stage's outputs (N, F, H', W') for normalised images (N, C, H, W), before pooling.

        Raises:
            SettingError: the images have another shape, or are not normalised floats.
        """
        check_images(images, self.stem[0].in_channels)
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

    def __init__(self, inputs: int, width: int, convolutions: int, *, residual: bool):
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm1 = GhostBatchNorm2d(width)
        self.branch = nn.Sequential()
        for number in range(1, convolutions):
            if number > 1:
                self.branch.append(nn.GELU())
            self.branch.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.branch.append(GhostBatchNorm2d(width))
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
    "94% on CIFAR-10 in 3.29 seconds on a single GPU", after Page 2018, "How to train your ResNet"; the blocks are those
    of its variant for 96 %, but for the first, which has no third convolution, and ghost batch normalization.

    Args:
        widths: channels of each block, each from 1; every block halves height and width.
        residual: whether the blocks of three convolutions have a skip around the last two; the plain twin has the same
            parameters.
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
        in_channels: int = 3,
        classes: int = 10,
    ):
        check_counts("widths", widths, len(CONVOLUTIONS))
        check_choice("residual", residual, (True, False))
        check_whole("in_channels", in_channels, 1)
        check_whole("classes", classes, 1)
        super().__init__()
        self.widths, self.residual = tuple(widths), residual
        filters = 2 * in_channels * 2 * 2  # each direction that patches can differ in, with either sign
        self.stem = nn.Sequential(nn.Conv2d(in_channels, filters, 2, bias=False), nn.GELU())
        self.stem[0].weight.requires_grad_(requires_grad=False)
        self.blocks = nn.Sequential(
            *(
                PooledBlock(inputs, width, convolutions, residual=residual and convolutions > 2)
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
        check_images(images, self.stem[0].in_channels)
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
    GPU", after Page 2018). Filters beyond twice the number of directions stay as they are.

    Args:
        model: changed in place.
        images: (N, C, H, W) float, normalised, on the model's device.

    Raises:
        SettingError: the model does not begin with a convolution.
    """
    if not isinstance(model, ResNet | ShallowCNN):
        raise SettingError("whitening", model, "for a ResNet or a ShallowCNN, whose first layer is a convolution")
    weight = model.stem[0].weight
    patches = F.unfold(images, weight.shape[-1]).transpose(1, 2).flatten(0, 1)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T.double()))
    half = min(len(weight) // 2, len(variances))
    strongest = (directions / variances.clamp_min(WHITENING_FLOOR).sqrt()).T.flip(0)[:half]
    weight[: 2 * half] = torch.cat([strongest, -strongest]).view(2 * half, *weight.shape[1:]).to(weight.dtype)


def check_images(images: torch.Tensor, channels: int) -> None:
    """Raise SettingError unless a CNN of so many input channels can see these images."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise SettingError("images", tuple(images.shape), f"the shape (N, {channels}, H, W)")
    if not images.is_floating_point():
        raise SettingError("images", images.dtype, "normalised floating-point numbers, as data.normalise makes them")


def check_residual_scale(residual_scale: float | str) -> None:
    """Raise SettingError unless a residual layer's branch can be scaled so."""
    if residual_scale in RESIDUAL_SCALES:
        return
    try:
        check_number("residual_scale", residual_scale, 0)
    except SettingError as error:
        raise SettingError("residual_scale", residual_scale, f"{error.allowed}, 'depth' or 'zero'") from None


def initial_scale(residual_scale: float | str, depth: int) -> float | nn.Parameter:
    """What the branches of a net of this depth are multiplied by at first; a parameter where that is learned."""
    if residual_scale == "zero":
        return nn.Parameter(torch.zeros(()))
    return 1 / math.sqrt(depth) if residual_scale == "depth" else residual_scale


def parameter_count(model: nn.Module) -> int:
    """Numbers a model can learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def describe(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> dict[str, int]:
    """What a model costs.

    Args:
        model: an MLP, a ResNet or a ShallowCNN.
        image_shape: (C, H, W) of the images it is to see; without it a CNN sees 32 x 32 pixels.

    Returns:
        parameters; multiply_adds, of one image's way through linear layers and convolutions (half the floating-point
        operations that PyTorch counts); layers, the linear and convolutional ones on the longest way.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if image_shape is None:
        image_shape = (
            (model.layers[0].linear.in_features,) if isinstance(model, MLP) else (model.stem[0].in_channels, 32, 32)
        )
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *image_shape, device=device))
    finally:
        model.train(was_training)
    layers = sum(
        isinstance(module, nn.Linear | nn.Conv2d) for name, module in model.named_modules() if ".skip." not in name
    )
    return {"parameters": parameter_count(model), "multiply_adds": counter.get_total_flops() // 2, "layers": layers}


MODELS = {"mlp": MLP, "resnet": ResNet, "shallow": ShallowCNN}


def build_model(kind: str, *, image_shape: tuple[int, int, int], classes: int, **settings) -> nn.Module:
    """A model of a kind that fits a data set.

    Args:
        kind: a key of MODELS.
        image_shape: (C, H, W) of one image.
        classes: outputs.
        settings: the rest of the kind's arguments.

    Raises:
        SettingError: an unknown kind, or a setting that is not allowed.
    """
    check_choice("kind", kind, MODELS)
    inputs = {"in_features": math.prod(image_shape)} if kind == "mlp" else {"in_channels": image_shape[0]}
    return MODELS[kind](**inputs, classes=classes, **settings)
