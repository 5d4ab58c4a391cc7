"""Every figure of the course, from DataFrames.

One palette throughout: a plain net is always PLAIN, a residual one RESIDUAL. The colours are Okabe and Ito's, told
apart with any colour vision. Accuracies come in as fractions and are drawn as percentages. Every figure says below
itself what its data are.
"""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

PLAIN, RESIDUAL = "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # where neither plain nor residual is meant
FAINT = "#9A9A9A"
ACCURACY_COLOURS = "cividis"
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
WIDTH_IN = 8.5
DOTS_PER_INCH = 144  # drawn at this, shown at 100: sharp on any screen


class Chart(Figure):
    """A figure that shows itself in a notebook; needs no pyplot, so it can also be drawn in a background thread."""

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
        return buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        width = round(self.get_figwidth() * 100)
        bundle = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": f"<Chart, {width} px wide>"}
        return bundle, {"image/png": {"width": width}}


def styled(draw: Callable[..., Chart]) -> Callable[..., Chart]:
    """Draw in the course's style, and leave matplotlib's own settings as they were."""

    @functools.wraps(draw)
    def in_style(*arguments: object, **options: object) -> Chart:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return in_style


def chart(
    rows: int = 1, columns: int = 1, *, height: float, caption: str = "", **options: object
) -> tuple[Chart, np.ndarray]:
    """An empty chart of the course's width and its axes, (rows, columns); height in inches."""
    figure = Chart(figsize=(WIDTH_IN, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if caption:
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="0.35")
    return figure, axes


def origin(results: pd.DataFrame) -> str:
    """What results rest on, for captions: data, seeds, hardware, torch."""
    seeds = results["seed"].nunique() if "seed" in results else 1

    def distinct(column: str) -> str:
        return ", ".join(map(str, results[column].unique()))

    return (
        f"{distinct('data')} ({distinct('source')}); n = {seeds} seeds; {distinct('epochs')} epochs; "
        f"{distinct('processor')}; torch {distinct('torch')}"
    )


def matching(results: pd.DataFrame, chosen: Mapping[str, object]) -> pd.DataFrame:
    """The rows of results whose columns have the values chosen."""
    for column, value in chosen.items():
        results = results[results[column] == value]
    return results


@styled
def history(histories: Mapping[str, pd.DataFrame] | pd.DataFrame, *, caption: str = "") -> Chart:
    """Loss and accuracy over the epochs: validation solid, training dashed.

    Args:
        histories: a history's frame, or several by name, the newest last. Beyond the palette's five the oldest are
            drawn faint. An empty mapping gives empty axes.
        caption: what the data are.
    """
    if isinstance(histories, pd.DataFrame):
        histories = {"": histories}
    named = [name for name in histories if name]
    figure, ((left, right),) = chart(1, 2, height=3.4 + 0.2 * len(named), caption=caption)
    newest_first = [PLAIN, *OTHERS]
    for age, (name, frame) in enumerate(reversed(histories.items())):
        colour = newest_first[age] if age < len(newest_first) else FAINT
        marker = "o" if len(frame) == 1 else None
        for axes, measured in ((left, "loss"), (right, "accuracy")):
            solid, dashed = frame[f"validation_{measured}"], frame[f"train_{measured}"]
            axes.plot(frame["epoch"], solid, color=colour, marker=marker, label=name or "validation")
            axes.plot(frame["epoch"], dashed, "--", color=colour, marker=marker, label="" if name else "training")
    left.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    right.set(title="Accuracy", xlabel="epoch", ylabel="correct (%)")
    right.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if named:
        figure.legend(handles=right.lines[::2], loc="outside upper left", title="solid: validation, dashed: training",
                      alignment="left", fontsize=9, title_fontsize=9)  # fmt: skip
    elif histories:
        right.legend()
    else:
        for axes in (left, right):
            axes.set(xlim=(0, 10), xticks=[], yticks=[])
            axes.text(0.5, 0.5, "nothing trained so far", ha="center", color=FAINT, transform=axes.transAxes)
    return figure


def heatmap(
    axis: Axes, values: pd.DataFrame, text: pd.DataFrame, *, colours: str | Colormap, low: float, high: float
) -> QuadMesh:
    """Draw a table as coloured cells with text in them, the first row on top."""
    mesh = axis.pcolormesh(values, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=1)
    for row, column in np.ndindex(values.shape):
        red, green, blue, _ = mesh.cmap(mesh.norm(values.iloc[row, column]))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": "black" if bright else "white"}
        axis.text(column + 0.5, row + 0.5, text.iloc[row, column], **style)
    axis.set_xticks(np.arange(values.shape[1]) + 0.5, map(str, values.columns))
    axis.set_yticks(np.arange(values.shape[0]) + 0.5, map(str, values.index))
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.invert_yaxis()
    return mesh


@styled
def depth_width_heatmap(
    results: pd.DataFrame, *, metric: str = "test_top1", panels: Mapping[str, Mapping[str, object]] | None = None
) -> Chart:
    """Mean ± standard deviation of an accuracy over seeds, for each depth and width.

    Args:
        results: a row a run, with depth, width, seed and the metric.
        metric: the column to show, fractions from 0 to 1.
        panels: what each panel shows, by its title: the columns' values that its runs have. Without it one panel.
    """
    panels = panels or {"": {}}
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure, axes = chart(rows, columns, height=0.9 + 3.1 * rows, caption=origin(results))
    for axis, (title, chosen) in zip(axes.flat, panels.items(), strict=False):
        runs = matching(results, chosen)
        cells = runs.pivot_table(index="depth", columns="width", values=metric, aggfunc=["mean", "std"]) * 100
        mean, spread = cells["mean"], cells["std"].fillna(0)
        text = mean.map("{:.2f}".format) + "\n± " + spread.map("{:.2f}".format)
        mesh = heatmap(axis, mean, text, colours=ACCURACY_COLOURS, low=10, high=100)
        if axis in axes[:, -1]:
            figure.colorbar(mesh, ax=axis, label="correct (%)")
        axis.set(title=title, xlabel="width (units a layer)", ylabel="depth (hidden layers)")
    return figure


@styled
def accuracy_by_depth(results: pd.DataFrame, lines: Mapping[str, Mapping[str, object]], *, metric: str) -> Chart:
    """Mean accuracy against depth, with a band of one standard deviation over seeds.

    Args:
        results: a row a run, with depth and the metric.
        lines: what each line shows, by its label: the columns' values that its runs have.
        metric: the column to show, fractions from 0 to 1.
    """
    figure, ((axis,),) = chart(height=3.8, caption=origin(results))
    dashes, markers = ("-", "--", ":", "-."), "osD^"
    shades = LinearSegmentedColormap.from_list("plain", [PLAIN, "#3A1700"])
    colours = shades(np.linspace(0, 1, len(lines)))
    for number, (label, chosen) in enumerate(lines.items()):
        runs = matching(results, chosen)
        points = runs.groupby("depth")[metric].agg(["mean", "std"]).reset_index()
        style = {"color": colours[number], "ls": dashes[number % 4], "marker": markers[number % 4]}
        axis.plot(points["depth"], points["mean"], label=label, **style)
        low, high = points["mean"] - points["std"], points["mean"] + points["std"]
        axis.fill_between(points["depth"], low, high, color=colours[number], alpha=0.2)
    depths = sorted(results["depth"].unique())
    axis.set_xscale("log")
    axis.set_xticks(depths, [str(depth) for depth in depths])
    axis.minorticks_off()
    axis.set(xlabel="depth (hidden layers, logarithmic)", ylabel="correct (%)")
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axis.legend()
    return figure


@styled
def confusion_matrix(
    labels: torch.Tensor, predictions: torch.Tensor, classes: Sequence[str], *, caption: str = ""
) -> Chart:
    """Which class is taken for which: a row a true class, a column a predicted one, in images.

    Args:
        labels, predictions: (N,) class numbers.
        classes: their names.
        caption: what the data are.
    """
    count = len(classes)
    counts = torch.bincount(labels.cpu() * count + predictions.cpu(), minlength=count**2).view(count, count).numpy()
    mistakes = counts * (1 - np.eye(count, dtype=int))  # the diagonal would outshine them
    figure, ((axis,),) = chart(height=6.2, caption=caption)
    shades = LinearSegmentedColormap.from_list("mistakes", ["#FFFFFF", "#4D4D4D"])
    table = pd.DataFrame(mistakes, index=classes, columns=classes)
    mesh = heatmap(axis, table, pd.DataFrame(counts).map(str), colours=shades, low=0, high=max(mistakes.max(), 1))
    figure.colorbar(mesh, ax=axis, label="mistakes (images)")
    axis.set(xlabel="predicted class", ylabel="true class", aspect="equal")
    return figure


@styled
def image_grid(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    *,
    predictions: torch.Tensor | None = None,
    confidences: torch.Tensor | None = None,
    columns: int = 10,
    caption: str = "",
) -> Chart:
    """Images with their labels and, where given, what a network took them for.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) class numbers.
        classes: their names.
        predictions: (N,) class numbers; a wrong one is marked by a cross and bold type.
        confidences: (N,) the probability given to the prediction, from 0 to 1.
        columns: images a row.
        caption: what the data are.
    """
    lines = 1 if predictions is None else 2
    pitch = 1.05 + 0.28 * lines  # from one row to the next, in image heights
    rows = -(-len(images) // columns)
    figure, ((axis,),) = chart(height=0.3 + 0.83 * rows * pitch, caption=caption)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy(force=True)):
        x, y = number % columns, number // columns * pitch
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=255, extent=(x + 0.05, x + 0.95, y + 0.95, y + 0.05))
        title = classes[labels[number]]
        wrong = predictions is not None and predictions[number] != labels[number]
        if predictions is not None:
            sure = "" if confidences is None else f" {confidences[number]:.1%}"
            title = f"is {title}\n{'✗' if wrong else '✓'} {classes[predictions[number]]}{sure}"
        axis.text(x + 0.5, y, title, ha="center", va="bottom", fontsize=8, fontweight="bold" if wrong else "normal")
    # One axes for all: an axes for each image would take ten times as long to lay out.
    axis.set(xlim=(0, columns), ylim=(rows * pitch - 0.28 * lines, -0.3 * lines), aspect="equal")
    axis.axis("off")
    return figure
