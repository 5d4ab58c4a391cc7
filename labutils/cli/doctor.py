"""What `labutils doctor` looks at: a line for each thing a lab needs, ok or a warning with its remedy."""

import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from labutils.data import archives
from labutils.data.loading import NAMES, data_root, find_device
from labutils.experiments.provenance import processor_name
from labutils.experiments.store import store_root
from labutils.training.numerics import has_native_bf16

KERNEL = "labutils"
NEEDED_DISK_GB = 2
REACH_TIMEOUT_S = 4
SET_UP_AGAIN = "set the environment up again: make .venv"


class Check(NamedTuple):
    """One thing that was looked at: what was found and, where that is a worry, what to do about it."""

    subject: str
    found: str
    remedy: str | None = None

    def __str__(self) -> str:
        remedy = f"\n{'':21}remedy: {self.remedy}" if self.remedy else ""
        return f"{'warn' if self.remedy else 'ok  '}  {self.subject:<14} {self.found}{remedy}"


def examine() -> Iterator[Check]:
    """Look at everything a lab needs, one thing after the other."""
    yield Check("Python", f"{sys.version.split()[0]} ({sys.executable})")
    yield Check("torch", f"{torch.__version__}, torchvision {version('torchvision')}")
    device = find_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    yield Check("device", f"{device} ({name})")
    yield check_threads()
    slower = "not native: everything trains in fp32, convolutions two to four times slower"
    yield Check("bf16", "native: convolutions train in it" if has_native_bf16(device) else slower)
    yield from map(check_data, NAMES)
    yield check_kernel()
    yield check_widgets()
    yield check_disk()
    yield check_wandb()


def check_threads() -> Check:
    import joblib

    cores, threads = joblib.cpu_count(), torch.get_num_threads()
    remedy = f"set OMP_NUM_THREADS={cores}: more threads than cores slow training down" if threads > cores else None
    return Check("cores", f"{cores}, torch uses {threads} threads", remedy)


def check_data(name: str) -> Check:
    path = data_root() / f"{name}.npz"
    try:
        return Check(name, f"{archives.title_of(archives.read_archive(path, name), name)}, cached in {path}")
    except PermissionError as error:
        return Check(name, str(error), f"make {path} readable")
    except archives.ArchiveError as error:
        damaged = str(error) if path.exists() else None
    reached = next(filter(is_reachable, archives.addresses(name)), None)
    if reached:
        return Check(name, damaged or f"not cached; reachable at {reached}", f"labutils data {name}")
    return Check(
        name,
        damaged or "not cached and not reachable: the built-in stand-in will take its place",
        f"connect to the network, or put {path.name} into {path.parent}",
    )


def is_reachable(address: str) -> bool:
    """Whether a host answers, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def check_kernel() -> Check:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = "install labutils into the environment that Jupyter runs in: make .venv"
    try:
        spec = KernelSpecManager().get_kernel_spec(KERNEL)
    except NoSuchKernel:
        return Check("kernel", f"Jupyter knows no kernel '{KERNEL}'", remedy)
    # Jupyter replaces a bare "python" by the interpreter it runs in itself.
    interpreter = sys.executable if spec.argv[0].startswith("python") else spec.argv[0]
    found = f"{spec.display_name}: {interpreter} ({spec.resource_dir})"
    return Check("kernel", found, None if Path(interpreter).resolve() == Path(sys.executable).resolve() else remedy)


def check_widgets() -> Check:
    from jupyter_core.paths import jupyter_path

    packages = [
        Path(folder, "@jupyter-widgets/jupyterlab-manager/package.json") for folder in jupyter_path("labextensions")
    ]
    package = next(filter(Path.is_file, packages), None)
    if package is None:
        return Check("widgets", "JupyterLab's widget extension is missing: no sliders", SET_UP_AGAIN)
    extension = json.loads(package.read_text(encoding="utf-8"))["version"]
    return Check("widgets", f"ipywidgets {version('ipywidgets')}, JupyterLab extension {extension}")


def check_disk() -> Check:
    """Whether there is room for data and runs, and whether runs can be kept; data may lie where nobody can write."""
    places = []
    for root in (data_root().resolve(), store_root().resolve()):
        places.append(next(folder for folder in (root, *root.parents) if folder.exists()))
    free = min(shutil.disk_usage(place).free for place in places) / 1e9
    remedy = None
    if free < NEEDED_DISK_GB:
        remedy = f"free {NEEDED_DISK_GB} GB, or point $LABUTILS_DATA and $LABUTILS_RUNS elsewhere"
    elif not os.access(places[1], os.W_OK):
        remedy = f"make {places[1]} writable, or point $LABUTILS_RUNS elsewhere"
    return Check("disk", f"{free:.1f} GB free for {data_root()} and {store_root()}", remedy)


def check_wandb() -> Check:
    try:
        import wandb
    except ImportError:
        return Check("tracking", "no wandb: runs are kept locally all the same", SET_UP_AGAIN)
    login = "not logged in: offline mode works without an account; wandb login for online"
    return Check("tracking", f"wandb {wandb.__version__}, {'logged in' if wandb.login(prompt=False) else login}")
