"""The course as a whole: execute its notebooks, publish them as pages, hand them out without solutions."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor

from labutils.files import home

NOTEBOOKS = home() / "notebooks"
CELL_TIMEOUT_S = {"smoke": 120, "laptop": 1_800, "full": 86_400}
SOLUTION_NOTE = ", and a solution in the folded cell below it (click the bar)"
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookFailed(RuntimeError):
    """A cell of a notebook raised an error."""


def execute_course(profile: str, folder: Path) -> Iterator[Path]:
    """Execute every notebook in a fresh kernel, then write the course's site.

    Args:
        profile: smoke, laptop or full.
        folder: where the executed copies go, and in its folder `site` their pages; made if absent.

    Yields:
        The executed copy of each notebook, in the course's order, and last the site's front page.

    Raises:
        NotebookFailed: a cell failed; the copies before are there, and the copy that failed.
        SiteFailed: the site has a fault, such as a link that leads nowhere.
        ModuleNotFoundError: what writes the site is not installed.
    """
    from labutils.cli.site import build_site  # here: what it imports is not needed for anything else

    folder.mkdir(parents=True, exist_ok=True)
    notebooks = read_notebooks()
    for path, notebook in notebooks.items():
        copy = folder / path.name
        try:
            execute(notebook, profile)
        except CellExecutionError as error:
            raise NotebookFailed(f"{path.name}: {error.ename}: {error.evalue} (its traceback is in {copy})") from error
        finally:
            nbformat.write(notebook, copy)
        yield copy
    yield build_site(notebooks, profile, folder)


def publish_committed(folder: Path) -> Path:
    """Write the course's site from the notebooks as they are committed, and return its front page."""
    from labutils.cli.site import build_site

    return build_site(read_notebooks(), "laptop", folder)  # the profile they are committed at


def read_notebooks() -> dict[Path, nbformat.NotebookNode]:
    """The course's notebooks in order, by their paths."""
    return {path: nbformat.read(path, as_version=4) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}


def execute(notebook: nbformat.NotebookNode, profile: str) -> nbformat.NotebookNode:
    """Execute a notebook in place, in the course's kernel; where it shows a widget, only its static picture is kept."""
    client = NotebookClient(
        notebook,
        kernel_name="labutils",
        timeout=CELL_TIMEOUT_S[profile],
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # else where an output is cut into pieces depends on the moment
        resources={"metadata": {"path": NOTEBOOKS}},
    )
    with TemporaryDirectory(prefix="labutils-answers-") as answers:  # what is published holds nobody's predictions
        client.execute(env=os.environ | {"LABUTILS_PROFILE": profile, "TQDM_DISABLE": "1", "LABUTILS_ANSWERS": answers})
    for cell in notebook.cells:
        for output in list(cell.get("outputs", ())):
            if output.get("data", {}).pop(WIDGET, None) and not output["data"]:
                cell.outputs.remove(output)  # its picture is an output of its own
    return notebook


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook to hand out: no solutions, no outputs."""
    for preprocessor in (TagRemovePreprocessor(remove_cell_tags={"solution"}), ClearOutputPreprocessor()):
        notebook, _ = preprocessor.preprocess(notebook, {})
    for cell in notebook.cells:
        cell.source = cell.source.replace(SOLUTION_NOTE, "")
    return notebook


def write_student_copies(folder: Path) -> list[Path]:
    """Write copies of the notebooks to hand out, without solutions or outputs.

    Args:
        folder: where they go; made if absent.

    Returns:
        The copies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for path, notebook in read_notebooks().items():
        copies.append(folder / path.name)
        nbformat.write(without_solutions(notebook), copies[-1])
    return copies
