"""A folder to write in, beside what its contents become when they are whole."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    for left in goal.parent.glob(f".{goal.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".partial", dir=goal.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
