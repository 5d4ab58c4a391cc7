"""How numbers are computed: precision, memory layout, random state, and what happens when memory runs out.

On an NVIDIA GPU of the Ampere generation or a later one convolutional networks train in bf16. What is computed in
float32, as MLPs are, is never rounded to TF32, and cuDNN uses only algorithms that give the same bits each time.
"""

import ctypes
import functools
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from labutils.data.device import has_channels_last
from labutils.errors import SettingError, check_choice
from labutils.training.settings import PRECISIONS

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
ALL = 2**31 - 1  # bytes, the largest threshold that mallopt takes

# How torch says that memory has run out: of an NVIDIA GPU, of an Apple GPU, of the processor.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
TRIED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


class OutOfMemory(MemoryError):
    """A model and its batch do not fit into memory; the message says what was tried and what to lower."""


def prepare(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, its convolutions laid out as they are fastest: a pixel's channels side by side.

    Raises:
        OutOfMemory: it does not fit there.
    """
    keep_freed_memory()
    if device.type == "cuda":
        compute_exactly()
    side_by_side = is_convolutional(model) and has_channels_last(device)
    with memory_errors(model):
        model.to(device, memory_format=torch.channels_last if side_by_side else torch.preserve_format)


def compute_exactly() -> None:
    """Let NVIDIA GPUs multiply float32 as such, without TF32, and let them give the same bits each time."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


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


@functools.cache
def direction_type(device: torch.device) -> torch.dtype:
    """The numbers in which Muon finds its directions: bf16, but on a GPU that does not multiply it natively."""
    return torch.bfloat16 if device.type == "cpu" or has_native_bf16(device) else torch.float32


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked to, so that a clock can be read."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def kept_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Put the random state of the processor, and of the device if that is a GPU, back as it was afterwards."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random state inside, and put it back as it was afterwards; on the CPU no GPU's is changed."""
    with kept_random_state(device):
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)
        yield


@contextmanager
def memory_errors(model: nn.Module, images: int = 0, *, lower: str = "") -> Iterator[None]:
    """Say in one line that memory has run out inside, in place of torch's several ways to say so.

    Args:
        model: what is computed.
        images: how many at once; 0 where none is shown.
        lower: a setting that helps, beside the model's size.

    Raises:
        OutOfMemory: in place of torch's errors. What they held is freed, so that the next try has the memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        traceback.clear_frames(error.__traceback__)
        name = repr(model) if "\n" not in repr(model) else type(model).__name__
        work = f"{images:,} images at once through {name}" if images else name
        tried = TRIED.search(str(error))
        amount = f" (it tried to allocate {tried[1]} more)" if tried else ""
        place = next(iter(model.parameters()), torch.empty(0)).device
        remedies = " or ".join([*[lower] * bool(lower), "the network's width or depth"])
        raise OutOfMemory(f"out of memory: {work} on {place}{amount}. Lower {remedies}") from None


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
