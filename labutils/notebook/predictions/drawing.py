"""A prediction, drawn into the figure that shows what was measured."""

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from labutils.notebook.plots.style import LINE_WIDTH, OTHERS, Chart, write_names
from labutils.notebook.predictions.kinds import Curve, Number
from labutils.notebook.predictions.question import Question

LABEL = "your prediction"
LOOK = {"color": OTHERS[3], "ls": (0, (2, 1)), "lw": LINE_WIDTH}  # dotted lines are kept for theory


def draw(axis: Axes, question: Question, *, label: str = LABEL) -> None:
    """Draw a prediction beside what was measured: a curve through its places, a number as a level line.

    Nothing is drawn where there is no prediction so far, and nothing for a choice.

    Args:
        axis: of a figure of `lab.plots`, or any other of matplotlib's. Where it shows fractions as percentages, a
            prediction in % is drawn as a fraction.
        question: whose answer to draw.
        label: what stands at the line's end; where two are drawn, each needs its own.
    """
    kind, value = question.kind, question.value
    if value is None or not isinstance(kind, Number | Curve):
        return
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
    if isinstance(axis.figure, Chart):
        name_beside_others(axis.figure, axis, {label: line})
    else:
        write_names(axis, {label: line})


def name_beside_others(figure: Chart, axis: Axes, line: dict[str, Line2D]) -> None:
    """Name a prediction's line together with the other lines of its panel, so that no name covers another."""
    for axes, lines, _ in figure.named[figure.written :]:
        if axes is axis:
            lines |= line
            return
    figure.name_lines(axis, line)
