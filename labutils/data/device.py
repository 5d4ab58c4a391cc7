"""Where data lie: the device of a name, what fits on it, and the way there."""

import torch

from labutils.errors import SettingError

# Of a GPU's free memory what a data set's images may take at most; the rest is for networks and their activations.
RESIDENT_SHARE = 0.5


def find_device(device: str = "auto") -> torch.device:
    """The device of a name; auto is a GPU where there is one.

    Raises:
        SettingError: torch knows no such device, or none is here.
    """
    here = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if device == "auto":
        return torch.device(here[1] if len(here) > 1 else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in here:
        raise SettingError("device", device, f"auto, {', '.join(here)} (what this machine has)")
    return found


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes may lie on a device for good."""
    return size <= RESIDENT_SHARE * free_memory(device)


def free_memory(device: torch.device) -> float:
    """The bytes that a device has left; the processor's own memory, where everything is at first, has no end."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return float("inf")


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; nobody waits until it is there.

    An NVIDIA GPU fetches it by itself from pinned memory. An Apple GPU would fetch wrong numbers where the tensor is
    freed meanwhile (github.com/pytorch/pytorch/issues/189690), so it is waited for.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def has_channels_last(device: torch.device) -> bool:
    """Whether convolutional networks compute with a pixel's channels side by side, which is fastest.

    Not on an Apple GPU: there batch normalization then has wrong gradients
    (github.com/pytorch/pytorch/issues/175189).
    """
    return device.type != "mps"
