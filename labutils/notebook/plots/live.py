"""Figures that explorers redraw while a slider moves or a network trains: plain matplotlib, for its speed."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter
from pandas import DataFrame
from torch import Tensor

from labutils.notebook.plots import style
from labutils.notebook.plots.curves import LAYER
from labutils.notebook.plots.selection import Tables
from labutils.notebook.plots.style import (
    FAINT,
    INK,
    LINE_WIDTH,
    MARKERS,
    PLAIN,
    RESIDUAL,
    Chart,
    chart,
    ends_of,
    label_axes,
)

EARLIER_PROFILES = 4  # that a live profile keeps in sight


def history(histories: Tables | DataFrame, *, caption: str = "") -> Chart:
    """Loss and accuracy over the epochs: validation solid, training dashed.

    Args:
        histories: the frame of a history, or several by name, the newest last; older ones are thinner. A name that
            contains "residual yes" or "residual no" takes that kind's colour. An empty mapping gives empty axes.
        caption: what the data are.
    """
    if isinstance(histories, DataFrame):
        histories = {"": histories}
    named = [name for name in histories if name]
    # Margins in inches instead of a layout engine, which would take as long as the drawing itself.
    above = 0.6 + 0.2 * len(named) if named else 0.35
    below = 0.6 + 0.15 * len(textwrap.wrap(caption, style.CAPTION_CHARACTERS))
    height = 2.5 + above + below
    shows = "Lines of loss and accuracy over the epochs"
    figure, ((left, right),) = chart(shows, 1, 2, height=height, caption=caption)
    figure.set_layout_engine(None)
    right_end = 0.97 if named else 0.89  # beside it stand the lines' names
    margins = {"bottom": below / height, "top": 1 - above / height}
    figure.subplots_adjust(left=0.1, right=right_end, wspace=0.36, **margins)
    marks = {name: str(number) for number, name in enumerate(named, start=1)}
    ends: dict[Axes, dict[str, Line2D]] = {left: {}, right: {}}
    for age, (name, frame) in enumerate(reversed(histories.items())):
        look = {"color": history_colour(name, age), "linewidth": LINE_WIDTH if age == 0 else 1}
        for axis, measured in ((left, "loss"), (right, "accuracy")):
            for part, stroke, label in (("validation", "-", name or "validation"), ("train", "--", "training")):
                values = frame[f"{part}_{measured}"]
                marker = MARKERS[age % len(MARKERS)] if named or values.count() == 1 else None  # one value is no line
                line = {"marker": marker, "markersize": 5, "markevery": max(1, len(values) // 8)}
                (drawn,) = axis.plot(frame["epoch"], values, stroke, label=label, **line, **look)
                if part == "validation" or not name:
                    ends[axis][label] = drawn
    span = (0, 1.02 * max([1, *(frame["epoch"].max() for frame in histories.values())]))  # from a first step on
    label_axes(left, "epoch", "loss (nats)", title="Loss", whole="x", xlim=span)
    left.ticklabel_format(axis="y", scilimits=(-2, 3))  # the labels of a diverging loss, too, fit beside the axis
    label_axes(right, "epoch", "accuracy (%)", title="Accuracy", percent="y", whole="x", xlim=span)
    if named:
        handles = list(ends[right].values())
        labels = [f"{marks[name]}   {name}" for name in ends[right]]
        figure.legend(handles, labels, loc="upper left", title="solid: validation, dashed: training",
                      alignment="left", fontsize=9, title_fontsize=9, borderaxespad=0.2, frameon=False)  # fmt: skip
    for axis in (left, right):
        if named or axis is right:  # there is no room for whole words between the two
            figure.name_lines(axis, ends[axis], marks=marks)
        if not histories:
            axis.set(xlim=(0, 10), xticks=[], yticks=[])
            axis.text(0.5, 0.5, "nothing trained so far", ha="center", color=INK, transform=axis.transAxes)
    return figure


def history_colour(name: str, age: int) -> str:
    """The colour of a history, by the kind of network that its name tells, else by its age; the newest is 0."""
    kinds = {"residual yes": RESIDUAL, "residual no": PLAIN}
    newest_first = (PLAIN, *style.OTHERS)
    told = [colour for kind, colour in kinds.items() if kind in name]
    return told[0] if told else newest_first[age] if age < len(newest_first) else FAINT


def scores(found: Mapping[str, float], *, caption: str = "") -> Chart:
    """Validation accuracies of a few choices as bars, the newest on top and blue, earlier ones grey.

    Args:
        found: fractions from 0 to 1 by the choice's label, the newest last.
        caption: what the data are.
    """
    rows = max(len(found), 2)
    figure, ((axis,),) = chart("Bars of validation accuracy", height=0.9 + 0.34 * rows, caption=caption)
    newest_first = dict(reversed(found.items()))
    for place, accuracy in enumerate(newest_first.values()):
        axis.barh(place, accuracy, height=0.6, color=RESIDUAL if place == 0 else FAINT)
        where = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{accuracy:.1%}", (accuracy, place), color=INK, **where)
    axis.set_yticks(range(len(found)), newest_first)
    limits = {"xlim": (0, 1.15 * max(found.values(), default=1)), "ylim": (rows - 0.5, -0.5)}
    label_axes(axis, "validation accuracy (%)", percent="x", **limits)
    return figure


class LiveProfile:
    """One gradient profile that is redrawn in place, several times as fast as a new figure is drawn."""

    def __init__(self) -> None:
        self.figure, ((self.axis,),) = chart("Lines of gradient norms by layer", height=3.8)
        self.axis.set_yscale("log")
        label_axes(self.axis, LAYER, "gradient norm with respect to\nthe hidden layer's outputs", whole="x")
        self.earlier = [self.axis.plot([], [], "--", color=FAINT, lw=1)[0] for _ in range(EARLIER_PROFILES)]
        (self.line,) = self.axis.plot([], [], marker=".", linewidth=LINE_WIDTH)
        (self.theory,) = self.axis.plot([], [], label="theory", **style.THEORY)
        # Numbers as plain text and a layout that is found once each save a third of the time.
        self.axis.yaxis.set_major_formatter(LogFormatter())
        self.axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        self.axis.set_ylim(1e-9, 1e9)  # whose numbers are as wide as any
        self.figure.drawn()
        self.figure.set_layout_engine("none")

    def png(
        self, profile: DataFrame, *, label: str, residual: bool, rate: float | None, earlier: Sequence[DataFrame]
    ) -> bytes:
        """Redraw it, and return the content of a PNG file.

        Args:
            profile: one row per layer, with layer and norm.
            label: the profile's name.
            residual: whether the network is residual, for its colour.
            rate: the factor per layer that theory predicts; None where theory makes no prediction.
            earlier: profiles to compare with, the newest last.
        """
        layers, norms = profile["layer"].to_numpy(), profile["norm"].to_numpy()
        self.line.set(xdata=layers, ydata=norms, color=RESIDUAL if residual else PLAIN, label=label)
        predicted = [] if rate is None else norms[-1] * rate ** (layers[-1] - layers)
        self.theory.set(xdata=layers[: len(predicted)], ydata=predicted, visible=rate is not None)
        latest = list(earlier)[-EARLIER_PROFILES:]
        empty = DataFrame({"layer": [], "norm": []})
        for line, other in zip(self.earlier, [*latest, *[empty] * EARLIER_PROFILES], strict=False):
            line.set(xdata=other["layer"], ydata=other["norm"])
        self.axis.relim(visible_only=True)
        self.axis.autoscale()
        self.axis.legend(handles=[self.line] if rate is None else [self.line, self.theory], frameon=False)
        return self.figure.png()

    @property
    def alt(self) -> str:
        """What is to be seen, in words."""
        return f"{self.figure.alt} {ends_of(self.axis, self.line.get_label(), self.line)}."


class LiveAnswers:
    """Images, and below each a network's probabilities for the classes, as bars that are redrawn in place.

    Args:
        images: (N, C, H, W) uint8, up to five.
        labels: (N,) class numbers.
        classes: their names.
        caption: what the data are.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str], *, caption: str = ""):
        shows = "Images and bars of predicted probabilities"
        figure, axes = chart(shows, 2, len(images), height=4.4, caption=caption, height_ratios=(2, 3))
        pictures = images.permute(0, 2, 3, 1).numpy(force=True)
        self.bars, self.labels, self.classes = [], labels, classes
        for (above, below), image, label in zip(axes.T, pictures, labels, strict=True):
            above.imshow(image, cmap="gray_r")
            above.set_axis_off()
            above.set_title(classes[label], loc="center")
            bars = below.barh(range(len(classes)), [0.0] * len(classes), color=RESIDUAL)
            bars[label].set(facecolor=style.OTHERS[0], edgecolor="white", hatch="///", linewidth=0)
            label_axes(below, "probability (%)", percent="x", xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
            below.set_yticks(range(len(classes)), classes if below is axes[1, 0] else [""] * len(classes))
            for bar in bars:
                bar.set_animated(True)  # left out of the background, because it alone changes
            self.bars.append(bars)
        self.canvas = figure.drawn()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def png(self, probabilities: Tensor) -> bytes:
        """Redraw the bars for probabilities (N, classes), and return the content of a PNG file."""
        self.canvas.restore_region(self.background)
        for bars, row in zip(self.bars, probabilities.tolist(), strict=True):
            for bar, probability in zip(bars, row, strict=True):
                bar.set_width(probability)
                bar.axes.draw_artist(bar)
        return style.as_png(self.canvas, compress_level=3)

    def describe(self, probabilities: Tensor) -> str:
        """What is to be seen for probabilities (N, classes), in words."""
        answers = (
            f"{self.classes[label]}: {self.classes[row.argmax()]} {row.max():.0%}"
            for label, row in zip(self.labels, probabilities, strict=True)
        )
        return (
            f"Images, and bars of predicted probabilities. Each image's class, and the likeliest: {'; '.join(answers)}."
        )
