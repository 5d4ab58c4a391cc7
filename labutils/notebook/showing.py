"""What is shown in a notebook: source code, tables of text, and widgets that leave something where no kernel runs."""

import html
import inspect
from collections.abc import Callable, Sequence

import anywidget
from IPython.display import Code, DisplayHandle, display

WIDGET = "application/vnd.jupyter.widget-view+json"


def show_source(thing: Callable | type) -> Code:
    """The source of a function or class as it is installed, highlighted."""
    return Code(inspect.getsource(thing), language="python")


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as an HTML table; the first line is its head."""
    rows = []
    for tag, cells in zip(["th", *["td"] * len(lines)], lines, strict=False):
        written = (f'<{tag} style="text-align:left">{html.escape(cell)}</{tag}>' for cell in cells)
        rows.append(f"<tr>{''.join(written)}</tr>")
    return f"<table>{''.join(rows)}</table>"


class Widget(anywidget.AnyWidget):
    """A widget with a stand-in: an output for wherever the widget can't run, kept up to date in the notebook's file."""

    stand_in: DisplayHandle | None = None

    def stand_in_bundle(self) -> dict[str, object]:
        """The stand-in as it is now, by MIME types."""
        raise NotImplementedError

    def update_stand_in(self) -> None:
        if self.stand_in is not None:
            self.stand_in.update(self.stand_in_bundle(), raw=True)

    def _ipython_display_(self) -> None:
        # Two outputs: of one with both, JupyterLab would show the widget's error in place of the stand-in.
        self.stand_in = display(self.stand_in_bundle(), raw=True, display_id=True)
        display({WIDGET: {"version_major": 2, "version_minor": 0, "model_id": self.model_id}}, raw=True)
