"""Where and with what a figure was made."""

import datetime
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from labutils.training.numerics import cpu_capabilities

PROCESSORS = Path("/proc/cpuinfo")  # Linux's description of them


def provenance(device: torch.device) -> dict[str, object]:
    """Where and with what a figure was made."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": version("labutils"),
        "date": datetime.date.today().isoformat(),
    }


def processor_name() -> str:
    """The processor as the system names it; by family and model, too, where a virtual machine hides its number."""
    name = cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    if any(map(str.isdigit, name)) or not PROCESSORS.is_file():
        return name
    kind = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", PROCESSORS.read_text(encoding="utf-8"), re.MULTILINE))
    return f"{name} (family {kind['cpu family']}, model {kind['model']})" if len(kind) == 2 else name
