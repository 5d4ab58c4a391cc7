"""Trained networks that belong to the course: data/checkpoints, weights with the record of the run they come from."""

import copy
import json
import math
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from labutils.data.loading import ImageData
from labutils.errors import UnknownSetting, check_text
from labutils.files import home, tensors_digest, written_whole
from labutils.identity import shapes
from labutils.models.building import build_model
from labutils.training.checkpoints import CheckpointError, load_tensors, save_tensors


def checkpoints_folder() -> Path:
    """Where the course's trained networks are kept."""
    return home() / "data" / "checkpoints"


def save_pretrained(name: str, model: nn.Module, data: ImageData, *, settings: dict[str, dict], metrics: dict) -> Path:
    """Keep a trained network for the course: NAME.safetensors, and NAME.json with its record and checksum.

    What is kept is `rescaled`, and so computes the same.

    Args:
        name: of its experiment.
        model: the network.
        data: what it was trained on.
        settings: of its experiment, by section.
        metrics: of its run.

    Returns:
        The path of the weights.
    """
    path = checkpoints_folder() / f"{name}.safetensors"
    record = {
        "settings": {section: settings[section] for section in ("data", "model", "training")},
        "image_shape": data.image_shape,
        "classes": data.classes,
        "metrics": metrics,
    }
    with written_whole(path) as weights, written_whole(path.with_suffix(".json")) as beside:
        checksum = save_tensors(weights, rescaled(model).state_dict(), record)
        written = json.dumps({"sha256": checksum, **record}, indent=2)
        beside.write_text(f"{written}\n", encoding="utf-8")
    return path


@torch.no_grad()
def rescaled(model: nn.Module) -> nn.Module:
    """A copy that answers the same, whose layers before batch normalizations have an untrained layer's norm.

    The normalization takes any factor k out again (but for eps), so such a layer's norm may grow in training, by Muon
    to thousands of times what it was, a stem's to millions. Then Adam turns the layer 1/k as far, and SGD, whose
    gradient shrinks as well, 1/k² as far (van Laarhoven 2017, "L2 regularization versus batch and weight
    normalization").

    Args:
        model: one whose modules stand in the order in which they are applied, so that such a layer's normalization is
            the next of them, as in the course's models; max pooling may come between.
    """
    copied = copy.deepcopy(model)
    leaves = [module for module in copied.modules() if not [*module.children()]]
    for layer, norm in pairwise(leaves):
        if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
            fresh = math.sqrt(len(layer.weight) / 3)  # PyTorch draws weights of variance 1 / (3 * inputs)
            factor = fresh / layer.weight.norm()
            for tensor in (layer.weight, layer.bias, norm.running_mean):
                if tensor is not None:
                    tensor *= factor
            norm.running_var *= factor**2
    return copied


def load_pretrained(name: str = "cnn_backbone") -> tuple[nn.Module, dict]:
    """A trained network of the course, in eval mode on the CPU, and its record.

    Args:
        name: of a config whose network is kept in data/checkpoints.

    Returns:
        The model, and the record: settings (by section), image_shape, classes, metrics (of its run, with the data it
        was trained on). Other data are normalised by their own mean and standard deviation.

    Raises:
        SettingError: there is none of that name.
        CheckpointError: it is damaged, not the one that its record is about, or its weights fit another model.
    """
    beside = read_record(name)
    path = checkpoints_folder() / f"{name}.safetensors"
    tensors, record = load_tensors(path)
    if beside != {"sha256": tensors_digest(tensors, json.dumps(record)), **record}:
        raise CheckpointError(f"checkpoint {path}: {name}.json is the record of another network")
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        model = build_model(
            **record["settings"]["model"],
            image_shape=tuple(record["image_shape"]),
            classes=len(record["classes"]),
        )
    if shapes(model) != {key: list(tensor.shape) for key, tensor in tensors.items()}:
        raise CheckpointError(f"checkpoint {path}: its weights do not fit {model}")
    model.load_state_dict(tensors)
    return model.eval(), record


def read_record(name: str) -> dict:
    """What NAME.json says of a trained network of the course; raises as `load_pretrained` does."""
    check_text("name", name)
    path = checkpoints_folder() / f"{name}.json"
    if not path.with_suffix(".safetensors").is_file():
        raise UnknownSetting(name, [kept.stem for kept in checkpoints_folder().glob("*.safetensors")])
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "sha256" not in record:
            raise ValueError("it names no checksum")
        return record
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path.with_suffix('.safetensors')}: its record {path.name} can't be read ({error})"
        ) from error
