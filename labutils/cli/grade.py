"""labutils grade: the checks of handed-in notebooks, run anew, as a table for the teacher.

Each notebook is executed in processes of its own, from a fresh kernel, at the smoke profile, without the cells that
hold the course's own solutions. It has a home folder, a run store and a record of its own, and limits on time, memory,
processes and the size of files. So code that loops, crashes, prints garbage, calls exit() or forks costs its own row
and no other. The verdicts are those that the checks wrote into that record, not what the notebook printed.

This is no sandbox. Students' code runs with the teacher's rights: it can read and write what the teacher can, and
nothing keeps it from the network. The verdicts can be forged, too, because a check runs in the same process as the code
that it checks: such code can replace the check, or write into the record; and it can hand labutils' own functions in as
its own. Predictions are read from the outputs saved in the notebook, so they can be written by hand. Who has to grade
strangers runs this in a container or a virtual machine, and reads the code that passed.
"""

import csv
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from labutils.errors import SettingError, check_number, check_whole
from labutils.files import written_whole
from labutils.notebook import exercises

PROCESS = Path(__file__).with_name("handed_in.py")
FOLDER = "LABUTILS_GRADING"  # an environment variable that all processes of a notebook have: the notebook's folder
CELL_SHARE = 4  # a cell may take this part of a notebook's time, so that one endless loop leaves time for the rest
GIB = 2**30
LARGEST_FILE_GIB = 1
MOST_PROCESSES = 512  # and threads, beside those that the user has
LARGEST_RECORD = 1_000_000  # bytes
PASSED, NOT_RUN = "passed", "not run"
COURSE_FILE = re.compile(r"\d\d_\w+")  # a notebook's own name, which does not tell students apart


@dataclass(frozen=True)
class Graded:
    """What came of one notebook.

    Attributes:
        path: of the notebook.
        checks: by a check's name, PASSED, NOT_RUN, or what the check said.
        predicted, asked: how many of the predictions asked were answered.
        error: the first thing that went wrong, or nothing.
    """

    path: Path
    checks: Mapping[str, str] = field(default_factory=dict)
    predicted: int = 0
    asked: int = 0
    error: str = ""

    @property
    def student(self) -> str:
        """The file's name, or its folder's where the file is named as the course's notebooks are."""
        return self.path.absolute().parent.name if COURSE_FILE.fullmatch(self.path.stem) else self.path.stem

    @property
    def passed(self) -> int:
        """How many checks were passed."""
        return sum(found == PASSED for found in self.checks.values())

    def __repr__(self) -> str:
        return f"{self.student}: {self.passed} of {len(self.checks)} checks passed" + f" ({self.error})" * bool(
            self.error
        )


def grade(
    notebooks: Sequence[Path], to: Path, *, seconds: float, memory: float, jobs: int, profile: str
) -> Iterator[Graded]:
    """Run the checks of handed-in notebooks anew.

    Args:
        notebooks: files, and folders of such.
        to: the table to write, renewed after each notebook: a .csv file with a row a notebook, or a .json file as
            Gradescope expects it, for the notebooks of one student.
        seconds: how long a notebook may take; one cell may take a quarter of it.
        memory: how much each process may have, in GiB.
        jobs: how many notebooks run at a time.
        profile: smoke, laptop or full.

    Yields:
        What came of each, in the order given.

    Raises:
        SettingError: no such notebook, a table of another kind, or a limit that is none.
    """
    check_number("timeout", seconds, 0, open_ends="low")
    check_number("memory", memory, 0, open_ends="low")
    check_whole("jobs", jobs, 1, os.cpu_count() or 1)
    if to.suffix not in WRITERS:
        raise SettingError("to", str(to), f"a file that ends in {' or '.join(WRITERS)}")
    paths, found = find(notebooks), []
    place = tempfile.TemporaryDirectory(prefix="labutils-grade-", ignore_cleanup_errors=True)
    with place as folder, ThreadPoolExecutor(jobs) as pool:
        run_one = functools.partial(run, place=folder, seconds=seconds, memory=memory, profile=profile)
        try:
            for graded in pool.map(run_one, paths):
                found.append(graded)
                with written_whole(to.absolute()) as partial:
                    WRITERS[to.suffix](found, partial)
                yield graded
        except BaseException:  # the pool's end waits for the notebooks that are running
            end_all(folder)
            raise


def find(given: Sequence[Path]) -> list[Path]:
    """The notebooks among files and in folders, without the copies that Jupyter keeps.

    Raises:
        SettingError: there is no such file or folder.
    """
    found = []
    for path in given:
        if not path.exists():
            raise SettingError("notebook", str(path), "a notebook, or a folder with notebooks")
        inside = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]
        found += [each for each in inside if ".ipynb_checkpoints" not in each.parts]
    if not found:
        raise SettingError("notebook", ", ".join(map(str, given)), "folders with a notebook in one of them")
    return found


def run(path: Path, *, place: str, seconds: float, memory: float, profile: str) -> Graded:
    """Execute one notebook in processes of its own, end them all, and read what was written down."""
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "tmp").mkdir()
        orders = {
            "notebook": str(path.absolute()),
            "outcome": str(home / "outcome.json"),
            "profile": profile,
            "cell_s": seconds / CELL_SHARE,
            "limits": limits(seconds, memory),
        }
        (home / "orders.json").write_text(json.dumps(orders), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-P", PROCESS, home / "orders.json"],
            cwd=home,
            env=os.environ | environment(home, profile) | {FOLDER: folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        late = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = f"stopped after {seconds:g} s"
        finally:
            end_all(folder)
            process.wait()
        outcome = read_json(home / "outcome.json")
        error = late or outcome.get("error", f"it ended its own run (exit status {process.returncode})")
        checks = read_checks(home / "answers")
        return Graded(path, checks, outcome.get("predicted", 0), outcome.get("asked", 0), error)


def environment(home: Path, profile: str) -> dict[str, str]:
    """The variables that give a notebook a home folder of its own."""
    return {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "TMPDIR": str(home / "tmp"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(home / "jupyter"),
        "LABUTILS_ANSWERS": str(home / "answers"),
        "LABUTILS_RUNS": str(home / "runs"),
        "LABUTILS_PROFILE": profile,
        "TQDM_DISABLE": "1",
    }


def limits(seconds: float, memory: float) -> dict[str, int]:
    """The limits of each process of a notebook, by the names of `resource`."""
    mine = psutil.Process().username()
    threads = sum(each.info["num_threads"] or 0 for each in psutil.process_iter(["username", "num_threads"])
                  if each.info["username"] == mine)  # fmt: skip
    return {
        "RLIMIT_DATA": int(memory * GIB),  # not RLIMIT_AS: torch reserves far more addresses than it uses memory
        "RLIMIT_FSIZE": LARGEST_FILE_GIB * GIB,
        "RLIMIT_CPU": int(seconds * (os.cpu_count() or 1)) + 1,
        "RLIMIT_NPROC": threads + MOST_PROCESSES,  # of the user; the system does not hold root to it
        "RLIMIT_CORE": 0,
    }


def end_all(folder: str) -> None:
    """End every process of the notebooks in a folder, also those that left their session or lost their parent."""
    for _ in range(20):  # one that forks may have to be ended again
        everyone = psutil.process_iter(["environ"])
        left = [each for each in everyone if (each.info["environ"] or {}).get(FOLDER, "").startswith(folder)]
        if not left:
            return
        for each in left:
            with suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(left, timeout=1)


def read_checks(folder: Path) -> dict[str, str]:
    """The last verdict of each check of a notebook; one of the same notebook that left none did not run."""
    verdicts = {}
    for path in sorted(folder.glob("*.json")):
        kept = read_json(path).get("checks")
        for name, found in kept.items() if isinstance(kept, dict) else ():
            if name in CHECKS and isinstance(found, dict):
                message = " ".join(str(found.get("message", "")).split())
                verdicts[name] = PASSED if found.get("right") is True else f"not yet: {message}"
    notebooks = {CHECKS[name] for name in verdicts}
    expected = [name for name, notebook in CHECKS.items() if notebook in notebooks]
    return {name: verdicts.get(name, NOT_RUN) for name in expected}


def read_json(path: Path) -> dict:
    """What a JSON file holds that students' code may have written over; nothing where it can't be read."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_RECORD:
            return {}
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def write_csv(graded: Sequence[Graded], path: Path) -> None:
    """A row a notebook: student, file, passed, a column a check, predictions, error."""
    names = [name for name in CHECKS if any(name in each.checks for each in graded)]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["student", "file", "passed", *names, "predictions", "error"])
        for each in graded:
            checks = [each.checks.get(name, "") for name in names]
            predictions = f"{each.predicted} of {each.asked}"
            table.writerow([each.student, each.path, each.passed, *checks, predictions, each.error])


def write_gradescope(graded: Sequence[Graded], path: Path) -> None:
    """Gradescope's results.json: a test a check, each worth one point."""
    tests = [
        {"name": f"{each.path.stem}: {name}", "score": float(found == PASSED), "max_score": 1.0, "output": found}
        for each in graded
        for name, found in each.checks.items()
    ]
    lines = [f"{each.path.name}: {each.error or 'ran to its end'}" for each in graded]
    results = {"score": float(sum(each.passed for each in graded)), "output": "\n".join(lines), "tests": tests}
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")


# Each check with its module, one a notebook.
CHECKS = {name: getattr(exercises, name).__module__ for name in dir(exercises) if name.startswith("check_")}
WRITERS: Mapping[str, Callable[[Sequence[Graded], Path], None]] = {".csv": write_csv, ".json": write_gradescope}
