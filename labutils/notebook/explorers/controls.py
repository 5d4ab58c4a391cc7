"""The widgets by which an explorer's settings are chosen, and the words it has for them."""

import html
from collections.abc import Mapping, Sequence

import ipywidgets

from labutils.errors import SettingError

LABEL_STYLE = {"description_width": "9em"}
WORDS = {None: "none", True: "yes", False: "no"}


def control(name: str, values: Sequence, start: object) -> ipywidgets.Widget:
    """A slider for numbers, buttons for anything else, at `start` where that is one of the values.

    Raises:
        SettingError: there are no values.
    """
    if not values:
        raise SettingError(f"choices.{name}", values, "one value or more")
    index = values.index(start) if start in values else 0
    label = name.replace("_", " ")
    options = [(in_words(value), value) for value in values]
    if all(isinstance(value, int | float | list) and not isinstance(value, bool) for value in values):
        layout = ipywidgets.Layout(width="30em")
        return ipywidgets.SelectionSlider(
            options=options, index=index, description=label, style=LABEL_STYLE, layout=layout
        )
    return ipywidgets.ToggleButtons(options=options, index=index, style={"button_width": "8em"}, tooltip=label)


def labelled(name: str, widget: ipywidgets.Widget) -> ipywidgets.Widget:
    """A control with its label to the left: a slider has one, and beside buttons JupyterLab would put it on top."""
    if widget.description:
        return widget
    label = f'<div style="width: {LABEL_STYLE["description_width"]}; text-align: right">{name.replace("_", " ")}</div>'
    return ipywidgets.HBox([ipywidgets.HTML(label), widget])


def describe(choice: Mapping[str, object]) -> str:
    """A choice's label in the figure, such as "depth 5, normalization none"."""
    return ", ".join(f"{name.replace('_', ' ')} {in_words(value)}" for name, value in choice.items())


def in_words(value: object) -> str:
    """A setting's value as a label shows it."""
    if isinstance(value, list):
        return "-".join(map(str, value))
    return WORDS[value] if value is None or isinstance(value, bool) else str(value).replace("_", " ")


def in_code(settings: Mapping[str, object]) -> str:
    """Settings as a call's arguments, such as "depth=5, normalization=None"."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def code_link(code: str) -> str:
    """A folded piece of code, and a link that copies it, as HTML."""
    copy = (
        "const code = this.previousElementSibling; code.open = true; "
        "getSelection().selectAllChildren(code.querySelector('pre')); document.execCommand('copy'); "
        "this.textContent = 'Copied'; return false"
    )
    return (
        f"<details><summary>The same in code</summary><pre>{html.escape(code)}</pre></details>"
        f'<a href="#" style="text-decoration: underline" onclick="{copy}">Copy the code</a>'
    )
