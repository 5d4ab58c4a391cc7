"""Execute the course's notebooks in order, and leave executed copies and HTML pages of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CELL_TIMEOUT_S = {"smoke": 120, "laptop": 1_800, "full": 86_400}
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute_course(profile: str, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Execute every notebook in a fresh kernel.

    Args:
        profile: smoke, laptop or full.
        folder: where the copies go; made if absent.

    Yields:
        The executed copy and the HTML page of each notebook, in the course's order.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the copies before are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = execute(nbformat.read(path, as_version=4), profile)
        copy, page = folder / path.name, folder / f"{path.stem}.html"
        nbformat.write(notebook, copy)
        page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
        yield copy, page


def execute(notebook: nbformat.NotebookNode, profile: str) -> nbformat.NotebookNode:
    """Execute a notebook in the course's kernel; where it shows a widget, only its static picture is kept."""
    client = NotebookClient(
        notebook,
        kernel_name="labutils",
        timeout=CELL_TIMEOUT_S[profile],
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": NOTEBOOKS}},
    )
    client.execute(env=os.environ | {"LABUTILS_PROFILE": profile, "TQDM_DISABLE": "1"})
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
    return notebook
