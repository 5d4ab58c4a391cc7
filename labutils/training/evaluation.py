"""Measuring a model on a split."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.data.loading import ImageData, Split, batches
from labutils.errors import SettingError, check_choice
from labutils.models.shallow import VIEWS, weighted_views
from labutils.training.numerics import autocast, memory_errors, prepare
from labutils.training.stop_button import check_stop

EVALUATION_BATCH = 250  # images; a stop is heeded between two batches. 2,000 would be 1.07 times as fast on two cores


def evaluate(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto", views: int = 1
) -> dict[str, float]:
    """Measure a model on a split, in eval mode; the model is left in the mode it was in.

    Args:
        model: gives logits (N, classes).
        split: one of the data's splits, or its name.
        data: the data set, for its normalisation.
        precision: as in Training.
        views: over how many views of an image its logits are averaged: 1 (as it is), 2 (with its mirror image) or 6
            (with both moved by a pixel, to either of two corners, at half the weight; Jordan 2024).

    Returns:
        loss (cross-entropy, in nats), top1 and top5 (fractions from 0 to 1; top5 of fewer than five classes is 1).

    Raises:
        SettingError: another number of views, or a model that does not fit the data.
        OutOfMemory: the model is too large for the device.
    """
    check_classes(model, data)
    logits, labels = predict(model, split, data, precision=precision, views=views)
    return {"loss": F.cross_entropy(logits, labels).item(), **accuracies(logits, labels)}


def predict(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto", views: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) float32 of a split's images in their own order, and their labels (N,); as in `evaluate`."""
    split = data.split(split)
    return outputs(model, model, split, data, precision=precision, views=views), split.labels


@torch.no_grad()
def outputs(
    model: nn.Module,
    function: Callable[[torch.Tensor], torch.Tensor],
    split: Split,
    data: ImageData,
    *,
    precision: str,
    views: int = 1,
) -> torch.Tensor:
    """What a function of a model, such as its features, gives for a split's images; as in `evaluate`."""
    check_choice("views", views, VIEWS)
    check_inputs(model, data)
    prepare(model, data.device)
    was_training = model.training
    model.eval()
    try:
        with memory_errors(model, EVALUATION_BATCH), autocast(model, data.device, precision):
            found = []
            for images, _ in batches(split, data, EVALUATION_BATCH):
                check_stop(sum(map(len, found)) / len(split))
                found.append(sum(weight * function(view).float() for weight, view in weighted_views(images, views)))
    finally:
        model.train(was_training)
    return torch.cat(found)


def check_inputs(model: nn.Module, data: ImageData) -> None:
    """Raise SettingError where there is no model, or one that sees images of another size than a data set has."""
    if not isinstance(model, nn.Module):
        raise SettingError("model", model, "a network, such as lab.MLP(2, 64)")
    if not isinstance(data, ImageData):
        raise SettingError("data", data, "a data set, as load_data gives it")
    if getattr(model, "in_features", None) not in (None, math.prod(data.image_shape)):
        allowed = f"{math.prod(data.image_shape)}, the numbers in an image of {data.title}"
        raise SettingError("in_features", model.in_features, allowed)
    if getattr(model, "in_channels", None) not in (None, data.image_shape[0]):
        raise SettingError("in_channels", model.in_channels, f"{data.image_shape[0]}, the channels of {data.title}")


def check_classes(model: nn.Module, data: ImageData) -> None:
    """Raise SettingError where a model's head does not give one number for each of a data set's classes."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear) and head.out_features != len(data.classes):
        raise SettingError("classes", head.out_features, f"{len(data.classes)}, which {data.title} has")


def accuracies(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """top1 and top5 of logits (N, classes), fractions from 0 to 1; top5 of fewer than five classes is 1."""
    highest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    first = logits.argmax(dim=1, keepdim=True)  # of classes that tie, which topk may leave out
    return {
        "top1": accuracy(logits, labels),
        "top5": fraction((torch.cat([first, highest], dim=1) == labels[:, None]).any(dim=1)),
    }


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows of logits (N, classes) whose highest is the label's, from 0 to 1."""
    return fraction(logits.argmax(dim=1) == labels)


def fraction(hits: torch.Tensor) -> float:
    """Which part of booleans (N,) is true, from 0 to 1; counted, because an Apple GPU has no float64 to divide in."""
    return hits.sum().item() / len(hits)
