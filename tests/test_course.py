import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from labutils import course

CODE = "import ipywidgets, os\nprint(os.environ['LABUTILS_PROFILE'])\nipywidgets.IntSlider(description='depth')"


def write_notebook(path, code):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata.kernelspec = {"name": "labutils", "display_name": "Deep-learning labs", "language": "python"}
    nbformat.write(notebook, path)


def test_notebooks_are_executed_in_order_until_one_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path)
    write_notebook(tmp_path / "02_fails.ipynb", "1 / 0")
    write_notebook(tmp_path / "01_works.ipynb", CODE)
    before = (tmp_path / "01_works.ipynb").read_text()
    executing = course.execute_course("laptop", tmp_path / "build")
    copy, page = next(executing)
    (cell,) = nbformat.read(copy, as_version=4).cells
    assert cell.execution_count == 1
    assert cell.outputs[0]["text"] == "laptop\n"
    assert course.WIDGET not in cell.outputs[1]["data"]
    assert "IntSlider" in cell.outputs[1]["data"]["text/plain"]
    assert "laptop" in page.read_text(encoding="utf-8")
    assert (tmp_path / "01_works.ipynb").read_text() == before
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        next(executing)
