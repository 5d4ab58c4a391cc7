"""What every committed notebook must be, and nbval's two traps: a kernel that dies, a check without stored output."""

import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from labutils import exercises

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MEGABYTE = 1_000_000
# A path of somebody's machine: a home, a temporary folder, a checkout, a drive.
MACHINE_PATH = re.compile(r"/(home|Users|root|tmp|work|var|opt)/\w|[A-Z]:\\\\")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_there_are_notebooks():
    assert PATHS[0].stem == "01_mlp_mnist"


def test_it_was_executed_in_order_without_error(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_it_runs_in_the_course_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "labutils"


def test_it_was_executed_on_real_data(notebook):
    printed = str([cell.outputs for cell in code_cells(notebook)])
    assert "(archive)" in printed
    assert "standing in for" not in printed


def test_it_has_its_parts(notebook):
    text = text_of(notebook)
    parts = ["**Objectives.**", "**Minutes.**", "**What you need to know.**", "## Exercises", "## Claims", "## Recap"]
    places = [text.index(part) for part in [*parts, "## References"]]
    assert places == sorted(places)
    assert text.count("**Predict.**") >= 5
    assert text.count("**What it says.**") >= 4


def test_its_claims_are_a_table_computed_from_results(notebook):
    (cell,) = (cell for cell in code_cells(notebook) if "Claims()" in cell.source)
    assert "NBVAL_CHECK_OUTPUT" in cell.source
    rows = cell.outputs[-1]["data"]["text/plain"].splitlines()
    assert len(rows) >= 5
    assert all(re.match(r"\[(holds|DOES NOT HOLD)\] .+: .*\d", row) for row in rows)
    assert all(f"[{verdict}]" not in cell.source for verdict in ("holds", "DOES NOT HOLD"))


def test_it_is_clean(path, notebook):
    assert path.stat().st_size < 1.5 * MEGABYTE
    assert "widgets" not in notebook.metadata
    text = path.read_text(encoding="utf-8")
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not MACHINE_PATH.search(without_pictures)
    assert "it/s]" not in text
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata
        if "NBVAL_CHECK_OUTPUT" in cell.source:
            assert cell.outputs


def test_it_checks_enough_of_its_output(notebook):
    assert sum("NBVAL_CHECK_OUTPUT" in cell.source for cell in code_cells(notebook)) >= 3


def test_each_exercise_is_open_checked_and_solved(notebook):
    cells = code_cells(notebook)
    solutions = [number for number, cell in enumerate(cells) if "solution" in cell.metadata.get("tags", ())]
    assert len(solutions) == 3
    for number in solutions:
        solution, exercise = cells[number], cells[number - 1]
        assert solution.metadata.jupyter.source_hidden
        assert "= None" in exercise.source
        check = re.search(r"exercises\.(\w+)\(", exercise.source)[1]
        assert hasattr(exercises, check)
        assert f"exercises.{check}(" in solution.source
        assert "no answer so far" in exercise.outputs[-1]["data"]["text/plain"]
        assert solution.outputs[-1]["data"]["text/plain"].startswith("✓ right")


def run_nbval(folder, *cells):
    """Exit status, output and seconds of nbval over a notebook of these cells, under this project's conftest."""
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    notebook.metadata.kernelspec = {"name": "labutils", "display_name": "Deep-learning labs", "language": "python"}
    nbformat.write(notebook, folder / "trap.ipynb")
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=60", "-p", "no:cacheprovider", "."]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return finished.returncode, finished.stdout, time.perf_counter() - start


def test_a_kernel_that_dies_fails_fast(tmp_path):
    cell = nbformat.v4.new_code_cell("import os; os._exit(1)")
    status, printed, seconds = run_nbval(tmp_path, cell)
    assert status == 1
    assert "the kernel died" in printed
    assert seconds < 30


def test_a_check_without_stored_output_fails(tmp_path):
    cell = nbformat.v4.new_code_cell("# NBVAL_CHECK_OUTPUT\nx = 1")
    status, printed, _ = run_nbval(tmp_path, cell)
    assert status == 1
    assert "without a stored output" in printed


def test_a_check_compares(tmp_path):
    for stored, expected in (("2", 0), ("3", 1)):
        output = nbformat.v4.new_output("execute_result", {"text/plain": stored}, execution_count=1)
        cell = nbformat.v4.new_code_cell("# NBVAL_CHECK_OUTPUT\n1 + 1", execution_count=1, outputs=[output])
        assert run_nbval(tmp_path, cell)[0] == expected
