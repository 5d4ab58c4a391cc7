"""Tensors with a record of what they are, in one file that is whole or absent: safetensors and JSON, never pickled."""

import hashlib
import json
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or of something else than what is to go on."""


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], record: dict) -> str:
    """Write tensors and a record about them; what was there before stays until all is written.

    Args:
        path: of the file; its folder is made.
        tensors: by their names.
        record: whatever JSON can hold.

    Returns:
        The checksum: SHA-256 of the tensors and the record, which is in the file, too.

    Raises:
        OSError: the file can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    written = json.dumps(record)
    checksum = digest(tensors, written)
    make_shared_folder(path.parent)
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file(tensors, partial, metadata={"record": written, "sha256": checksum})
    except SafetensorError as error:  # its own name for a full disk, too
        partial.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    partial.chmod(0o644)  # for all who share the folder
    partial.replace(path)
    return checksum


def make_shared_folder(folder: Path) -> None:
    """Make a folder, as open to others as the one it is in: a class may share what it computes."""
    if not folder.is_dir():
        make_shared_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        with suppress(PermissionError):  # another has just made it
            folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """What `save_tensors` wrote: the tensors, on the CPU, and the record.

    Raises:
        CheckpointError: the file is missing, or a byte of it is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (OSError, SafetensorError, UnicodeError) as error:
        raise CheckpointError(f"checkpoint {path}: can't be read ({error})") from error
    if metadata.get("sha256") != digest(tensors, metadata.get("record", "")):
        raise CheckpointError(f"checkpoint {path}: damaged (its contents do not have the checksum written in it)")
    return tensors, json.loads(metadata["record"])


def digest(tensors: Mapping[str, torch.Tensor], record: str) -> str:
    """SHA-256 of a record and of tensors, their names, types and shapes, as 64 hexadecimal digits."""
    sha256 = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


class Checkpoint:
    """Where a training stands after an epoch, in a file from which it goes on as if it had never stopped.

    Args:
        path: of the file; None keeps nothing.
        parts: what has a `state_dict` and a `load_state_dict`: the model, its optimizer and so on, by name.
        order: the generator that orders the batches.
        device: whose random state is kept beside the CPU's.
        about: what is trained, on what, how: a checkpoint of anything else is refused.
    """

    def __init__(
        self, path: Path | None, parts: dict[str, object], order: torch.Generator, device: torch.device, about: dict
    ):
        self.path, self.order, self.device = path, order, device
        self.parts = {name: part for name, part in parts.items() if part is not None}
        # As JSON gives it back: lists for tuples.
        self.about = json.loads(json.dumps(about))

    def save(self, best: Mapping[str, torch.Tensor]) -> None:
        """Keep everything as it is now, and the best epoch's weights."""
        if self.path is None:
            return
        tensors = {"random/order": self.order.get_state(), "random/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        states = {name: part.state_dict() for name, part in self.parts.items()} | {"best": best}
        save_tensors(self.path, tensors, {"about": self.about, "states": split_off_tensors(states, tensors)})

    def resume(self) -> dict[str, torch.Tensor] | None:
        """Put everything back as it was when it was last saved; the best epoch's weights, or None if it never was.

        Raises:
            CheckpointError: the file is damaged, or of another training.
        """
        if self.path is None or not self.path.exists():
            return None
        tensors, record = load_tensors(self.path)
        for part, now in self.about.items():
            if record["about"].get(part) != now:
                raise CheckpointError(
                    f"checkpoint {self.path}: of another {part} ({record['about'].get(part)}) than the one to be "
                    f"trained ({now})"
                )
        states = put_back_tensors(record["states"], tensors)
        for name, part in self.parts.items():
            part.load_state_dict(states[name])
        self.order.set_state(tensors["random/order"])
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
        return {name: tensor.to(self.device) for name, tensor in states["best"].items()}


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """The shape of each tensor of a model, by its name."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def split_off_tensors(state: object, tensors: dict[str, torch.Tensor], name: str = "") -> object:
    """A state as JSON can hold it; its tensors are added to `tensors`, and stand in it by their names."""
    if isinstance(state, torch.Tensor):
        tensors[name] = state
        # A file has no memory layouts; fused optimizers pair a weight's numbers with their state by place in memory.
        return {"tensor": name, "channels_last": state.ndim == 4 and not state.is_contiguous()}
    if isinstance(state, Mapping):  # as pairs, because JSON makes text of keys that are numbers
        return {"pairs": [[key, split_off_tensors(value, tensors, f"{name}/{key}")] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return [split_off_tensors(value, tensors, f"{name}/{number}") for number, value in enumerate(state)]
    return state


def put_back_tensors(state: object, tensors: Mapping[str, torch.Tensor]) -> object:
    """The inverse of `split_off_tensors`, but for tuples, which come back as lists."""
    if isinstance(state, list):
        return [put_back_tensors(value, tensors) for value in state]
    if not isinstance(state, dict):
        return state
    if "tensor" in state:
        layout = torch.channels_last if state["channels_last"] else torch.contiguous_format
        return tensors[state["tensor"]].contiguous(memory_format=layout)
    return {key: put_back_tensors(value, tensors) for key, value in state["pairs"]}
