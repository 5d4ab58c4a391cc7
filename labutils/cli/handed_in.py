"""Run one handed-in notebook, and say what became of it.

`labutils grade` starts this file as a process of its own, by its path, so that it imports nothing of labutils and can
limit itself before anything large is loaded. The notebook's kernel inherits the limits. It reads its orders from the
JSON file that is its one argument: "notebook", "outcome" (the JSON file to write), "profile", "cell_s" (how long a cell
may take), and "limits" (by the names of `resource`).
"""

import json
import re
import sys
from contextlib import suppress
from pathlib import Path

PREDICTION = "application/vnd.labutils.prediction+json"  # as labutils.notebook.predictions writes it
SOLUTION = "solution"  # the tag of cells that hold the course's own answers
# The checks of this kernel write their verdicts down, whatever the notebook itself opens.
OPENING = "from labutils.notebook.record import open_record\n_ = open_record('handed-in')"
LONGEST = 300  # characters of an error


def limit(limits: dict[str, int]) -> None:
    """Limit this process and those it will start, as far as the system knows these limits."""
    with suppress(ImportError):  # there is none on Windows
        import resource

        for name, value in limits.items():
            with suppress(AttributeError, ValueError, OSError):
                kind = getattr(resource, name)
                hard = resource.getrlimit(kind)[1]
                highest = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (highest, highest))


def read(path: str, profile: str) -> tuple[object, dict[str, object]]:
    """A notebook's code cells, without outputs and without the course's own answers; and the predictions in it."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    bundles = [output.get("data", {}).get(PREDICTION) for cell in code for output in cell.outputs]
    predictions = {bundle["name"]: bundle["value"] for bundle in bundles if bundle}
    cells = [nbformat.v4.new_code_cell(OPENING)]
    for number, cell in enumerate(code, start=1):
        if SOLUTION not in cell.metadata.get("tags", ()):
            source = re.sub(r"^PROFILE = .*", f'PROFILE = "{profile}"', cell.source, flags=re.MULTILINE)
            cells.append(nbformat.v4.new_code_cell(source, metadata={"number": number}))
    return nbformat.v4.new_notebook(cells=cells), predictions


def execute(notebook: object, cell_s: float) -> str:
    """Execute a notebook to its end, whatever its cells do; the first thing that went wrong, or nothing."""
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    errors, place = [], [0]

    def begin(cell, cell_index):
        place[0] = cell.metadata.get("number", 0)

    def end(cell, cell_index, execute_reply):
        cell.outputs = []  # garbage is not kept
        content = execute_reply["content"]
        if content["status"] == "error":
            stopped = content["ename"] == "KeyboardInterrupt"  # as nbclient does, when the cell's time is over
            what = f"stopped after {cell_s:g} s" if stopped else f"{content['ename']}: {content['evalue']}"
            errors.append(f"code cell {place[0]}: {what}")

    client = NotebookClient(
        notebook,
        kernel_name="labutils",
        timeout=cell_s,
        interrupt_on_timeout=True,
        allow_errors=True,
        record_timing=False,
        store_widget_state=False,
        on_cell_execute=begin,
        on_cell_executed=end,
    )
    try:
        client.execute()
    except DeadKernelError:
        errors.append(f"code cell {place[0]}: the kernel ended")
    return errors[0] if errors else ""


def main(orders: dict[str, object]) -> None:
    limit(orders["limits"])
    outcome = {"error": "", "asked": 0, "predicted": 0}
    try:
        notebook, predictions = read(orders["notebook"], orders["profile"])
        outcome["asked"] = len(predictions)
        outcome["predicted"] = sum(value is not None for value in predictions.values())
        outcome["error"] = execute(notebook, orders["cell_s"])
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome["error"] = " ".join(outcome["error"].split())[:LONGEST]
    Path(orders["outcome"]).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
