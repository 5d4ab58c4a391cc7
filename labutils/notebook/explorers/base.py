"""What all explorers have in common."""

import base64
import html
import time
from collections.abc import Mapping, Sequence

import ipywidgets

from labutils.errors import SettingError
from labutils.notebook.explorers.controls import code_link, control, describe, labelled

REMEMBERED = 5  # earlier choices that stay in the figure


class Explorer(ipywidgets.VBox):
    """Settings to choose, buttons, a status line, a figure, and the code that does the same.

    Each move is answered at once. An error shows in the status line, and the figure stays as it was. Of several moves
    in a row, JupyterLab holds back all but the newest until the first has been answered.

    Args:
        choices: the values each setting offers, by its name, such as {"depth": [1, 2, 5]}. Ordered numbers and lists
            of numbers become a slider, anything else a row of buttons.
        start: the values to start from, by the setting's name; without one a setting starts from its first value.
        buttons: to go beside Reset.
        gauges: what stands between the buttons and the status line.

    Attributes:
        controls: the sliders and buttons, by the settings' names.
        status: what there is to say of the choice.
        figure: the picture, which also stands where widgets can't run.
        code: a cell that does the same without widgets.
        milliseconds: how long the last move took, from the choice to the finished picture.

    Raises:
        SettingError: no choices, or a setting without values.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence],
        start: Mapping[str, object],
        *,
        buttons: Sequence[ipywidgets.Button] = (),
        gauges: Sequence[ipywidgets.Widget] = (),
    ):
        if not choices:
            raise SettingError("choices", choices, "one setting or more, with the values it offers")
        self.controls = {name: control(name, values, start.get(name)) for name, values in choices.items()}
        self.status = ipywidgets.HTML()
        self.figure = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", width="850px"))
        self.code = ipywidgets.HTML()
        self.milliseconds = 0.0
        self.reset_button = ipywidgets.Button(description="Reset", icon="refresh", tooltip="Forget earlier choices")
        self.reset_button.on_click(lambda _: self.reset())
        for widget in self.controls.values():
            widget.observe(lambda _: self.move(), names="value")
        row = ipywidgets.HBox([*buttons, self.reset_button])
        controls = [labelled(name, widget) for name, widget in self.controls.items()]
        super().__init__([*controls, row, *gauges, self.status, self.figure, self.code])
        self.move()

    def choice(self) -> dict[str, object]:
        """The settings as they are chosen now."""
        return {name: widget.value for name, widget in self.controls.items()}

    def label(self, choice: Mapping[str, object]) -> str:
        """What a choice is called in the figure and in the status line."""
        return describe(choice)

    def move(self) -> None:
        """Answer the choice as it is now."""
        start = time.perf_counter()
        try:
            self.code.value = code_link(self.as_code())
            self.answer()
        except Exception as error:
            self.complain(error)
        self.milliseconds = 1_000 * (time.perf_counter() - start)

    def answer(self) -> None:
        """Find out what the choice leads to, say it and draw it."""
        raise NotImplementedError

    def as_code(self) -> str:
        """The code of a cell that gives the choice's answer."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the earlier choices."""
        raise NotImplementedError

    def complain(self, error: Exception) -> None:
        """Show an error where the learner looks."""
        self.status.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        # Where no widget can run (a printed page, a web view of the file), the figure stands in for it.
        picture = base64.b64encode(self.figure.value).decode()
        return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}


def remember(kept: dict[str, object], label: str, what: object) -> None:
    """Make it the newest of what is kept, and forget the oldest."""
    kept.pop(label, None)
    kept[label] = what
    if len(kept) > REMEMBERED:
        del kept[next(iter(kept))]
