"""The look that all figures share: size, palette, labels, captions. Nothing here changes matplotlib's own settings."""

import base64
import html
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

# Figures are transparent, because a notebook may be light or dark. So each colour that means something has a contrast
# of at least 3 both with white and with the dark theme's #111111 and #212121: a luminance from 0.15 to 0.3.
# As far as they lie there, they are those of Okabe and Ito (2008), made for any kind of colour vision.
PLAIN, RESIDUAL = "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#C8709F", "#A6761D", "#8F6BD6")  # for what is neither plain nor residual
FAMILIES = dict(zip(("residual", "transfer", "scratch", "frozen", "progressive"), (RESIDUAL, *OTHERS), strict=True))
FAINT = "#8A8A8A"
INK = "#767676"  # words and axes: 4.5 with white, 4.2 with #111111
SHADES = "cividis"
LINE_WIDTH = 1.8
DASHES = ("", (4, 1.5), (6, 1.5, 1, 1.5), (6, 1, 1, 1, 1, 1))  # dotted lines are kept for theory
MARKERS = "osD^v"
THEORY = {"color": INK, "ls": ":", "lw": 1.8}
WIDTH_IN = 8.5
CAPTION_CHARACTERS = 125  # that fit into one line of a caption
NAME_CHARACTERS = 24  # that fit into one line of a name at a line's end
NAME_IN = 0.18  # height of such a line
DOTS_PER_INCH = 144  # drawn at this and shown at 100: sharp on any screen


class Chart(Figure):
    """A figure that shows itself in a notebook. It uses no pyplot state, so background threads can draw it, too.

    Attributes:
        shows: what kind of figure it is, in a few words.
        caption: what its data are.
    """

    shows, caption = "Figure", ""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        self.named: list[tuple[Axes, dict[str, Line2D], Mapping[str, str]]] = []  # lines with names at their ends
        self.written = 0  # how many of those have got theirs

    def name_lines(self, axis: Axes, lines: Mapping[str, Line2D], *, marks: Mapping[str, str] | None = None) -> None:
        """Write each line's name at its right end, instead of a legend.

        Args:
            axis: where the lines are.
            lines: by their names; an empty name is not written.
            marks: what to write for names that are too long.
        """
        self.named.append((axis, {name: line for name, line in lines.items() if name}, marks or {}))

    @property
    def alt(self) -> str:
        """The figure in words, for readers who cannot see it: what it shows, from where to where its lines go, its
        panels, legend and axes, its data."""
        lists = [axes for axes in self.axes if axes.axison and not axes.get_ylabel()]  # of settings, groups or rungs
        legends = [*self.legends, *(axes.get_legend() for axes in self.axes if axes.get_legend())]
        parts = {
            "Panels": [axes.get_title("left") for axes in self.axes],
            "Legend": [text.get_text() for legend in legends for text in legend.get_texts()],
            "Rows": [row.get_text() for axes in lists for row in axes.get_yticklabels()],
            "Bars": [text.get_text() for axes in lists for text in axes.texts if axes.patches],
            "Lines": [ends_of(axes, name, line) for axes, lines, _ in self.named for name, line in lines.items()],
            "Axes": [label for axes in self.axes for label in (axes.get_xlabel(), axes.get_ylabel())],
        }
        sentences = [self.shows]
        for name, texts in parts.items():
            distinct = dict.fromkeys(" ".join(text.split()) for text in texts if text)
            sentences += [f"{name}: {'; '.join(distinct)}"] if distinct else []
        return ". ".join([*sentences, self.caption] if self.caption else sentences) + "."

    def drawn(self) -> FigureCanvasAgg:
        """A canvas on which the figure is drawn once, where savefig would lay it out and draw it twice."""
        for axes, lines, marks in self.named[self.written :]:
            write_names(axes, {marks.get(name, name): line for name, line in lines.items()})
        self.written = len(self.named)
        ink(self)
        self.set_dpi(DOTS_PER_INCH)
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        return canvas

    def png(self) -> bytes:
        """The figure as the content of a PNG file."""
        return as_png(self.drawn())

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        # Not as image/png, which JupyterLab shows without its words.
        return {"text/html": as_html(self.png(), self.alt), "text/plain": self.alt}


def ends_of(axis: Axes, name: str, line: Line2D) -> str:
    """From where to where a line goes, in words, such as "Accuracy: plain from 31.0% to 84.2%"."""
    heights = np.asarray(line.get_ydata(), dtype=float)
    heights = heights[np.isfinite(heights)]
    if not len(heights):
        return name
    form = "{:.1%}" if isinstance(axis.yaxis.get_major_formatter(), PercentFormatter) else "{:.3g}"
    panel = f"{axis.get_title('left')}, " if axis.get_title("left") else ""
    return f"{panel}{name} from {form.format(heights[0])} to {form.format(heights[-1])}"


def write_names(axis: Axes, lines: Mapping[str, Line2D]) -> None:
    """Write names at the right ends of lines; those that would lie over one another move apart."""
    high = axis.get_position().height * axis.figure.get_figheight()  # in inches, before the layout
    names, places, heights = [], [], []
    for name, line in lines.items():
        points = np.column_stack([np.asarray(values, dtype=float) for values in line.get_data()])
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            (_, place) = axis.transAxes.inverted().transform(axis.transData.transform(points[-1]))
            names.append((textwrap.fill(name, NAME_CHARACTERS), line))
            places.append(min(max(place, 0), 1))
            heights.append(NAME_IN * (1 + names[-1][0].count("\n")) / high)
    for number, place in zip(np.argsort(places, kind="stable"), apart(places, heights), strict=True):
        text, line = names[number]
        where = {"xycoords": "axes fraction", "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(text, (1, place), color=line.get_color(), fontsize=9, weight="bold", **where)


def apart(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places from 0 to 1 in their order, moved so that what has these heights does not overlap."""
    order = np.argsort(places, kind="stable")
    moved = [places[number] for number in order]
    gaps = [(heights[one] + heights[other]) / 2 for one, other in itertools.pairwise(order)]
    for number, gap in enumerate(gaps, start=1):
        moved[number] = max(moved[number], moved[number - 1] + gap)
    if moved:
        moved[-1] = min(moved[-1], 1)
    for number in range(len(gaps) - 1, -1, -1):
        moved[number] = min(moved[number], moved[number + 1] - gaps[number])
    return moved


def ink(figure: Figure) -> None:
    """Draw in INK what matplotlib draws in black around the data."""
    inside = {text for axes in figure.axes for text in axes.texts}  # such as a number on its coloured cell
    for text in figure.findobj(Text):
        if text not in inside and to_hex(text.get_color()) in ("#000000", "#262626"):
            text.set_color(INK)
    for spine in figure.findobj(Spine):
        spine.set_edgecolor(INK)
    for axes in figure.axes:
        axes.tick_params(which="both", colors=INK)


def as_html(png: bytes, alt: str) -> str:
    """A figure's PNG file and words as HTML, as wide as it was meant to be, and no wider than its page."""
    width = Image.open(io.BytesIO(png)).width * 100 // DOTS_PER_INCH
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt)}" width="{width}">'


def as_png(canvas: FigureCanvasAgg, *, compress_level: int = 9) -> bytes:
    """What is drawn on a canvas, as the content of a PNG file; from 1, the fastest, to 9, the smallest."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(file, format="png", compress_level=compress_level)
    return file.getvalue()


def chart(
    shows: str, rows: int = 1, columns: int = 1, *, height: float, caption: str = "", **options: object
) -> tuple[Chart, np.ndarray]:
    """An empty chart of the course's width, and its axes (rows, columns).

    Args:
        shows: what kind of figure it is, in a few words, for readers who cannot see it.
        rows, columns: the number of panels.
        height: in inches.
        caption: what the data are.
        options: for matplotlib's `Figure.subplots`.
    """
    figure = Chart(figsize=(WIDTH_IN, height), layout="constrained")
    figure.shows, figure.caption = shows, caption
    figure.patch.set_alpha(0)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.set_facecolor("none")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if caption:
        figure.supxlabel(textwrap.fill(caption, CAPTION_CHARACTERS), x=0.01, ha="left", fontsize=9)
    return figure, axes


def label_axes(
    axis: Axes, x: str = "", y: str = "", *, title: str = "", percent: str = "", whole: str = "", **limits: object
) -> None:
    """Label an axes.

    Args:
        x, y: the labels, with units.
        title: stands at the left.
        percent: the directions ("x", "y" or "xy") in which fractions are shown as percentages.
        whole: the directions in which only whole numbers have ticks.
        limits: further properties for `Axes.set`, such as xlim.
    """
    axis.set_title(title, loc="left", fontsize=11)
    axis.set(xlabel=x, ylabel=y, **limits)
    for direction in percent:
        getattr(axis, f"{direction}axis").set_major_formatter(PercentFormatter(1, symbol=""))
    for direction in whole:
        getattr(axis, f"{direction}axis").set_major_locator(MaxNLocator(integer=True))


def line_looks(labels: Sequence[str]) -> dict[str, dict[str, object]]:
    """The colour, dashes and marker of each of several lines, as seaborn's `palette`, `dashes` and `markers`.

    A label that begins with a family's name takes the family's colour, any other PLAIN. The lines of a family differ by
    dashes and markers.
    """
    looks: dict[str, dict[str, object]] = {"palette": {}, "dashes": {}, "markers": {}}
    members: dict[str, int] = {}
    for label in labels:
        colour = next((FAMILIES[name] for name in FAMILIES if label.startswith(name)), PLAIN)
        number = members[colour] = members.get(colour, -1) + 1
        looks["palette"][label] = colour
        looks["dashes"][label] = DASHES[number % len(DASHES)]
        looks["markers"][label] = MARKERS[number % len(MARKERS)]
    return looks


def kind_colour(label: str) -> str:
    """RESIDUAL for a label that begins with "residual", PLAIN for any other."""
    return RESIDUAL if label.startswith("residual") else PLAIN


def accuracy_label(metric: str) -> str:
    """The axis label of an accuracy, such as "test accuracy (%)" for test_top1."""
    return metric.replace("_top1", " accuracy").replace("_top5", " top-5 accuracy").replace("_", " ") + " (%)"
