import ast

import nbformat
import pytest

from labutils.cli import course

CODE = "import ipywidgets, os\nprint(os.environ['LABUTILS_PROFILE'])\nipywidgets.IntSlider(description='depth')"


def write_notebook(path, code):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata.kernelspec = {"name": "labutils", "display_name": "Deep-learning labs", "language": "python"}
    nbformat.write(notebook, path)


@pytest.mark.slow
def test_notebooks_are_executed_in_order_until_one_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path)
    write_notebook(tmp_path / "02_fails.ipynb", "1 / 0")
    write_notebook(tmp_path / "01_works.ipynb", CODE)
    before = (tmp_path / "01_works.ipynb").read_text()
    executing = course.execute_course("laptop", tmp_path / "build")
    copy = next(executing)
    (cell,) = nbformat.read(copy, as_version=4).cells
    assert cell.execution_count == 1
    assert cell.outputs[0]["text"] == "laptop\n"
    assert course.WIDGET not in cell.outputs[1]["data"]
    assert "IntSlider" in cell.outputs[1]["data"]["text/plain"]
    assert (tmp_path / "01_works.ipynb").read_text() == before
    with pytest.raises(course.NotebookFailed, match=r"02_fails\.ipynb: ZeroDivisionError: division by zero"):
        next(executing)
    (cell,) = nbformat.read(copy.with_name("02_fails.ipynb"), as_version=4).cells
    assert cell.outputs[0]["ename"] == "ZeroDivisionError"


NOTEBOOKS = sorted(course.NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The copies to hand out, by their names."""
    written = course.write_student_copies(tmp_path_factory.mktemp("class") / "new" / "copies")
    return {copy.name: copy for copy in written}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_handed_out_has_neither_solutions_nor_outputs_and_needs_none(path, copies):
    whole = nbformat.read(path, as_version=4)
    handed_out = nbformat.read(copies[path.name], as_version=4)
    solutions = [cell for cell in whole.cells if "solution" in cell.metadata.get("tags", ())]
    assert len(solutions) >= 3
    assert len(handed_out.cells) == len(whole.cells) - len(solutions)
    text = "\n".join(cell.source for cell in handed_out.cells)
    assert any(course.SOLUTION_NOTE in cell.source for cell in whole.cells)
    assert course.SOLUTION_NOTE not in text
    assert "# Solution" not in text
    code = [cell for cell in handed_out.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    # What the solutions define, nothing else uses.
    defined = set().union(*(names(cell.source, ast.Store) for cell in solutions))
    elsewhere = "\n".join(cell.source for cell in code)
    assert not (defined & names(elsewhere, ast.Load)) - names(elsewhere, ast.Store)


def names(source, context):
    """The names that a piece of code binds (ast.Store) or uses (ast.Load), imports and functions among them."""
    tree = ast.parse(source)
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}
    if context is ast.Store:
        found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        found |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        found |= {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
    return found
