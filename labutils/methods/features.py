"""What a trained network answers for a whole split: features or logits, which can be kept in a folder; and how well a
head tells the classes of features."""

import time
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from labutils.data.loading import ImageData, Split
from labutils.errors import SettingError, check_finite
from labutils.files import identity, tensors_digest
from labutils.identity import model_identity
from labutils.training.checkpoints import CheckpointError, load_tensors, save_tensors
from labutils.training.evaluation import accuracies, outputs
from labutils.training.numerics import wait_for

Features = tuple[torch.Tensor, torch.Tensor]  # (N, F), and their labels (N,)


def extract_features(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto", cache: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model's head would see of a split's images.

    Args:
        model: has features(images); in eval mode meanwhile, and left in the mode it was in.
        split: one of the data's splits, or its name.
        data: the data set, for its normalisation.
        precision: as in Training.
        cache: a folder in which the features are kept, and looked for first; None keeps nothing.

    Returns:
        features (N, F) float32 and labels (N,), in the split's order, on the data's device.

    Raises:
        SettingError: no such split, or images that the model can't see.
    """
    split = data.split(split)
    return timed_outputs(model, "features", split, data, precision=precision, cache=cache)[0], split.labels


def extract_logits(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto", cache: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A model's logits (N, classes) for a split's images, and their labels; arguments as in `extract_features`."""
    split = data.split(split)
    return timed_outputs(model, "logits", split, data, precision=precision, cache=cache)[0], split.labels


def timed_outputs(
    model: nn.Module, what: str, split: Split, data: ImageData, *, precision: str = "auto", cache: Path | None = None
) -> tuple[torch.Tensor, float]:
    """A model's features or logits, and in how many seconds they were found, now or when they were kept."""
    path = None if cache is None else cache / f"{outputs_identity(model, what, split, data, precision)}.safetensors"
    if path is not None:
        with suppress(CheckpointError):  # not there yet, or damaged
            tensors, record = load_tensors(path)
            return tensors[what].to(data.device), record["seconds"]
    start = time.perf_counter()
    found = outputs(model, model.features if what == "features" else model, split, data, precision=precision)
    wait_for(data.device)
    seconds = time.perf_counter() - start
    if path is not None:
        try:
            save_tensors(path, {what: found}, {"seconds": seconds})
        except OSError as error:
            warnings.warn(f"the {what} can't be kept in {path.parent} ({error})", stacklevel=3)
    return found, seconds


def outputs_identity(model: nn.Module, what: str, split: Split, data: ImageData, precision: str) -> str:
    """What names a model's features or logits for a split; features do not depend on the head."""
    with_head = what == "logits"
    weights = {name: t for name, t in model.state_dict().items() if with_head or not name.startswith("head.")}
    return identity(
        what=what,
        model=model_identity(model, data.image_shape, head=with_head),
        weights=tensors_digest(weights),
        images=tensors_digest({"images": split.images, "mean": data.mean, "std": data.std}),
        precision=precision,
        device=data.device.type,
    )


def score(head: nn.Module, test: Features) -> dict[str, float]:
    """top1 and top5 of a head on features (N, F) with their labels (N,)."""
    features, labels = test
    check_features(features, labels)
    if features.shape[1] != head.in_features:
        raise SettingError("features", tuple(features.shape), f"(N, {head.in_features}), as the training features have")
    if labels.max() >= head.out_features:
        raise SettingError("labels", f"none of class {labels.max().item()}", "training features of each class")
    with torch.no_grad():
        return accuracies(head(features), labels)


def check_features(features: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise SettingError unless features (N, F) are finite numbers and each row has a label."""
    if features.ndim != 2 or not 0 < len(features) == len(labels):
        raise SettingError("features", tuple(features.shape), f"({len(labels) or 1}, F), a row for each label")
    if features.dtype != torch.float32:
        raise SettingError("features", features.dtype, "torch.float32, as extract_features gives them")
    check_finite("features", features)
    if labels.dtype != torch.int64 or labels.min() < 0:
        raise SettingError("labels", f"{labels.dtype} from {labels.min().item()}", "torch.int64, from 0")
