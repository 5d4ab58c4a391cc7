"""What a student has done in a notebook, kept in a local file: predictions, measurements, verdicts of checks, minutes.

The file is NOTEBOOK.json in the folder answers/ at home, or in $LABUTILS_ANSWERS. It is not in the run store, which a
class may share. It survives a restart of the kernel; to begin anew, delete it.
"""

import functools
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from IPython import get_ipython

from labutils import files
from labutils.errors import SettingError

FORMAT = 1  # of the file
PAUSE_S = 1_800.0  # after so long without an event, the student was doing something else
SOLUTION = "# Solution"  # how a cell begins that holds the course's own answer


class Record:
    """The record of one notebook. Every change reads the file anew, so several kernels may share it.

    Args:
        notebook: such as "01"; letters, digits, - and _.

    Raises:
        SettingError: another name.
    """

    def __init__(self, notebook: str):
        if not re.fullmatch(r"[\w-]{1,100}", notebook):
            raise SettingError("notebook", notebook, "letters, digits, - and _")
        self.notebook = notebook
        self.path = Path(os.environ.get("LABUTILS_ANSWERS") or files.home() / "answers") / f"{notebook}.json"
        self.in_memory: dict | None = None  # instead of the file, where none can be written

    def read(self) -> dict[str, dict]:
        """What is kept now.

        Returns:
            "predictions": by name, the `value` that was predicted, whether it came `late`, after the measurement, and
            what was `measured`, as far as each is known; "checks": by name, the `message` of the last verdict, and
            whether it was `right`; "seconds" of work, and the time of the "last" event (seconds since 1970).
        """
        if self.in_memory is not None:
            return self.in_memory
        new = {"format": FORMAT, "predictions": {}, "checks": {}, "seconds": 0.0, "last": time.time()}
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["format"] == FORMAT:
                return kept
        except (FileNotFoundError, NotADirectoryError):
            return new
        except OSError as error:
            return self.keep_in_memory(new, error)
        except (ValueError, TypeError, KeyError):
            pass
        aside = self.path.with_suffix(".unreadable")
        warnings.warn(f"{self.path} can't be read; it is moved to {aside.name}, and a new one begins", stacklevel=2)
        try:
            self.path.replace(aside)
        except OSError as error:
            return self.keep_in_memory(new, error)
        return new

    def keep_in_memory(self, kept: dict[str, dict], error: OSError) -> dict[str, dict]:
        """Go on without a file: predictions never stop a notebook."""
        self.in_memory = kept
        warnings.warn(f"predictions are kept only until the kernel ends: {error}", stacklevel=3)
        return kept

    @contextmanager
    def changed(self) -> Iterator[dict[str, dict]]:
        """What is kept, to be changed; it is written at the end. The time since the last event counts as work, unless
        it was a pause of more than half an hour."""
        kept = self.read()
        now = time.time()
        gap = now - kept["last"]
        kept["seconds"] += gap if 0 < gap <= PAUSE_S else 0
        kept["last"] = now
        yield kept
        if self.in_memory is not None:
            return
        try:
            with files.written_whole(self.path) as partial:
                partial.write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8", errors="replace")
        except OSError as error:
            self.keep_in_memory(kept, error)


opened: list[Record] = []  # the record of the notebook that this kernel runs, or nothing


def open_record(notebook: str) -> Record:
    """The record of a notebook; from now on it takes the verdicts of all checks in this kernel.

    Raises:
        SettingError: as of `Record`.
    """
    record = Record(notebook)
    with record.changed():  # the first time this begins the file, and the minutes
        opened[:] = [record]
    return record


def recorded(check: Callable) -> Callable:
    """Make a check keep its verdict in the notebook's record; the last one counts. Cells of solutions do not."""

    @functools.wraps(check)
    def keeping(*arguments: object, **options: object) -> object:
        verdict = check(*arguments, **options)
        if opened and not in_solution():
            with opened[0].changed() as kept:
                kept["checks"][check.__name__] = {"right": verdict.right, "message": verdict.message}
        return verdict

    return keeping


def in_solution() -> bool:
    """Whether the cell that is running holds the course's own answer."""
    shell = get_ipython()
    return shell is not None and shell.user_ns.get("In", [""])[-1].lstrip().startswith(SOLUTION)
