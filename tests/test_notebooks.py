"""What every committed notebook must be, and nbval's two traps: a kernel that dies, a check without stored output."""

import os
import re
import subprocess
import symtable
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from labutils import exercises

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MEGABYTE = 1_000_000
WORDS = 2_400  # of text in a notebook, at most
CHECKED = {"tags": ["nbval-check-output"]}  # of a cell whose output nbval compares with the stored one
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


def is_checked(cell):
    """Whether nbval compares a cell's output with the stored one."""
    return "nbval-check-output" in cell.metadata.get("tags", ())


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
    assert not re.search(r"standing in for \S+ \(builtin\)", printed)


def test_it_has_its_parts(notebook):
    text = text_of(notebook)
    parts = ["**Objectives.**", "**Minutes.**", "**What you need to know.**", "## Exercises", "## Claims", "## Recap"]
    places = [text.index(part) for part in [*parts, "## References"]]
    assert places == sorted(places)
    assert text.count("**Predict.**") >= 5
    assert text.count("**What it says.**") >= 4


def names_of(source):
    """The global names that a cell binds, and those that it uses."""
    cell = symtable.symtable(source, "cell", "exec")
    scopes = [cell]
    for scope in scopes:
        scopes += scope.get_children()
    bound = {name.get_name() for name in cell.get_symbols() if name.is_assigned() or name.is_imported()}
    used = {
        name.get_name()
        for scope in scopes
        for name in scope.get_symbols()
        if name.is_referenced() and (scope is cell or name.is_global())
    }
    return bound, used


def test_the_core_track_needs_nothing_of_an_optional_section(notebook):
    core, optional, level = set(), set(), 0  # names; the level of the optional heading that a cell is under, or 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for marks, title in re.findall(r"^(#+) (.*)$", cell.source, re.MULTILINE):
                if not level or len(marks) <= level:
                    level = len(marks) if "(optional)" in title else 0
            continue
        bound, used = names_of(cell.source)
        if level:
            optional |= bound
        else:
            assert not (used & optional) - core - bound, cell.source
            core |= bound


def claims_of(path, notebook):
    """The rows of a notebook's table of claims."""
    (cell,) = (cell for cell in code_cells(notebook) if f'lab.Claims("{path.stem[:2]}")' in cell.source)
    assert is_checked(cell)
    assert all(f"[{verdict}]" not in cell.source for verdict in ("holds", "DOES NOT HOLD"))
    return cell.outputs[-1]["data"]["text/plain"].splitlines()


def test_its_claims_are_a_table_computed_from_results(path, notebook):
    rows = claims_of(path, notebook)
    assert len(rows) >= 5
    for number, row in enumerate(rows, start=1):
        assert re.match(rf"{number}\. \[(holds|DOES NOT HOLD)\] .+: .*\d", row)


def test_every_bullet_of_its_recap_names_its_claims(path, notebook):
    (recap,) = (cell.source for cell in notebook.cells if cell.source.startswith("## Recap"))
    bullets = re.split(r"^- ", recap.partition("**Next.**")[0], flags=re.MULTILINE)[1:]
    assert len(bullets) >= 3
    there = range(1, len(claims_of(path, notebook)) + 1)
    for bullet in bullets:
        named = re.search(r"\(claims? ([\d,\sand]+)\)", bullet)
        assert named, bullet
        assert all(int(number) in there for number in re.findall(r"\d+", named[1])), bullet


def test_it_is_short_and_leads_on(path, notebook):
    assert len(text_of(notebook).split()) <= WORDS
    neighbours = [PATHS[place] for place in (PATHS.index(path) - 1, PATHS.index(path) + 1) if 0 <= place < len(PATHS)]
    assert all(f"({neighbour.name})" in text_of(notebook) for neighbour in neighbours)


def test_it_is_clean(path, notebook):
    assert path.stat().st_size < 2 * MEGABYTE
    assert "widgets" not in notebook.metadata
    text = path.read_text(encoding="utf-8")
    without_pictures = re.sub(r'("image/png": "|base64,)[^"\\]*', "", text)
    assert not MACHINE_PATH.search(without_pictures)
    assert "it/s]" not in text
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata
        if is_checked(cell):
            assert cell.outputs


def test_it_checks_enough_of_its_output(notebook):
    assert sum(map(is_checked, code_cells(notebook))) >= 3
    assert "NBVAL_CHECK_OUTPUT" not in str(
        [cell.source for cell in notebook.cells]
    )  # a tag says it, not a learner's code


def test_what_students_write_is_open_checked_and_solved(notebook):
    cells = code_cells(notebook)
    solutions = [number for number, cell in enumerate(cells) if "solution" in cell.metadata.get("tags", ())]
    assert len(solutions) >= 6
    for number in solutions:
        solution, asked = cells[number], cells[number - 1]
        assert solution.metadata.jupyter.source_hidden
        assert solution.source.startswith("# Solution. ")
        assert not solution.outputs, "a solution's output gives it away"
        check = re.search(r"exercises\.(\w+)\(", asked.source)[1]
        assert hasattr(exercises, check)
        assert f"exercises.{check}(" in solution.source
        assert re.search("no answer so far|NOT SOLVED YET", str(asked.outputs))


def with_solutions(notebook):
    """The notebook as it is when a student has copied each solution into what it is the solution of."""
    solved = nbformat.from_dict(notebook)
    for number, cell in enumerate(notebook.cells):
        if "solution" not in cell.metadata.get("tags", ()):
            continue
        check = re.search(r"exercises\.(\w+)\(", cell.source)[1]
        asked = max(before for before in range(number) if f"exercises.{check}(" in notebook.cells[before].source)
        argument = re.search(rf"exercises\.{check}\((\w+)", solved.cells[asked].source)[1]
        answer = re.search(rf"exercises\.{check}\(([^\n]*?)[,)]", cell.source)[1].strip()
        body = cell.source.rpartition(f"lab.exercises.{check}(")[0]
        source = solved.cells[asked].source
        place = source.rfind("\n", 0, source.index(f"exercises.{check}(")) + 1  # the line that checks
        solved.cells[asked].source = f"{source[:place]}{body}\n{argument} = {answer}\n{source[place:]}"
    return solved


@pytest.mark.slow
def test_it_runs_with_all_solutions_in(path, notebook, tmp_path):
    solved = with_solutions(notebook)
    client = NotebookClient(solved, kernel_name="labutils", timeout=300, resources={"metadata": {"path": path.parent}})
    client.execute(env=os.environ | {"LABUTILS_ANSWERS": str(tmp_path)})
    asked = [cell for cell in solved.cells if cell.cell_type == "code" and "exercises.check_" in cell.source]
    printed = [str(cell.outputs) for cell in asked if "solution" not in cell.metadata.get("tags", ())]
    assert printed
    assert all("✓ right" in output and "NOT SOLVED" not in output for output in printed)


def run_nbval(folder, *cells):
    """Exit status and output of nbval over a notebook of these cells, under this project's conftest."""
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    notebook.metadata.kernelspec = {"name": "labutils", "display_name": "Deep-learning labs", "language": "python"}
    nbformat.write(notebook, folder / "trap.ipynb")
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=60", "-p", "no:cacheprovider", "."]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return finished.returncode, finished.stdout


def test_a_kernel_that_dies_fails_fast(tmp_path):
    cell = nbformat.v4.new_code_cell("import os; os._exit(1)")
    status, printed = run_nbval(tmp_path, cell)
    assert status == 1
    assert "the kernel died" in printed  # and not that the cell's time was over


def test_a_check_without_stored_output_fails(tmp_path):
    cell = nbformat.v4.new_code_cell("x = 1", metadata=CHECKED)
    status, printed = run_nbval(tmp_path, cell)
    assert status == 1
    assert "without a stored output" in printed


def test_a_check_compares(tmp_path):
    for stored, expected in (("2", 0), ("3", 1)):
        output = nbformat.v4.new_output("execute_result", {"text/plain": stored}, execution_count=1)
        cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1, outputs=[output], metadata=CHECKED)
        assert run_nbval(tmp_path, cell)[0] == expected
