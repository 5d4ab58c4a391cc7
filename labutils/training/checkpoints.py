"""Tensors with a record of what they are, in one file that is whole or absent: safetensors and JSON, never pickled."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from labutils.files import FORMAT, canonical, tensors_digest, written_whole
from labutils.identity import model_identity
from labutils.training.callbacks import Callback, State


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
    checksum = tensors_digest(tensors, written)
    with written_whole(path) as partial:
        try:
            save_file(tensors, partial, metadata={"record": written, "sha256": checksum})
        except SafetensorError as error:  # its own name for a full disk, too
            raise OSError(str(error)) from error
    return checksum


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
    if metadata.get("sha256") != tensors_digest(tensors, metadata.get("record", "")):
        raise CheckpointError(f"checkpoint {path}: damaged (its contents do not have the checksum written in it)")
    return tensors, json.loads(metadata["record"])


class Checkpoint(Callback):
    """Keeps where a training stands after each epoch, in a file from which it goes on as if it had never stopped.

    A checkpoint of another model, other data or another training is refused.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def before_training(self, state: State) -> None:
        """Put everything back as it was when it was last saved, if it was."""
        self.about = {
            "format": FORMAT,
            "model": canonical(model_identity(state.model, state.data.image_shape)),
            "data": {
                "title": state.data.title,
                "digest": state.data.digest,
                **{name: [round(value, 2) for value in getattr(state.data, name).tolist()] for name in ("mean", "std")},
            },
            "training": canonical(asdict(state.training)),
        }
        if not self.path.exists():
            return
        tensors, record = load_tensors(self.path)
        self.check(record.get("about", {}))
        states = put_back_tensors(record["states"], tensors)
        parts = self.parts(state)
        if missing := parts.keys() - states.keys():
            raise CheckpointError(f"checkpoint {self.path}: of a training without {', '.join(sorted(missing))}")
        for name, part in parts.items():
            part.load_state_dict(states[name])
        state.best = {name: tensor.to(state.data.device) for name, tensor in states["best"].items()}
        state.order.set_state(tensors["random/order"])
        torch.set_rng_state(tensors["random/cpu"])
        device = state.data.device
        if device.type != "cpu" and f"random/{device.type}" in tensors:
            torch.get_device_module(device).set_rng_state(tensors[f"random/{device.type}"], device)

    def after_epoch(self, state: State) -> None:
        """Keep everything as it is now."""
        tensors = {"random/order": state.order.get_state(), "random/cpu": torch.get_rng_state()}
        device = state.data.device
        if device.type != "cpu":
            tensors[f"random/{device.type}"] = torch.get_device_module(device).get_rng_state(device)
        states = {name: part.state_dict() for name, part in self.parts(state).items()} | {"best": state.best}
        save_tensors(self.path, tensors, {"about": self.about, "states": split_off_tensors(states, tensors)})

    def parts(self, state: State) -> dict[str, object]:
        """All that a training changes, by name."""
        parts = {"model": state.model, "optimizer": state.optimizer, "history": state.history}
        for callback in state.callbacks:
            if hasattr(callback, "state_dict"):
                name = type(callback).__name__
                same = sum(other.partition(" ")[0] == name for other in parts)
                parts[f"{name} {same + 1}" if same else name] = callback
        return parts

    def check(self, about: Mapping[str, object]) -> None:
        """Raise CheckpointError, saying what differs, unless the file is about this training."""
        for part, now in self.about.items():
            then = about.get(part)
            if then != now:
                then, now = what_differs(then, now)
                raise CheckpointError(
                    f"checkpoint {self.path}: of another {part} ({then}) than the one at hand ({now})"
                )


def what_differs(then: object, now: object) -> tuple[object, object]:
    """What differs between two records: of mappings only the entries that do."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return then, now
    pairs = {key: what_differs(then.get(key), now.get(key)) for key in {**then, **now} if then.get(key) != now.get(key)}
    return {key: before for key, (before, _) in pairs.items()}, {key: after for key, (_, after) in pairs.items()}


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
