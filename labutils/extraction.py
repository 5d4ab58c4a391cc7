"""What a trained network says of a whole split, found once and kept in the store of runs."""

import time
import warnings
from contextlib import suppress

import torch
from torch import nn

from labutils.checkpoints import CheckpointError, digest, load_tensors, save_tensors
from labutils.data import ImageData, Split, store_root
from labutils.training import outputs


def extract_features(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model's head would see of a split's images; kept in the store of runs, beside the hash of the weights.

    Args:
        model: has features(images); in eval mode meanwhile, and left in the mode it was in.
        split: one of the data's splits, or its name.
        data: the data set, for its normalisation.
        precision: as in Training.

    Returns:
        features (N, F) float32 and labels (N,), in the split's order, on the data's device.

    Raises:
        SettingError: no such split, or images that the model can't see.
        CheckpointError: what is kept is of another network, or of other images.
    """
    split = data.split(split)
    return kept_outputs(model, "features", split, data, precision=precision)[0], split.labels


def extract_logits(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """A model's logits (N, classes) for a split's images, and their labels; kept as in `extract_features`."""
    split = data.split(split)
    return kept_outputs(model, "logits", split, data, precision=precision)[0], split.labels


def kept_outputs(
    model: nn.Module, what: str, split: Split, data: ImageData, *, precision: str = "auto"
) -> tuple[torch.Tensor, float]:
    """A model's features or logits, and in how many seconds they were found, now or when they were kept."""
    layers = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    if what == "features":  # which do not depend on the head
        layers = {name: tensor for name, tensor in layers.items() if not name.startswith("head.")}
    images = {"images": split.images.cpu(), "mean": data.mean.cpu(), "std": data.std.cpu()}
    of = {
        "weights": digest(layers, f"{what} of a {type(model).__name__}"),
        "images": digest(images, f"{precision} on {data.device.type}"),
    }
    path = store_root() / ".outputs" / of["weights"][:16] / f"{of['images'][:16]}.safetensors"
    kept = None
    with suppress(CheckpointError):  # not there yet, or damaged
        kept = load_tensors(path)
    if kept is not None:
        tensors, record = kept
        for name, value in of.items():
            if record.get(name) != value:
                raise CheckpointError(f"{path}: {what} of other {name}. Remedy: delete it, and they are found anew")
        return tensors[what].to(data.device), record["seconds"]
    start = time.perf_counter()
    found = outputs(model, model.features if what == "features" else model, split, data, precision=precision)
    seconds = time.perf_counter() - start
    try:
        save_tensors(path, {what: found}, of | {"seconds": seconds})
    except OSError as error:
        warnings.warn(f"the {what} can't be kept in {path.parent} ({error})", stacklevel=3)
    return found, seconds
