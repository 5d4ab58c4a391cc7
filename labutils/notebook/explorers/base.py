"""What all explorers have in common."""

import html
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import traitlets

from labutils.errors import SettingError, UnknownSetting
from labutils.notebook.plots.style import as_html
from labutils.notebook.showing import Widget

FOLDER = Path(__file__).parent
REMEMBERED = 5  # earlier choices that stay in the figure
WORDS = {None: "none", True: "yes", False: "no"}  # of values, in a label
# Where a widget's kernel has gone, JupyterLab has nothing but an error's words. They are hidden: these say more.
STAND_IN = """\
<div id="{name}" class="labutils-stand-in">
<style>
.jp-OutputArea-child:has(.labutils-stand-in) + .jp-OutputArea-child .jp-OutputArea-output:not(:has(*)) {{
  display: none;
}}
</style>
{picture}
<p>Not connected: run this cell to explore.</p>
</div>"""


def synced(trait: traitlets.TraitType) -> traitlets.TraitType:
    """A trait that the browser has as well."""
    return trait.tag(sync=True)


class Explorer(Widget):
    """Settings to choose, buttons, a status line, a figure, and the code that does the same.

    Each move is answered at once. An error shows in the status line, and the figure stays as it was. Of several moves
    in a row, JupyterLab holds back all but the newest until the first has been answered. What it all looks like is in
    explorer.js and explorer.css.

    Args:
        choices: the values each setting offers, by its name, such as {"depth": [1, 2, 5]}. Ordered numbers and lists
            of numbers become a slider, anything else a row of buttons.
        start: the values to start from, by the setting's name; without one a setting starts from its first value.

    Attributes:
        status: what there is to say of the choice, as HTML.
        picture: the figure: its "png", and "alt", what is to be seen in it.
        code: a cell that does the same without widgets.
        enabled: the buttons that can be pressed now.
        milliseconds: how long the last move took, from the choice to the finished picture.

    Raises:
        SettingError: no choices, or a setting without values.
    """

    _esm = FOLDER / "explorer.js"
    _css = FOLDER / "explorer.css"

    ACTIONS: Mapping[str, str] = MappingProxyType({"reset": "Reset"})  # the methods that buttons call, and their words

    offers = synced(traitlets.List())
    places = synced(traitlets.Dict())  # of the chosen values among those that are offered, by the setting's name
    unused = synced(traitlets.List())  # the settings that mean nothing now
    actions = synced(traitlets.Dict())
    enabled = synced(traitlets.List(["reset"]))
    progress = synced(traitlets.Dict())  # of what is in training: "words", and "share" from 0 to 1
    status = synced(traitlets.Unicode())
    picture = synced(traitlets.Dict({"png": b"", "alt": ""}))
    code = synced(traitlets.Unicode())
    stand_in_id = synced(traitlets.Unicode())

    def __init__(self, choices: Mapping[str, Sequence], start: Mapping[str, object]):
        if not choices:
            raise SettingError("choices", choices, "one setting or more, with the values it offers")
        for name, values in choices.items():
            if not values:
                raise SettingError(f"choices.{name}", values, "one value or more")
        self.choices = {name: list(values) for name, values in choices.items()}
        self.milliseconds = 0.0
        super().__init__(
            offers=offers(self.choices),
            places={
                name: values.index(start[name]) if name in start and start[name] in values else 0
                for name, values in self.choices.items()
            },
            actions=dict(self.ACTIONS),
        )
        self.stand_in_id = f"labutils-{self.model_id}"
        self.on_msg(lambda _, message, __: self.press(message["press"]))
        self.observe(lambda _: self.move(), names="places")
        self.move()

    def choice(self) -> dict[str, object]:
        """The settings as they are chosen now."""
        return {name: values[self.places[name]] for name, values in self.choices.items()}

    def choose(self, **values: object) -> None:
        """Choose values, as the sliders and buttons do.

        Raises:
            UnknownSetting: a setting that is not offered.
            SettingError: a value that is not offered.
        """
        for name, value in values.items():
            if name not in self.choices:
                raise UnknownSetting(name, self.choices)
            if value not in self.choices[name]:
                raise SettingError(name, value, f"one of {self.choices[name]}")
        self.places = self.places | {name: self.choices[name].index(value) for name, value in values.items()}

    def label(self, choice: Mapping[str, object]) -> str:
        """What a choice is called in the figure and in the status line."""
        return choice_label(choice)

    def press(self, action: str) -> None:
        """What a button does, where it can be pressed."""
        if action in self.enabled:
            getattr(self, action)()

    def move(self) -> None:
        """Answer the choice as it is now."""
        start = time.perf_counter()
        try:
            self.code = self.as_code()
            self.answer()
        except Exception as error:
            self.complain(error)
        self.milliseconds = 1_000 * (time.perf_counter() - start)
        self.update_stand_in()

    def answer(self) -> None:
        """Find out what the choice leads to, say it and draw it."""
        raise NotImplementedError

    def as_code(self) -> str:
        """The code of a cell that gives the choice's answer."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the earlier choices."""
        raise NotImplementedError

    def show(self, png: bytes, alt: str) -> None:
        """Show a figure: the content of its PNG file, and what is to be seen."""
        self.picture = {"png": png, "alt": alt}

    def complain(self, error: Exception) -> None:
        """Show an error where the learner looks."""
        self.status = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"

    def stand_in_bundle(self) -> dict[str, str]:
        """What stands for the explorer where it can't run: its picture, and how it would run."""
        png, alt = self.picture["png"], self.picture["alt"]
        picture = as_html(png, alt) if png else self.status  # of a first answer that failed
        return {"text/html": STAND_IN.format(name=self.stand_in_id, picture=picture), "text/plain": alt or self.status}


def remember(kept: dict[str, object], label: str, what: object) -> None:
    """Make it the newest of what is kept, and forget the oldest."""
    kept.pop(label, None)
    kept[label] = what
    if len(kept) > REMEMBERED:
        del kept[next(iter(kept))]


def offers(choices: Mapping[str, list]) -> list[dict[str, object]]:
    """What explorer.js makes the settings' sliders and buttons of; numbers, and lists of them, have an order."""
    return [
        {
            "name": name,
            "label": name.replace("_", " "),
            "words": [in_words(value) for value in values],
            "ordered": all(isinstance(value, int | float | list) and not isinstance(value, bool) for value in values),
        }
        for name, values in choices.items()
    ]


def choice_label(choice: Mapping[str, object]) -> str:
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
