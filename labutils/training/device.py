"""Where and how numbers are computed: precision, memory layout, random state. All such choices are made here."""

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from labutils.errors import SettingError, check_choice
from labutils.training.settings import PRECISIONS

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
ALL = 2**31 - 1  # bytes, the largest threshold that mallopt takes


def prepare(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, its convolutions laid out as they are fastest: a pixel's channels side by side."""
    keep_freed_memory()
    model.to(device, memory_format=torch.channels_last if is_convolutional(model) else torch.preserve_format)


def is_convolutional(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def autocast(model: nn.Module, device: torch.device, precision: str) -> torch.autocast | nullcontext:
    """The context in which a model's forward pass runs in a given precision.

    auto chooses bf16 only where it was measured to pay: for convolutions, on hardware that multiplies bf16
    natively. The course's MLPs are too small: casting their weights each step costs more than it saves.
    """
    check_choice("precision", precision, PRECISIONS)
    native = has_native_bf16(device)
    if precision == "bf16" and device.type == "mps":
        raise SettingError("precision", precision, "auto or fp32, on an Apple GPU")
    if precision == "bf16" or (precision == "auto" and native and is_convolutional(model)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def has_native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        features = cpu_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return False


def cpu_capabilities() -> dict[str, object]:
    """What torch says of the processor; nothing before torch 2.7, which was the first to say it."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random state inside, and put it back as it was afterwards; on the CPU no GPU's is changed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)
        yield


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, to use it again.

    glibc hands large blocks back to the system at once and asks for them again at the next step of training. The system
    clears each page anew, which takes longer than a ReLU on it: the ResNet [2, 2, 2, 2] of width 16 trains up to 1.6
    times as fast without (two cores, AMD EPYC, batch 128). Other systems and C libraries are left alone.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, ALL)
            mallopt(M_TRIM_THRESHOLD, ALL)
