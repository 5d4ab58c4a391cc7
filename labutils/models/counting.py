"""What a model costs: parameters, multiply-adds, layers."""

import copy

import torch
from torch import nn


def parameter_count(model: nn.Module) -> int:
    """How many numbers a model learns; frozen parameters do not count."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def describe(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> dict[str, int]:
    """What a model costs.

    Args:
        model: any network.
        image_shape: (C, H, W) of the images it is to see. It can be left out for the course's models, of which the
            convolutional ones are then given 32 x 32 pixels.

    Returns:
        parameters that learn; multiply_adds of the linear layers and convolutions for one image (half the
        floating-point operations that PyTorch counts); layers, the linear and convolutional ones outside the skips.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if image_shape is None:
        image_shape = (model.in_features,) if hasattr(model, "in_features") else (model.in_channels, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    layers = sum(
        isinstance(module, nn.Linear | nn.Conv2d) for name, module in model.named_modules() if ".skip." not in name
    )
    return {"parameters": parameter_count(model), "multiply_adds": counter.get_total_flops() // 2, "layers": layers}
