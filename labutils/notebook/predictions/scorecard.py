"""What came of a notebook: predictions against measurements, checks passed, minutes."""

import html
from collections.abc import Sequence

from labutils.errors import SettingError
from labutils.notebook.predictions.question import Question
from labutils.notebook.record import Record
from labutils.notebook.showing import html_table

HEAD = ("Question", "You said", "Measured", "")


class Scorecard:
    """The scorecard as it is now, shown as a table or as text.

    Its minutes are the time of work: the sum of the times between one event and the next, from the notebook's first
    run on. Events are its first cell, answers, measurements and checks. A time of more than half an hour between two
    of them counts as a pause, and so not at all. As long as nothing is answered, no minutes are shown.

    Args:
        questions: those that were asked, in order.
        record: what is kept of the notebook.
    """

    def __init__(self, questions: Sequence[Question], record: Record):
        kept = record.read()
        self.rows = [question_row(question, kept["predictions"].get(question.name, {})) for question in questions]
        self.answered = sum(question.value is not None for question in questions)
        self.checks = {name.removeprefix("check_"): verdict for name, verdict in sorted(kept["checks"].items())}
        self.passed = sum(verdict["right"] for verdict in self.checks.values())
        self.minutes = kept["seconds"] / 60

    def summary(self) -> str:
        """How many predictions were made and checks passed, in how many minutes."""
        counts = f"Predictions made: {self.answered} of {len(self.rows)}. Checks passed: {self.passed} of "
        minutes = f" Minutes of work: {self.minutes:.0f}." if self.answered or self.passed else ""
        return f"{counts}{len(self.checks)}.{minutes}"

    def verdicts(self) -> list[str]:
        """A line for each check that was run."""
        return [f"{'✓' if found['right'] else '✗'} {name}: {found['message']}" for name, found in self.checks.items()]

    def _repr_html_(self) -> str:
        checks = "".join(f"<li>{html.escape(line)}</li>" for line in self.verdicts())
        listed = f'<ul style="list-style:none; padding-left:0">{checks}</ul>' if checks else ""
        return f"<p><b>{self.summary()}</b></p>{html_table([HEAD, *self.rows])}{listed}"

    def __repr__(self) -> str:
        rows = []
        for question, said, measured, difference in self.rows:
            answers = [f"You said: {said}", f"measured: {measured}", *[difference] * bool(difference)]
            rows.append(f"- {question} {'; '.join(answers)}")
        return "\n".join([self.summary(), *rows, *self.verdicts()])


def question_row(question: Question, entry: dict) -> tuple[str, ...]:
    """A question, what was said and what was measured, in words."""
    value, kind = question.value, question.kind
    said = "–" if value is None else kind.words(value) + (" (after the measurement)" if entry.get("late") else "")
    try:
        kind.check(question.name, entry.get("measured"))
    except SettingError:  # nothing, or what an earlier edition of the course measured
        return (question.text, said, "–", "")
    difference = "" if value is None else kind.difference(value, entry["measured"])
    return (question.text, said, kind.words(entry["measured"]), difference)
