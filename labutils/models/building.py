"""The course's models by their names, as experiments name them."""

import math

from torch import nn

from labutils.errors import check_choice
from labutils.models.mlp import MLP
from labutils.models.resnet import ResNet
from labutils.models.shallow import ShallowCNN

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
