"""labutils grade: what a handed-in notebook does costs its own row and no other."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from labutils.cli import grade as grading
from labutils.cli import handed_in
from labutils.cli.grade import Graded, grade
from labutils.cli.main import main
from labutils.notebook.exercises.verdict import UNANSWERED
from labutils.notebook.predictions import PREDICTION
from labutils.notebook.record import SOLUTION

HEAD = "import labutils as lab\nPROFILE = 'full'\nexperiment = lab.Experiment.load('mlp_mnist', profile=PROFILE)"
FLOOR = "lab.exercises.check_floor(lambda labels: labels.bincount().max() / len(labels))"
LIMITS = {"seconds": 60.0, "memory": 4.0, "jobs": 1, "profile": "smoke"}


def write(path, *sources, solutions=(), predictions=None):
    """A notebook of code cells, of which some are the course's solutions, with predictions in its outputs."""
    cells = [nbformat.v4.new_code_cell(source) for source in (HEAD, *sources)]
    cells += [nbformat.v4.new_code_cell(source, metadata={"tags": ["solution"]}) for source in solutions]
    for name, value in (predictions or {}).items():
        data = {PREDICTION: {"notebook": "01", "name": name, "value": value}, "text/plain": ""}
        cells[0].outputs.append(nbformat.v4.new_output("display_data", data))
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_verdicts_come_from_the_checks_and_not_from_what_is_printed(tmp_path):
    forged = "print(lab.exercises.Verdict(True, 'right'))\nlab.exercises.check_floor(None)"
    seen = "import os\nfrom pathlib import Path\nPath('kept').touch()\nassert experiment.profile == 'smoke'\n" + (
        f"Path({str(tmp_path / 'seen')!r}).write_text(os.environ['HOME'] + ' ' + os.getcwd())"
    )
    broken = "import resource\nraise ValueError(f'{resource.getrlimit(resource.RLIMIT_DATA)[0]}\\nbytes')"
    stops = "lab.exercises.check_parameters(lambda depth, width: __import__('sys').exit())"
    solved = "# Solution.\nlab.exercises.check_parameters(lambda d, w: 784*w + w + (d-1)*(w*w + w) + w*10 + 10)"
    path = write(tmp_path / "anna" / "01_mlp.ipynb", forged, seen, stops, broken, "import os\nos._exit(1)", FLOOR,
                 solutions=[solved], predictions={"floor": 10, "deeper": None})  # fmt: skip
    (graded,) = grade([path], tmp_path / "grades.csv", **LIMITS)
    (row,) = rows(tmp_path / "grades.csv")
    assert row["student"] == graded.student == "anna"
    assert row["check_floor"] == f"not yet: {UNANSWERED}"  # the last cell is behind the kernel's end
    assert row["check_parameters"] == "not yet: your function stopped with SystemExit:"
    assert row["check_mlp"] == grading.NOT_RUN
    assert "check_lesion" not in row  # of another notebook
    assert row["passed"] == "0"
    assert row["predictions"] == "1 of 2"
    assert row["error"] == f"code cell 5: ValueError: {4 * grading.GIB} bytes"
    home, folder = (tmp_path / "seen").read_text().split()
    assert home == folder != str(Path.home())
    assert not Path(home).exists()


@pytest.mark.slow
def test_what_one_notebook_does_costs_its_own_row_and_no_other(tmp_path):
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    leaves = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        "
        f"open({str(tmp_path / 'left')!r}, 'w').write(str(os.getpid()))\n        time.sleep(1000)\n    os._exit(0)"
    )
    paths = [
        write(tmp_path / "1.ipynb", "while True: print('x' * 1000)", FLOOR),
        write(tmp_path / "2.ipynb", "import numpy as np\nnp.empty(2**33, np.uint8)", FLOOR),
        write(tmp_path / "3.ipynb", FLOOR, stubborn),
        write(tmp_path / "4.ipynb", leaves, FLOOR),
        write(tmp_path / "5.ipynb", "open('large', 'wb').truncate(2**31)", FLOOR),
        tmp_path / "6.ipynb",
        write(tmp_path / "7.ipynb", FLOOR),
    ]
    paths[5].write_text("not a notebook")
    found = list(grade([tmp_path], tmp_path / "grades.csv", **LIMITS | {"seconds": 40.0}))
    assert [graded.path for graded in found] == paths
    assert [graded.passed for graded in found] == [1, 1, 1, 1, 1, 0, 1]
    told = ["cell 2: stopped after 10 s", "MemoryError", "stopped after 40 s", "", "File too large", "JSON", ""]
    errors = [graded.error for graded in found]
    assert [word if word and word in error else error for word, error in zip(told, errors, strict=True)] == told
    assert not psutil.pid_exists(int((tmp_path / "left").read_text()))
    assert len(rows(tmp_path / "grades.csv")) == 7


@pytest.mark.slow
def test_an_interrupt_ends_the_notebooks_that_are_running(tmp_path):
    endless = f"import os\nopen({str(tmp_path / 'running')!r}, 'w').write(str(os.getpid()))\nwhile True: pass"
    path = write(tmp_path / "1.ipynb", endless)
    command = [sys.executable, "-m", "labutils", "grade", path, "--to", tmp_path / "grades.csv", "--timeout", "900"]
    grader = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not (tmp_path / "running").exists() or not (tmp_path / "running").read_text():
        assert grader.poll() is None
        time.sleep(0.1)
    pid = int((tmp_path / "running").read_text())
    kernel = psutil.Process(pid)
    grader.send_signal(signal.SIGINT)
    grader.communicate(timeout=120)  # far less than a cell may take
    kernel.wait(60)  # the system may take a moment to clear away a process that was killed
    assert not psutil.pid_exists(pid)


@pytest.fixture
def found(tmp_path):
    passed = {"check_floor": grading.PASSED, "check_mlp": 'not yet: logits, "six"', "check_rate": grading.NOT_RUN}
    return [Graded(tmp_path / "anna.ipynb", passed, 3, 5), Graded(tmp_path / "ben.ipynb", error="the kernel ended")]


def test_gradescope_gets_a_test_for_each_check(found, tmp_path):
    grading.write_gradescope(found[:1], tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == 1.0
    assert results["tests"][0] == {"name": "anna: check_floor", "score": 1.0, "max_score": 1.0, "output": "passed"}
    assert [test["score"] for test in results["tests"]] == [1.0, 0.0, 0.0]


def test_the_table_has_a_column_for_each_check_that_anyone_was_to_run(found, tmp_path):
    grading.write_csv(found, tmp_path / "grades.csv")
    anna, ben = rows(tmp_path / "grades.csv")
    assert list(anna) == ["student", "file", "passed", "check_floor", "check_mlp", "check_rate", "predictions", "error"]
    assert anna["check_mlp"] == 'not yet: logits, "six"'
    assert (anna["predictions"], anna["error"]) == ("3 of 5", "")
    assert (ben["check_floor"], ben["passed"], ben["error"]) == ("", "0", "the kernel ended")


@pytest.mark.parametrize("content", ["[]", "{", '{"checks": 3}', '{"checks": {"check_floor": 1, "nosuch": {}}}', None])
def test_a_record_that_students_code_has_written_over_stops_nothing(content, tmp_path):
    if content is None:
        os.mkfifo(tmp_path / "01.json")  # to read it would wait for ever
    else:
        (tmp_path / "01.json").write_text(content)
    assert grading.read_checks(tmp_path) == {}


def test_copies_that_jupyter_keeps_are_not_graded(tmp_path):
    for name in ("ben/01.ipynb", "anna/01.ipynb", "anna/.ipynb_checkpoints/01.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert grading.find([tmp_path]) == [tmp_path / "anna" / "01.ipynb", tmp_path / "ben" / "01.ipynb"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nosuch.ipynb"], "nosuch.ipynb"),
        (["."], "notebook: '.' was given"),
        ([".", "--to", "grades.xls"], ".csv or .json"),
        ([".", "--timeout", "0"], "timeout: 0.0"),
        ([".", "--memory", "-1"], "memory: -1.0"),
        ([".", "--jobs", "0"], "jobs: 0"),
    ],
)
def test_a_wrong_argument_is_named(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["grade", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_what_the_process_can_not_import_is_as_the_package_has_it():
    assert handed_in.PREDICTION == PREDICTION
    assert handed_in.SOLUTION in SOLUTION.lower()
