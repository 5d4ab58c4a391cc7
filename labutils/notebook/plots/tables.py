"""Tables as coloured cells: accuracies, gains, gradient norms, confusion matrices."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator
from pandas import DataFrame
from scipy import stats
from torch import Tensor

from labutils.notebook.plots.curves import DEPTHS, LAYER
from labutils.notebook.plots.selection import Groups, Tables, origin, select
from labutils.notebook.plots.style import SHADES, Chart, accuracy_label, chart, label_axes

WIDTHS = {"depth": "units per layer", "layers": "channels of the first stage"}
NEUTRAL = "#E4E4E4"
MOST_CELLS_A_SIDE = 20  # that have room for numbers


def draw_cells(axis: Axes, values: DataFrame, text: object = False, **colours: object) -> QuadMesh:
    """Draw a table as coloured cells, the first row on top.

    Args:
        axis: where.
        values: what the colours show; NaN leaves a cell empty.
        text: what to write into the cells, a table of the same shape; False for nothing.
        colours: for seaborn's heatmap.
    """
    edges = 0 if text is False else 1
    sns.heatmap(values, annot=text, fmt="", annot_kws={"size": 8.5}, linewidths=edges, cbar=False, ax=axis, **colours)
    mesh = axis.collections[0]
    for cell, face in zip(axis.texts, mesh.to_rgba(values.to_numpy()[values.notna()]), strict=False):
        # Black has more contrast than white down to this luminance (WCAG 2); seaborn turns to white at 0.408.
        cell.set_color("black" if sns.utils.relative_luminance(face) > 0.18 else "white")
    axis.tick_params(length=0, rotation=0)
    axis.grid(visible=False)
    return mesh


def mean_and_spread(table: DataFrame, form: str) -> DataFrame:
    """The text of a pivot table with the levels mean and std: "mean ± std", or the mean alone of a single run."""
    spread = "\n± " + table["std"].map("{:.2f}".format)
    return table["mean"].map(form.format) + spread.where(table["std"].notna(), "")


def depth_width_heatmap(
    results: DataFrame,
    *,
    metric: str = "test_top1",
    depth: str = "depth",
    panels: Groups | None = None,
    chance: float = 0.1,
) -> Chart:
    """Mean ± standard deviation of an accuracy over seeds, for each depth and width.

    The colours follow the logarithm of the error rate, which tells apart accuracies near 100 %. Cells whose mean is at
    most twice the chance level are grey and hatched.

    Args:
        results: one row per run, with its depth, width, seed and the metric.
        metric: the column to show, fractions from 0 to 1.
        depth: the column that says how deep a network is: depth (hidden layers) or layers (all that have weights).
        panels: the values that each panel's runs have, by the panel's title; one panel by default.
        chance: the accuracy of guessing, from 0 to 1.

    Raises:
        SettingError: no run matches a panel.
    """
    shown = select(results, panels or {"": {}}, kind="panel", metric=metric)
    groups = shown.groupby("label", sort=False)
    rows, columns = -(-len(groups) // 2), min(len(groups), 2)
    shows = "Heatmaps of accuracy by depth and width"
    figure, axes = chart(shows, rows, columns, height=0.9 + 3.1 * rows, caption=origin(shown))
    pivot = {"index": depth, "columns": "width", "values": metric, "aggfunc": ["mean", "std"], "dropna": False}
    tables = {title: 100 * runs.pivot_table(**pivot) for title, runs in groups}
    worst = 100 * (1 - 2 * chance)  # the error rate up to which a network has learnt something
    learnt = [error for table in tables.values() for error in (100 - table["mean"].to_numpy()).ravel() if error < worst]
    low = max(min(learnt, default=10), 0.01)
    high = min(max([2 * low, *learnt]), worst)
    colours = {"norm": LogNorm(low, high), "cmap": matplotlib.colormaps[f"{SHADES}_r"].with_extremes(over=NEUTRAL)}
    for axis, (title, table) in zip(axes.flat, tables.items(), strict=False):
        error = 100 - table["mean"]
        mesh = draw_cells(axis, error.clip(lower=low), mean_and_spread(table, "{:.2f}"), **colours)
        axis.pcolor(np.ma.masked_less(error, worst), facecolor="none", edgecolor="white", hatch="///", linewidth=0)
        label_axes(axis, f"width ({WIDTHS[depth]})", f"depth ({DEPTHS[depth]})", title=title)
    for axis in axes.flat[len(tables) :]:
        axis.set_axis_off()
    dead = any((100 - table["mean"] >= worst).to_numpy().any() for table in tables.values())
    label = f"{accuracy_label(metric)}, colours by log error" + "\nhatched: up to twice chance" * dead
    ticks = {"ticks": LogLocator(subs=(1, 2, 5)), "format": lambda error, _: f"{100 - error:g}"}
    bar = figure.colorbar(mesh, ax=axes, label=label, extend="max" if dead else "neither", aspect=30, **ticks)
    bar.minorticks_off()
    bar.ax.invert_yaxis()
    return figure


def gains(results: DataFrame, *, rows: str, columns: str, labels: Mapping[str, str], caption: str = "") -> Chart:
    """Differences in accuracy as coloured cells: mean ± standard deviation over seeds, in percentage points.

    A cell is set in bold type if the 95 % confidence interval of its mean (Student's t) excludes 0.

    Args:
        results: one row per run: the two settings, and its gain, a difference of fractions.
        rows, columns: the settings.
        labels: the axis labels of the settings, by their names.
        caption: what the data are.
    """
    points = results.assign(gain=100 * results["gain"])
    cells = points.pivot_table("gain", rows, columns, aggfunc=["mean", "std", "size"], dropna=False)
    mean, count = cells["mean"], cells["size"]
    figure, ((axis,),) = chart("Heatmap of gains in accuracy", height=1.4 + 0.62 * len(mean), caption=caption)
    reach = mean.abs().max(axis=None)
    mesh = draw_cells(axis, mean, mean_and_spread(cells, "{:+.2f}"), cmap="PuOr", vmin=-reach, vmax=reach)
    clear = mean.abs() > stats.t.ppf(0.975, count - 1) * cells["std"] / count**0.5
    for cell, stands_out in zip(axis.texts, clear.to_numpy()[mean.notna()], strict=True):
        cell.set_weight("bold" if stands_out else "normal")
    figure.colorbar(mesh, ax=axis, label="gain (percentage points)\nbold: 95 % interval excludes 0")
    label_axes(axis, labels[columns], labels[rows])
    return figure


def gradient_heatmaps(panels: Tables, *, caption: str = "") -> Chart:
    """Gradient norms of the layers' weights by layer and epoch, a panel a network, on one logarithmic colour scale.

    Args:
        panels: by the panel's title, one row per layer and epoch, with epoch, layer, kind and norm, as `gradient_norms`
            and a run's `history.probes` give them.
        caption: what the data are.
    """
    figure, (axes,) = chart("Heatmaps of gradient norms", 1, len(panels), height=3.8, caption=caption)
    weights = {  # a layer's own come before its normalization's
        title: table.query("kind == 'weight'").drop_duplicates(["epoch", "layer"]) for title, table in panels.items()
    }
    norms = np.concatenate([table["norm"] for table in weights.values()])
    scale = LogNorm(norms[norms > 0].min(), norms.max())
    for axis, (title, table) in zip(axes, weights.items(), strict=True):
        mesh = draw_cells(axis, table.pivot_table("norm", "layer", "epoch"), cmap=SHADES, norm=scale)
        axis.invert_yaxis()
        label_axes(axis, "epoch", LAYER, title=title)
    figure.colorbar(mesh, ax=axes, label="gradient norm with respect to\nthe layer's weights")
    return figure


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: Sequence[str], *, caption: str = "") -> Chart:
    """Counts of images by true class (rows) and predicted class (columns); the colours show the mistakes alone.

    Args:
        labels, predictions: (N,) class numbers.
        classes: their names.
        caption: what the data are.
    """
    size = len(classes)
    pairs = labels.cpu() * size + predictions.cpu()
    counts = pairs.bincount(minlength=size**2).view(size, size).numpy()
    mistakes = DataFrame(counts * (1 - np.eye(size, dtype=int)), classes, classes)  # the diagonal outshines them
    figure, ((axis,),) = chart("Confusion matrix", height=6.2, caption=caption)
    text = counts.astype(str) if size <= MOST_CELLS_A_SIDE else False
    mesh = draw_cells(axis, mistakes, text, cmap="Greys", vmin=0, vmax=max(mistakes.max(axis=None), 1), square=True)
    figure.colorbar(mesh, ax=axis, label="mistakes (images)")
    label_axes(axis, "predicted class", "true class")
    return figure
