"""The multilayer perceptron, plain and residual."""

import math

import torch
from torch import nn

from labutils.errors import SettingError, check_choice, check_flag, check_number, check_whole
from labutils.models.counting import parameter_count

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
NORMALIZATIONS = {None: nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
# Beside any number from 0:
INITS = ("default", "he")
RESIDUAL_SCALES = ("depth", "zero")
DEEPEST, WIDEST = 10_000, 100_000


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
        init: of the hidden layers: default is PyTorch's, uniform within 1/sqrt(inputs); a number v from 0 is normal
            with variance v/inputs and biases 0; he is v = 2 (He et al. 2015). The head keeps PyTorch's.
        residual_scale: what a residual layer's branch is multiplied by before its input is added: a number from 0;
            depth, which is 1/sqrt(depth) (Hayou et al. 2021, "Stable ResNet"); or zero, one learned number a layer
            that starts at 0 (SkipInit, De & Smith 2020; ReZero, Bachlechner et al. 2021).
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
        init: float | str = "default",
        residual_scale: float | str = 1.0,
        in_features: int = 784,
        classes: int = 10,
    ):
        check_whole("depth", depth, 1, DEEPEST)
        for name, value in {"width": width, "in_features": in_features, "classes": classes}.items():
            check_whole(name, value, 1, WIDEST)
        check_flag("residual", residual)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_number("dropout", dropout, 0, 1, open_ends="high")
        check_choice("activation", activation, ACTIVATIONS)
        check_number_or("init", init, INITS)
        check_number_or("residual_scale", residual_scale, RESIDUAL_SCALES)
        super().__init__()
        self.depth, self.width, self.residual, self.normalization = depth, width, residual, normalization
        self.activation, self.init, self.dropout, self.residual_scale = activation, init, dropout, residual_scale
        self.in_features, self.classes = in_features, classes
        kind = {"normalization": normalization, "activation": activation, "dropout": dropout}
        self.layers = nn.Sequential(HiddenLayer(in_features, width, **kind, residual_scale=None))
        for _ in range(depth - 1):
            scale = initial_scale(residual_scale, depth) if residual else None  # where it is learned, each has its own
            self.layers.append(HiddenLayer(width, width, **kind, residual_scale=scale))
        self.head = nn.Linear(width, classes)
        if init != "default":
            variance = 2.0 if init == "he" else init
            for layer in self.layers:
                nn.init.normal_(layer.linear.weight, std=math.sqrt(variance) / math.sqrt(layer.linear.in_features))
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
        return (
            f"MLP({kind}{norm}: {self.in_features} -> {self.depth} x {self.width} -> {self.classes}, "
            f"{parameter_count(self):,} parameters)"
        )


def check_number_or(name: str, value: float | str, words: tuple[str, str]) -> None:
    """Raise SettingError unless a setting is a number from 0 or one of two words."""
    if value in words:
        return
    try:
        check_number(name, value, 0)
    except SettingError as error:
        raise SettingError(name, value, f"{error.allowed}, {words[0]!r} or {words[1]!r}") from None


def initial_scale(residual_scale: float | str, depth: int) -> float | nn.Parameter:
    """What the branches of a net of this depth are multiplied by at first; a parameter where that is learned."""
    if residual_scale == "zero":
        return nn.Parameter(torch.zeros(()))
    return 1 / math.sqrt(depth) if residual_scale == "depth" else residual_scale
