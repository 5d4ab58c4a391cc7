"""The look that all figures share: size, palette, labels, captions. Nothing here changes matplotlib's own settings."""

import base64
import io
import textwrap
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

# The palette of Okabe and Ito (2008), whose colours can be told apart with any kind of colour vision.
PLAIN, RESIDUAL = "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # for what is neither plain nor residual
FAMILIES = dict(zip(("residual", "transfer", "scratch", "frozen", "progressive"), (RESIDUAL, *OTHERS), strict=True))
FAINT = "#9A9A9A"
SHADES = "cividis"
LINE_WIDTH = 1.8
DASHES = ("", (4, 1.5), (6, 1.5, 1, 1.5), (6, 1, 1, 1, 1, 1))  # dotted lines are kept for theory
MARKERS = "osD^"
THEORY = {"color": "black", "ls": ":", "lw": 1.4}
WIDTH_IN = 8.5
CAPTION_CHARACTERS = 140  # that fit into one line of a caption
DOTS_PER_INCH = 144  # drawn at this and shown at 100: sharp on any screen


class Chart(Figure):
    """A figure that shows itself in a notebook. It uses no pyplot state, so background threads can draw it, too.

    Attributes:
        shows: what kind of figure it is, in a few words.
        caption: what its data are.
    """

    shows, caption = "Figure", ""

    @property
    def alt(self) -> str:
        """The figure in words, for readers who cannot see it: what it shows, its panels, lines and axes, its data."""
        lists = [axes for axes in self.axes if axes.axison and not axes.get_ylabel()]  # of settings, groups or rungs
        legends = [*self.legends, *(axes.get_legend() for axes in self.axes if axes.get_legend())]
        parts = {
            "Panels": [axes.get_title("left") for axes in self.axes],
            "Legend": [text.get_text() for legend in legends for text in legend.get_texts()],
            "Rows": [row.get_text() for axes in lists for row in axes.get_yticklabels()],
            "Axes": [label for axes in self.axes for label in (axes.get_xlabel(), axes.get_ylabel())],
        }
        sentences = [self.shows]
        for name, texts in parts.items():
            distinct = dict.fromkeys(" ".join(text.split()) for text in texts if text)
            sentences += [f"{name}: {'; '.join(distinct)}"] if distinct else []
        return ". ".join([*sentences, self.caption] if self.caption else sentences) + "."

    def drawn(self) -> FigureCanvasAgg:
        """A canvas on which the figure is drawn once, where savefig would lay it out and draw it twice."""
        self.set_dpi(DOTS_PER_INCH)
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        return canvas

    def png(self) -> bytes:
        """The figure as the content of a PNG file."""
        return as_png(self.drawn())

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        bundle = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt}
        return bundle, {"image/png": {"width": round(self.get_figwidth() * 100), "alt": self.alt}}


def as_png(canvas: FigureCanvasAgg) -> bytes:
    """What is drawn on a canvas, as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(file, format="png", compress_level=3)  # as fast as 1
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
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if caption:
        figure.supxlabel(textwrap.fill(caption, CAPTION_CHARACTERS), x=0.01, ha="left", fontsize=8, color="0.35")
    return figure, axes


def describe(
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

    A label that begins with a family's name takes a shade of the family's colour, any other a shade of PLAIN. The
    lines of a family differ by dashes and markers, too.
    """
    families = {label: next((name for name in FAMILIES if label.startswith(name)), "") for label in labels}
    looks: dict[str, dict[str, object]] = {"palette": {}, "dashes": {}, "markers": {}}
    for family in set(families.values()):
        members = [label for label in labels if families[label] == family]
        colour = to_rgb(FAMILIES.get(family, PLAIN))
        shades = sns.blend_palette([colour, tuple(0.45 * channel for channel in colour)], len(members))
        looks["palette"] |= zip(members, shades, strict=True)
        looks["dashes"] |= {label: DASHES[number % 4] for number, label in enumerate(members)}
        looks["markers"] |= {label: MARKERS[number % 4] for number, label in enumerate(members)}
    return looks


def kind_colour(label: str) -> str:
    """RESIDUAL for a label that begins with "residual", PLAIN for any other."""
    return RESIDUAL if label.startswith("residual") else PLAIN


def accuracy_label(metric: str) -> str:
    """The axis label of an accuracy, such as "test accuracy (%)" for test_top1."""
    return metric.replace("_top1", " accuracy").replace("_top5", " top-5 accuracy").replace("_", " ") + " (%)"
