"""A question to be answered before a figure is seen, as a widget."""

import html
from pathlib import Path

import traitlets

from labutils.errors import SettingError
from labutils.notebook.predictions.kinds import Curve, Kind, Number
from labutils.notebook.record import Record
from labutils.notebook.showing import Widget

FOLDER = Path(__file__).parent
PREDICTION = "application/vnd.labutils.prediction+json"  # how an answer travels in the notebook's file
# JupyterLab shows a widget's error where its kernel has gone; the question and the answer above it say all there is.
ASKED = """\
<div class="labutils-asked">
<style>.jp-OutputArea:has(> * .labutils-asked) .jupyter-widgets:not(:has(*)) {{ display: none }}</style>
<p><b>Predict.</b> {question}</p>
<p>{answer}</p>
</div>"""


class Question(Widget):
    """A question, the controls to answer it, and the answer that is kept.

    Nothing waits for the answer. The notebook's file holds the question and the answer as text, too. What the controls
    look like is in question.js and question.css.

    Args:
        name: what the prediction is called in code.
        question: the text, as students read it.
        kind: what is asked for.
        record: where the answer is kept.
    """

    _esm = FOLDER / "question.js"
    _css = FOLDER / "question.css"

    text = traitlets.Unicode().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    fields = traitlets.List().tag(sync=True)
    answers = traitlets.List().tag(sync=True)  # one a field; None where there is none so far
    said = traitlets.Unicode().tag(sync=True)  # of the last answer: kept, or why not

    def __init__(self, name: str, question: str, kind: Kind, record: Record):
        self.name, self.kind, self.record = name, kind, record
        value = self.value
        answers = [None] * len(kind.fields) if value is None else value if isinstance(kind, Curve) else [value]
        super().__init__(text=question, fields=kind.fields, answers=answers, unit=getattr(kind, "unit", ""))
        self.on_msg(lambda _, message, __: self.take(message["place"], message["answer"]))

    @property
    def value(self) -> object:
        """What is predicted: a number, a text, or a number for each place of a curve; None where nothing is so far."""
        value = self.record.read()["predictions"].get(self.name, {}).get("value")
        try:
            return None if value is None else self.checked(value)
        except SettingError:  # of an earlier edition of the course, which asked for something else
            return None

    def checked(self, value: object) -> object:
        """A value that can be predicted.

        Raises:
            SettingError: it can't be.
        """
        self.kind.check(self.name, value)
        numbers = {Number: [value], Curve: value}.get(type(self.kind), [])
        if not all(self.kind.low <= number <= self.kind.high for number in numbers):
            raise SettingError(self.name, value, self.kind.asked)
        return value

    def take(self, place: int, answer: object) -> None:
        """Take what was answered in the browser, and keep the prediction; one that can't be leaves none.

        Args:
            place: of the control among the fields, from 0. Each sends its own answer alone, so that answers which meet
                on the way do not undo one another.
            answer: a number or a text; None where it was taken back.
        """
        answers = self.answers = [answer if each == place else kept for each, kept in enumerate(self.answers)]
        value = None if None in answers else answers if isinstance(self.kind, Curve) else answers[0]
        said = "" if value is not None else "It is kept once everything is set."
        try:
            value = None if value is None else self.checked(value)
        except SettingError as error:
            value, said = None, f"Not kept. Allowed: {error.allowed}."
        with self.record.changed() as kept:
            entry = kept["predictions"].setdefault(self.name, {})
            entry |= {"value": value, "late": "measured" in entry}
        self.said = said or "Kept."
        self.send({"said": self.said})  # also where it is what was said before
        self.update_stand_in()

    def __repr__(self) -> str:
        return f"Prediction asked: {self.text} ({self.kind.asked}). {self.answer()}"

    def answer(self) -> str:
        """The prediction in words."""
        return "No prediction so far." if self.value is None else f"Your prediction: {self.kind.words(self.value)}."

    def stand_in_bundle(self) -> dict[str, object]:
        """The question and the answer, for the notebook's file."""
        page = ASKED.format(question=html.escape(self.text), answer=html.escape(self.answer()))
        kept = {"notebook": self.record.notebook, "name": self.name, "value": self.value}
        return {"text/html": page, "text/plain": repr(self), PREDICTION: kept}
