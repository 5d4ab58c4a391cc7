"""Lines with their spread over seeds: accuracies, losses and gradients against depth, epoch or layer."""

from collections.abc import Mapping

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from pandas import DataFrame

from labutils.notebook.plots.selection import Groups, Tables, labelled, origin, select
from labutils.notebook.plots.style import (
    FAINT,
    INK,
    LINE_WIDTH,
    THEORY,
    Chart,
    accuracy_label,
    chart,
    label_axes,
    line_looks,
)

DEPTHS = {"depth": "hidden layers", "layers": "layers with weights"}  # the columns that say how deep a network is
LAYER = "layer (1 is next to the input)"


def draw_lines(
    axis: Axes, table: DataFrame, *, x: str, y: str, markers: bool = True, named: bool = True
) -> dict[str, Line2D]:
    """Draw a mean line for each label, with a band of one standard deviation over the rows at the same x.

    On a logarithmic axis the mean and the band are geometric. Names stand at the lines' ends, but for empty labels.

    Returns:
        The lines by their labels.
    """
    labels = list(table["label"].unique())
    looks = line_looks(labels)
    looks["markers"] = looks["markers"] if markers else False
    style = {"linewidth": LINE_WIDTH, "markersize": 6, "markeredgewidth": 0, "errorbar": "sd"}
    before, band = len(axis.lines), {"linewidth": 0}
    sns.lineplot(table, x=x, y=y, hue="label", style="label", legend=False, ax=axis, err_kws=band, **style, **looks)
    lines = dict(zip(labels, axis.lines[before:], strict=True))
    if named:
        axis.figure.name_lines(axis, lines)
    return lines


def accuracy_by_depth(results: DataFrame, lines: Groups, *, metric: str, depth: str = "depth") -> Chart:
    """Mean accuracy against depth, with a band of one standard deviation over seeds.

    Args:
        results: one row per run, with its depth and the metric.
        lines: the values that each line's runs have, by the line's label.
        metric: the column to show, fractions from 0 to 1.
        depth: the column that says how deep a network is: depth (hidden layers) or layers (all that have weights).

    Raises:
        SettingError: no run matches a line.
    """
    xlabel = f"depth ({DEPTHS[depth]}, logarithmic)"
    return accuracy_against(results, lines, metric=metric, across=depth, xlabel=xlabel, logarithmic=True)


def accuracy_against(
    results: DataFrame, lines: Groups, *, metric: str, across: str, xlabel: str, logarithmic: bool = False
) -> Chart:
    """Mean accuracy against any numeric column, with a band of one standard deviation over seeds.

    Args:
        results: one row per run, with the column and the metric.
        lines: the values that each line's runs have, by the line's label.
        metric: the column to show, fractions from 0 to 1.
        across: the column on the horizontal axis, with few distinct numbers.
        xlabel: that axis's label.
        logarithmic: whether that axis is logarithmic.

    Raises:
        SettingError: no run matches a line.
    """
    shown = select(results, lines, metric=metric)
    figure, ((axis,),) = chart("Lines of mean accuracy with bands", height=4.2, caption=origin(shown))
    axis.set_xscale("log" if logarithmic else "linear")
    draw_lines(axis, shown, x=across, y=metric)
    places = sorted(shown[across].unique())
    axis.set_xticks(places, map(str, places))
    axis.minorticks_off()
    label_axes(axis, xlabel, accuracy_label(metric), percent="y")
    return figure


def epochs(results: DataFrame, lines: Groups) -> Chart:
    """Training loss and validation accuracy over the epochs, with bands of one standard deviation over seeds.

    Args:
        results: one row per epoch of each run, as `labutils sweep --save-epochs` saves them.
        lines: the values that each line's runs have, by the line's label.

    Raises:
        SettingError: no run matches a line.
    """
    shown = select(results, lines)
    figure, ((left, right),) = chart("Lines over epochs with bands", 1, 2, height=3.9, caption=origin(shown))
    draw_lines(left, shown, x="epoch", y="train_loss")
    draw_lines(right, shown, x="epoch", y="validation_accuracy")
    label_axes(left, "epoch", "loss (nats)", title="Training loss", whole="x")
    label_axes(right, "epoch", "accuracy (%)", title="Validation accuracy", percent="y", whole="x")
    return figure


def gradient_profiles(
    profiles: Tables,
    *,
    rates: Mapping[str, float] | None = None,
    what: str = "the hidden layer's outputs",
    caption: str = "",
) -> Chart:
    """Geometric mean of gradient norms against layers, on a logarithmic axis, with what theory predicts.

    Args:
        profiles: by the line's label, one row per layer (and seed, for a band), with layer and norm.
        rates: the factor per layer that theory predicts for a line, by its label; drawn dotted, starting from the
            norm measured at the last layer.
        what: the quantity with respect to which the gradient was taken.
        caption: what the data are.
    """
    figure, ((axis,),) = chart("Lines of gradient norms by layer with bands", height=4.2, caption=caption)
    axis.set_yscale("log")
    lines = draw_lines(axis, labelled(profiles), x="layer", y="norm", markers=False, named=False)
    predicted_too = [label for label in profiles if label in (rates or {})]
    for label in predicted_too:
        norms = np.log(profiles[label]["norm"]).groupby(profiles[label]["layer"]).mean()
        predicted = np.exp(norms.iloc[-1]) * rates[label] ** (norms.index[-1] - norms.index)
        (line,) = axis.plot(norms.index, predicted, **THEORY)
    figure.name_lines(axis, lines | ({"theory": line} if predicted_too else {}))
    label_axes(axis, LAYER, f"gradient norm with respect to\n{what}", whole="x")
    return figure


def lesions(studies: Tables, *, classes: int = 10, caption: str = "") -> Chart:
    """Accuracy of trained networks from which one hidden layer is removed, with a band over seeds.

    The dashed lines show the whole networks.

    Args:
        studies: tables as `lesion_study` returns them, for one or several seeds, by the line's label.
        classes: the number of classes, for the chance level.
        caption: what the data are.
    """
    table = labelled(studies)
    figure, ((axis,),) = chart("Lines of accuracy by removed layer with bands", height=3.8, caption=caption)
    draw_lines(axis, table[table["dropped"] > 0], x="dropped", y="top1")
    colours = line_looks(list(studies))["palette"]
    for label, whole in table[table["dropped"] == 0].groupby("label")["top1"]:
        axis.axhline(whole.mean(), color=colours[label], ls="--", lw=1)
    axis.axhline(1 / classes, color=FAINT, ls=":", lw=1)
    axis.annotate("chance", (1, 1 / classes), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=INK)
    ylabel = "accuracy (%); dashed: whole network"
    label_axes(axis, f"removed {LAYER}", ylabel, percent="y", whole="x", ylim=(0, 1.02))
    return figure
