"""Instruments that look into a network without changing it."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

if TYPE_CHECKING:
    import pandas as pd


def gradient_norms(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> "pd.DataFrame":
    """Norms of the loss's gradients, layer by layer, on one batch, in training mode.

    The model, its buffers, its gradients and the random state stay as they were.

    Args:
        model: gives logits (B, classes).
        images: (B, C, H, W) float, normalised, on the model's device.
        labels: (B,) int64.

    Returns:
        A row a parameter tensor: layer (the linear or convolutional layer it belongs to, counted from 1 at the
        input; a normalization counts with the layer it follows), name (the module's), kind (weight or bias),
        norm (Euclidean, of the gradient of the mean cross-entropy).
    """
    import pandas as pd

    parameters = dict(model.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            logits = torch.func.functional_call(model, parameters | buffers, (images,))
            gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(parameters.values()))
    finally:
        model.train(was_training)

    rows, layer, previous = [], 0, None
    for (path, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        name, _, kind = path.rpartition(".")
        if name != previous and parameter.ndim >= 2:
            layer += 1
        previous = name
        rows.append({"layer": layer, "name": name, "kind": kind, "norm": gradient.norm().item()})
    return pd.DataFrame(rows)
