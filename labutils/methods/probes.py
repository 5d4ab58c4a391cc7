"""Instruments that look into a network without changing it: gradients, theory, lesions, loss surfaces, maps."""

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.data.loading import ImageData, Split
from labutils.errors import SettingError, check_finite, check_number, check_whole
from labutils.models.mlp import MLP, initial_scale
from labutils.models.resnet import ResNet
from labutils.training.evaluation import evaluate
from labutils.training.numerics import autocast, kept_random_state

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def trial(model: nn.Module) -> Iterator[nn.Module]:
    """A copy of a model in training mode; afterwards the random state is as before."""
    with kept_random_state(next(model.parameters()).device), torch.enable_grad():
        yield copy.deepcopy(model).train()


def gradient_norms(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> "pd.DataFrame":
    """Norms of the loss's gradient with respect to weights and biases, layer by layer, on one batch, in training mode.

    The model, its buffers, its gradients and the random state stay as they were.

    Args:
        model: gives logits (B, classes).
        images: (B, C, H, W) float, normalised, on the model's device.
        labels: (B,) int64.

    Returns:
        A row a weight or bias that is learned: layer (the linear or convolutional layer it belongs to, counted from
        1 at the input; a normalization counts with the layer it follows, the projection of a skip with the layer before
        it, so that twins are numbered alike), name (the module's), kind (weight or bias), norm (Euclidean, of the
        gradient of the mean cross-entropy).
    """
    import pandas as pd

    with trial(model) as net:
        learned = {path: parameter for path, parameter in net.named_parameters() if parameter.requires_grad}
        loss = F.cross_entropy(net(images), labels)
        gradients = dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))

    rows, layer, previous = [], 0, None
    for path, parameter in model.named_parameters():
        name, _, kind = path.rpartition(".")
        if kind not in ("weight", "bias"):
            continue
        if name != previous and parameter.ndim >= 2 and ".skip." not in name:
            layer += 1
        previous = name
        if path in gradients:
            norm = double_norm(gradients[path])
            rows.append({"layer": layer, "name": name, "kind": kind, "norm": norm})
    return pd.DataFrame(rows)


def double_norm(gradient: torch.Tensor) -> float:
    """The Euclidean norm in double precision: the squares of vanishing gradients are below what float32 can hold."""
    return gradient.cpu().double().norm().item()


def activation_gradients(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> "pd.DataFrame":
    """Norms of the loss's gradient with respect to each hidden layer's outputs, on one batch, in training mode.

    Nothing of the model is changed, as in `gradient_norms`.

    Args:
        model: has its hidden layers in `model.layers`, in order from the input.
        images, labels: as in `gradient_norms`.

    Returns:
        A row a hidden layer: layer (counted from 1 at the input), norm (Euclidean, over the whole batch).
    """
    import pandas as pd

    outputs: list[torch.Tensor] = []
    with trial(model) as net:
        for layer in net.layers:
            layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
        gradients = torch.autograd.grad(F.cross_entropy(net(images), labels), outputs)
    norms = [double_norm(gradient) for gradient in gradients]
    return pd.DataFrame({"layer": range(1, len(norms) + 1), "norm": norms})


@dataclass(frozen=True)
class Rate:
    """By what factor a gradient grows with each layer it is sent back through.

    Attributes:
        mean: the geometric mean of the layers' factors; below 1 gradients vanish, above 1 they explode.
        sd: the standard deviation of the layers' factors.
        layers: how many factors there are.
    """

    mean: float
    sd: float
    layers: int

    def __repr__(self) -> str:
        return f"{self.mean:.4f} ± {self.sd:.4f} a layer (over {self.layers} layers)"


def rate_per_layer(norms: "pd.DataFrame") -> Rate:
    """The rate at which gradients grow or shrink on their way back.

    Args:
        norms: as `activation_gradients` gives them, of two layers or more.

    Raises:
        SettingError: fewer than two layers, or a norm that is 0 or not finite, so that no rate can be given.
    """
    values = torch.tensor(norms.sort_values("layer")["norm"].to_numpy(), dtype=torch.float64)
    if len(values) < 2 or not torch.isfinite(values).all() or (values <= 0).any():
        raise SettingError("norms", values.tolist(), "finite norms above 0 of two layers or more")
    factors = values[:-1] / values[1:]
    sd = factors.std().item() if len(factors) > 1 else 0.0
    return Rate(factors.log().mean().exp().item(), sd, len(factors))


def mean_field_rate(model: MLP) -> float:
    """The rate per layer that mean-field theory predicts for the gradient of an untrained, wide MLP.

    A layer's gradient is sent back through the weights' transpose and through those ReLUs that are on, half of them.
    With independent weights of variance v / n and n inputs its norm changes by the factor sqrt(v / 2):

    - plain, default (v = 1/3): sqrt(1/6) = 0.408;
    - plain, he (v = 2): 1, which is what He et al. 2015 ("Delving deep into rectifiers") chose it for;
    - plain, tanh: sqrt(v E[tanh'(z)^2]), where z is normal with mean 0 and the variance q that the layers leave as it
      is, q = v E[tanh(z)^2] (Schoenholz et al. 2017, "Deep information propagation"). The default's biases are small
      and neglected;
    - plain with batch normalization, any initialisation: sqrt(pi / (pi - 1)) = 1.211, for large batches (Yang et al.
      2019, "A mean field theory of batch normalization");
    - residual, x + s relu(Wx): sqrt(1 + s^2 r^2), with r the plain net's rate, if the branch's gradient were
      independent of the skip's (the argument of Yang & Schoenholz 2017, "Mean field residual networks"). It neglects
      what positive activations have in common, and measurements lie above it: an exercise of notebook 02. A learned
      scale starts at s = 0 and so at exactly 1.

    Raises:
        NotImplementedError: no rate is known here for this kind of net.
    """
    plain = not model.residual and model.normalization is None
    normalized = not model.residual and model.normalization == "batch"
    known = {"relu": normalized or model.normalization is None, "tanh": plain}.get(model.activation, False)
    if not known or model.dropout:
        raise NotImplementedError(
            f"no rate is known here for a {'residual' if model.residual else 'plain'} net with "
            f"normalization={model.normalization!r}, activation={model.activation!r} and dropout={model.dropout}"
        )
    if normalized:
        return math.sqrt(math.pi / (math.pi - 1))
    variance = {"default": 1 / 3, "he": 2.0}.get(model.init, model.init)
    if model.activation == "tanh":
        return tanh_rate(variance)
    if plain:
        return math.sqrt(variance / 2)
    scale = 0.0 if model.residual_scale == "zero" else initial_scale(model.residual_scale, model.depth)
    return math.sqrt(1 + scale**2 * variance / 2)


def tanh_rate(variance: float) -> float:
    """`mean_field_rate` of a plain tanh net whose weights have the variance `variance` / (number of inputs)."""
    from scipy.optimize import brentq

    points, weights = np.polynomial.hermite_e.hermegauss(101)
    weights /= weights.sum()

    def added(square: float) -> float:
        return variance * (weights @ np.tanh(math.sqrt(square) * points) ** 2) - square

    # Up to 1 the activations shrink to nothing, where tanh is linear; above 1 they settle at a mean square above 0.
    square = brentq(added, 1e-12, variance) if variance > 1 + 1e-9 else 0.0
    return math.sqrt(variance * (weights @ (1 - np.tanh(math.sqrt(square) * points) ** 2) ** 2))


def lesion_study(model: MLP, split: Split | str, data: ImageData) -> "pd.DataFrame":
    """What becomes of a trained net when one of its hidden layers is left out.

    After Veit et al. 2016, "Residual networks behave like ensembles of relatively shallow networks". A layer that is
    left out passes its input on: of a residual net it is the branch that goes. The first layer, whose input is the
    image, stays.

    Args:
        model: a trained net of two hidden layers or more; left as it was.
        split: what to measure on, such as "validation".
        data: the data set.

    Returns:
        A row a net: dropped (the layer left out, counted from 1 at the input; 0 for the whole net), loss, top1, top5.

    Raises:
        SettingError: the net has no layer that can be left out.
    """
    import pandas as pd

    if len(model.layers) < 2:
        raise SettingError("model", model, "a net of two hidden layers or more")
    rows = [{"dropped": 0} | evaluate(model, split, data)]
    for number in range(2, len(model.layers) + 1):
        lesioned = copy.deepcopy(model)
        lesioned.layers[number - 1] = nn.Identity()
        rows.append({"dropped": number} | evaluate(lesioned, split, data))
    return pd.DataFrame(rows)


def gradient_correlation(
    model: nn.Module, start: torch.Tensor, end: torch.Tensor, *, points: int = 64
) -> "pd.DataFrame":
    """How alike the gradients at neighbouring inputs are (Balduzzi et al. 2017, "The shattered gradients problem").

    The inputs lie evenly spaced on the straight line from one image to another. For each, the gradient of the sum of
    its logits with respect to the input is taken. Where neighbouring gradients are unrelated, as white noise is, the
    next step of training cannot rely on the last one. Training mode; nothing of the model is changed, as in
    `gradient_norms`.

    Args:
        model: gives logits (B, classes).
        start, end: images (C, H, W) float, normalised, on the model's device.
        points: inputs on the line, from 4.

    Returns:
        A row a lag, from 0 to a quarter of the points: lag (in points), distance (Euclidean, of the inputs),
        correlation (the mean over all pairs of inputs that far apart, from -1 to 1).
    """
    import pandas as pd

    check_whole("points", points, 4)
    along = torch.linspace(0, 1, points, device=start.device, dtype=start.dtype).view(-1, *[1] * start.ndim)
    inputs = torch.lerp(start[None], end[None], along).requires_grad_()
    with trial(model) as net:
        (gradients,) = torch.autograd.grad(net(inputs).sum(), inputs)
    gradients = gradients.flatten(1).cpu().double()
    directions = F.normalize(gradients - gradients.mean(1, keepdim=True), dim=1, eps=0)
    alike = directions @ directions.T
    step = (end - start).norm().item() / (points - 1)
    rows = [
        {"lag": lag, "distance": lag * step, "correlation": alike.diagonal(lag).mean().item()}
        for lag in range(points // 4 + 1)
    ]
    return pd.DataFrame(rows)


@torch.no_grad()
def loss_surface(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, reach: float = 1.0, points: int = 15, seed: int = 0
) -> "pd.DataFrame":
    """The loss on a plane through a trained model's weights (Li et al. 2018, "Visualizing the loss landscape").

    The plane is spanned by two random directions, filter-normalised: each filter of a direction (the weights of one
    output) has the length of the model's own, so that nets whose weights differ in size can be compared. Biases and
    normalizations stay as they are. Eval mode, precision as in `evaluate`; the model is left as it was.

    Args:
        model: gives logits (B, classes).
        images: (B, C, H, W) float, normalised, on the model's device.
        labels: (B,) int64.
        reach: how far to go along each direction, to both sides; 1 is as far as the weights themselves.
        points: along each direction, odd, so that the model itself is in the middle.
        seed: of the directions.

    Returns:
        A row a point: x and y (along the two directions, from -reach to reach), loss (mean cross-entropy, in nats).

    Raises:
        SettingError: a reach that is not above 0, or points that are even or fewer than 3.
    """
    import pandas as pd

    check_number("reach", reach, 0, open_ends="low")
    check_whole("points", points, 3)
    if points % 2 == 0:
        raise SettingError("points", points, "an odd number, so that the model is in the middle")
    generator = torch.Generator().manual_seed(seed)
    moving = copy.deepcopy(model).eval()
    weights, middle = ([one for one in net.parameters() if one.ndim > 1] for net in (moving, model))
    directions = [[filter_normalised(weight, generator) for weight in middle] for _ in range(2)]
    line, rows = torch.linspace(-reach, reach, points).tolist(), []
    for x, y in itertools.product(line, line):
        for weight, start, along, across in zip(weights, middle, *directions, strict=True):
            weight.copy_(start + x * along + y * across)
        with autocast(moving, images.device, "auto"):
            logits = moving(images)
        rows.append({"x": x, "y": y, "loss": F.cross_entropy(logits.float(), labels).item()})
    return pd.DataFrame(rows)


def filter_normalised(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction of a weight's shape, each of whose filters has the length of the weight's own."""
    direction = torch.randn(weight.shape, generator=generator).to(weight.device)
    lengths = weight.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)
    return direction * lengths.view(-1, *[1] * (weight.ndim - 1))


@torch.no_grad()
def class_activation_maps(model: ResNet, images: torch.Tensor) -> torch.Tensor:
    """How much each place of an image speaks for each class (Zhou et al. 2016, "Learning deep features").

    Behind global average pooling the head is linear, so it may as well read the classes off each place before the
    average is taken: one product of the head's weights with the last stage's maps. Eval mode; the model is left in the
    mode it was in.

    Args:
        model: a ResNet.
        images: (N, C, H, W) float, normalised, on the model's device.

    Returns:
        (N, classes, H', W'), with the head's bias: a class's mean over the places is its logit.
    """
    maps = copy.deepcopy(model).eval().feature_maps(images)
    return torch.einsum("kf,nfhw->nkhw", model.head.weight, maps) + model.head.bias.view(-1, 1, 1)


def calibration(logits: torch.Tensor, labels: torch.Tensor, *, bins: int = 15) -> "pd.DataFrame":
    """Accuracy against confidence, in equal-width bins (Guo et al. 2017, "On calibration of modern neural networks").

    Args:
        logits: (N, classes).
        labels: (N,) int64.
        bins: equal parts of the confidences from 0 to 1; those without images are left out.

    Returns:
        A row a bin: confidence (the mean probability of the likeliest class), accuracy, and share of the images.
    """
    import pandas as pd

    check_whole("bins", bins, 1)
    check_finite("logits", logits)
    confidence, found = logits.cpu().double().softmax(dim=1).max(dim=1)
    table = pd.DataFrame({"confidence": confidence, "accuracy": (found == labels.cpu()).double()})
    number = (confidence * bins).long().clamp_max(bins - 1).numpy()
    groups = table.groupby(number)
    return groups.mean().assign(share=groups.size() / len(table)).reset_index(drop=True)


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, *, bins: int = 15) -> float:
    """The expected calibration error, from 0 to 1: how far confidence and accuracy are apart, the mean over images."""
    table = calibration(logits, labels, bins=bins)
    return float((table["share"] * (table["confidence"] - table["accuracy"]).abs()).sum())
