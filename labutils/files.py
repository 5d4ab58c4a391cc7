"""How the course keeps files: written whole or not at all, named by what they are, shared by a class.

Everything that is kept (runs, checkpoints, features, archives) goes through this module.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from filelock import FileLock

FORMAT = 3  # of what is kept; a change that makes older files mean something else raises it
PARTIAL = ".partial"  # how the name of a file that is still being written ends
GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def home() -> Path:
    """The checkout this package is used from, else the working folder: where data/ and runs/ lie by default."""
    checkout = Path(__file__).parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def identity(**parts: object) -> str:
    """What names anything that is kept: the SHA-256 of all that decides it, as 64 hexadecimal digits.

    Equal values give equal names: 1 and 1.0, lists and tuples, in whatever order the parts are given.

    Args:
        parts: what decides the thing (settings, the model, the data's digest), as JSON can hold it.
    """
    text = json.dumps(canonical({"format": FORMAT, **parts}), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: object) -> object:
    """A value as JSON holds it, with one form for each number."""
    if isinstance(value, Mapping):
        return {str(name): canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(inner) for inner in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return int(value) if float(value).is_integer() else float(value)
    raise TypeError(f"{value!r} has no place in an identity")


def tensors_digest(tensors: "Mapping[str, torch.Tensor]", record: str = "") -> str:
    """SHA-256 of tensors, with their names, types and shapes, and of a record; 64 hexadecimal digits."""
    import torch

    sha256 = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def workspace(goal: Path) -> Iterator[Path]:
    """A folder to make a file or folder in, from where it, or the workspace itself, is renamed to its goal.

    Whoever was killed in here could not tidy up. The next one does, and so must hold a lock on the goal.

    Args:
        goal: where the result goes; its folder is there already.

    Yields:
        An empty folder, hidden, on the goal's file system; gone at the end, whatever happens.

    Raises:
        OSError: it can't be made.
    """
    for left in goal.parent.glob(f".{goal.name}.*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=PARTIAL, dir=goal.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Another name to write a file under; at the end it takes its own, and replaces what was there.

    Until then what was there stays, and after an error nothing else is left.
    """
    make_shared_folder(path.parent)
    file, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    os.close(file)
    partial = Path(name)
    try:
        yield partial
        share(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make_shared_folder(folder: Path) -> None:
    """Make a folder, as open to others as the one it is in: a class may share what it computes."""
    if not folder.is_dir():
        make_shared_folder(folder.parent)
        with suppress(FileExistsError):  # another process has just made it
            folder.mkdir()
            share(folder)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "no folder", str(folder))


def share(path: Path) -> None:
    """Make a file or folder as open to group and others as the folder it is in, whatever the user's umask says."""
    share_as(path, path.parent)


def share_as(path: Path, folder: Path) -> None:
    """Make a file or folder as open to group and others as another folder, in which it will be."""
    opened = stat.S_IMODE(folder.stat().st_mode)
    if opened & stat.S_ISVTX:  # a folder for everybody's temporary files
        opened = 0o755
    if path.is_dir():
        path.chmod(opened | stat.S_IRWXU)
    else:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR | (opened & GROUP_AND_OTHERS & ~0o111))


def lock(path: Path) -> "FileLock":
    """A lock between processes, to be held with `with`; the system frees it when its holder dies.

    Args:
        path: of the lock's file, in a folder that is made if absent. The file stays; that it is there means nothing.
    """
    from filelock import FileLock

    make_shared_folder(path.parent)
    return FileLock(path, mode=0o666)  # others who share the folder take it as well
