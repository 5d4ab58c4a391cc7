"""The predictions of one notebook: ask, measure, draw, and sum up."""

from collections.abc import Mapping, Sequence

from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from labutils.errors import SettingError, UnknownSetting, check_number
from labutils.notebook.plots.style import LINE_WIDTH, OTHERS, Chart
from labutils.notebook.predictions.kinds import Choice, Curve, Kind, Number
from labutils.notebook.predictions.question import Question
from labutils.notebook.predictions.scorecard import Scorecard
from labutils.notebook.record import open_record

LABEL = "your prediction"
LOOK = {"color": OTHERS[3], "ls": (0, (2, 1)), "lw": LINE_WIDTH}  # dotted lines are kept for theory


class Notebook:
    """The predictions of one notebook.

    A question shows its controls and returns at once; whether it is answered changes nothing else. Answers are kept in
    a local file (see `labutils.notebook.record`), and so are measurements, and the verdicts of the checks that run
    from now on in this kernel.

    Args:
        name: such as "01".

    >>> predict = lab.predictions.Notebook("01")
    >>> predict.number("floor", "How often is the best constant answer right?", unit="%", low=0, high=100)
    >>> predict.measured("floor", 11.35)
    >>> predict.scorecard()
    """

    def __init__(self, name: str):
        self.record = open_record(name)
        self.questions: dict[str, Question] = {}

    def number(self, name: str, question: str, *, low: float, high: float, unit: str = "") -> None:
        """Ask for one number.

        Args:
            name: what the prediction is called in code.
            question: the text, as students read it.
            low, high: the ends of what can be answered.
            unit: such as "%".

        Raises:
            SettingError: ends that are no numbers in their order.
        """
        check_ends(low, high)
        self.ask(name, question, Number(low, high, unit))

    def choice(self, name: str, question: str, options: Sequence[str]) -> None:
        """Ask for one of several answers.

        Args:
            name, question: as in `number`.
            options: the answers, two or more different texts.

        Raises:
            SettingError: other options.
        """
        if len(set(options)) != len(options) or len(options) < 2 or not all(isinstance(text, str) for text in options):
            raise SettingError("options", options, "two or more different texts")
        self.ask(name, question, Choice(tuple(options)))

    def curve(
        self,
        name: str,
        question: str,
        *,
        at: Mapping[str, Sequence[float]],
        low: float,
        high: float,
        unit: str = "",
    ) -> None:
        """Ask for a curve, drawn by a slider at each of a few places.

        Args:
            name, question, low, high, unit: as in `number`.
            at: the places, by what they are: {"depth": [1, 10, 40]}.

        Raises:
            SettingError: ends or places that are no numbers in their order.
        """
        check_ends(low, high)
        if len(at) != 1:
            raise SettingError("at", at, 'one name with its places, such as {"depth": [1, 10, 40]}')
        ((across, places),) = at.items()
        for place in places:
            check_number(f"at.{across}", place)
        if len(places) < 2 or sorted(set(places)) != list(places):
            raise SettingError(f"at.{across}", places, "two or more numbers, each larger than the one before")
        self.ask(name, question, Curve(across, tuple(places), low, high, unit))

    def ask(self, name: str, question: str, kind: Kind) -> None:
        """Show a question of any kind."""
        self.questions[name] = Question(name, question, kind, self.record)
        display(self.questions[name])

    def question(self, name: str) -> Question:
        """A question that was asked.

        Raises:
            UnknownSetting: none has that name.
        """
        if name not in self.questions:
            raise UnknownSetting(name, self.questions)
        return self.questions[name]

    def __getitem__(self, name: str) -> object:
        """What is predicted: a number, a text, or a curve's numbers; None where nothing is so far.

        Raises:
            UnknownSetting: as in `question`.
        """
        return self.question(name).value

    def measured(self, name: str, value: object) -> None:
        """Say what was measured, for the scorecard.

        Args:
            name: of a question that was asked.
            value: a number in the question's unit, one of the options, or a curve's numbers, in their order.

        Raises:
            UnknownSetting: as in `question`.
            SettingError: another value.
        """
        question = self.question(name)
        value = as_plain(value)
        question.kind.check(name, value)
        with self.record.changed() as kept:
            kept["predictions"].setdefault(name, {})["measured"] = value

    def draw(self, name: str, figure: Chart, *, panel: int = 0, label: str = LABEL) -> Chart:
        """Draw a prediction into a figure: a curve through its places, a number as a level line.

        Nothing is drawn where there is no prediction so far, and nothing for a choice.

        Args:
            name: of a question that was asked.
            figure: a figure of `lab.plots`. Where it shows fractions as percentages, so is a prediction in %.
            panel: which of its panels, counted from 0.
            label: what stands at the line's end; where two are drawn, each needs its own.

        Returns:
            The figure.

        Raises:
            UnknownSetting: as in `question`.
        """
        kind, value = self.question(name).kind, self.question(name).value
        if value is None or isinstance(kind, Choice):
            return figure
        axis = figure.axes[panel]
        fractions = kind.unit == "%" and isinstance(axis.yaxis.get_major_formatter(), PercentFormatter)
        scale = axis.yaxis.get_major_formatter().xmax / 100 if fractions else 1
        low, high = axis.get_ylim()
        if isinstance(kind, Curve):
            heights = [scale * number for number in value]
            (line,) = axis.plot(kind.places, heights, marker="X", markersize=7, markeredgewidth=0, **LOOK)
        else:
            heights = [scale * value]
            line = axis.axhline(*heights, **LOOK)
        if not axis.get_autoscaley_on():  # a prediction far off is to be seen, too
            axis.set_ylim(min(low, *heights), max(high, *heights))
        name_beside_others(figure, axis, {label: line})
        return figure

    def scorecard(self) -> Scorecard:
        """What came of the notebook so far."""
        return Scorecard(list(self.questions.values()), self.record)


def as_plain(value: object) -> object:
    """Numbers of NumPy, pandas and torch as Python's own, which JSON can hold."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [as_plain(part) for part in value] if isinstance(value, list | tuple) else value


def check_ends(low: float, high: float) -> None:
    """Accept a lower and an upper end.

    Raises:
        SettingError: others.
    """
    check_number("low", low)
    check_number("high", high, low, open_ends="low")


def name_beside_others(figure: Chart, axis: Axes, line: dict[str, Line2D]) -> None:
    """Name a prediction's line together with the other lines of its panel, so that no name covers another."""
    for axes, lines, _ in figure.named[figure.written :]:
        if axes is axis:
            lines |= line
            return
    figure.name_lines(axis, line)
