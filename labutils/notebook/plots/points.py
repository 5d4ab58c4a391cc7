"""Points with their spread over seeds: accuracies of many settings, groups or rungs of a ladder, and calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from pandas import DataFrame

from labutils.notebook.plots import style
from labutils.notebook.plots.selection import Groups, Tables, origin, select
from labutils.notebook.plots.style import INK, THEORY, Chart, accuracy_label, chart, kind_colour, label_axes, line_looks

BARS = {"errorbar": "sd", "err_kws": {"linewidth": 1.5}, "linestyle": "none", "markersize": 6, "markeredgewidth": 0}


def accuracies(results: DataFrame, rows: Groups, *, metric: str, lines: Mapping[str, float] | None = None) -> Chart:
    """Accuracies as points: a faint one per run, and their mean with a bar of one standard deviation.

    Args:
        results: one row per run, with the metric.
        rows: the values that each row's runs have, from the top, by the row's label.
        metric: the column to show, fractions from 0 to 1.
        lines: reference accuracies by their labels, each drawn as a vertical line.

    Raises:
        SettingError: no run matches a row.
    """
    shown = select(results, rows, kind="row", metric=metric)
    figure, ((axis,),) = chart("Points of accuracy", height=1.0 + 0.24 * len(rows), caption=origin(shown))
    colours = {label: kind_colour(label) for label in rows}
    points = {"data": shown, "x": metric, "y": "label", "hue": "label", "palette": colours, "legend": False, "ax": axis}
    sns.stripplot(**points, jitter=False, size=3.5)
    sns.pointplot(**points, **BARS, marker="D")
    for label, accuracy in (lines or {}).items():
        axis.axvline(accuracy, color=INK, ls="--", lw=1.4)
        axis.annotate(label, (accuracy, 0), xytext=(-4, 0), textcoords="offset points", ha="right", va="center",
                      color=INK)  # fmt: skip
    axis.grid(visible=True)  # seaborn switches the rows' lines off
    label_axes(axis, accuracy_label(metric), percent="x", ylim=(len(rows) - 0.5, -0.5))
    return figure


def accuracies_by_group(results: DataFrame, columns: Sequence[str], *, caption: str = "") -> Chart:
    """Accuracies of several methods for each group: means with bars of one standard deviation over seeds.

    Groups are sorted by the first method's accuracy relative to the last one's, the lowest at the bottom.

    Args:
        results: one row per group and seed: group, seed, and for each method a column of fractions from 0 to 1.
        columns: the methods, two to four.
        caption: what the data are.
    """
    mean = results.groupby("group")[list(columns)].mean()
    order = (mean[columns[0]] / mean[columns[-1]].clip(lower=1e-9)).sort_values().index
    figure, ((axis,),) = chart("Points of accuracy by group", height=1.2 + 0.26 * len(order), caption=caption)
    table = results.melt("group", columns, "label", "accuracy")
    looks = line_looks(columns)
    look = {"palette": looks["palette"], "markers": list(looks["markers"].values()), "capsize": 0.3} | BARS
    sns.pointplot(table, x="accuracy", y="group", hue="label", order=order, ax=axis, **look)
    axis.get_legend().remove()
    axis.grid(visible=True)  # seaborn switches the rows' lines off
    label_axes(axis, "accuracy (%)", percent="x", ylim=(-0.5, len(order) - 0.5))
    figure.legend(loc="outside upper center", ncols=len(columns), frameon=False)
    return figure


def ladder(results: DataFrame, rungs: Groups) -> Chart:
    """A sequence of improvements: each rung's test accuracy, and that against seconds; means ± standard deviation.

    Args:
        results: one row per run, with seconds, test_top1 and test_flips_top1, which is drawn hollow where it is known.
        rungs: the values that each rung's runs have, from the plain recipe on, by the rung's label.

    Raises:
        SettingError: no run matches a rung.
    """
    shown = select(results, rungs, kind="rung", metric="test_top1")
    shows, height = "Points of accuracy by rung, and against cost", 1.2 + 0.3 * len(rungs)
    figure, ((left, right),) = chart(shows, 1, 2, height=height, caption=origin(shown), width_ratios=(3, 2))
    places = []
    for number, (_, runs) in enumerate(shown.groupby("label", sort=False), start=1):
        bar = {"fmt": "o", "color": style.RESIDUAL if runs["residual"].eq(True).all() else style.PLAIN, "capsize": 2}
        accuracy, mirrored, cost = runs["test_top1"], runs["test_flips_top1"], runs["seconds"]
        left.errorbar(accuracy.mean(), number, xerr=accuracy.std(), ms=6, **bar)
        if mirrored.notna().all():
            left.errorbar(mirrored.mean(), number, xerr=mirrored.std(), ms=6, mfc="none", **bar)
        places.append((cost.mean(), accuracy.mean()))
        right.errorbar(*places[-1], xerr=cost.std(), yerr=accuracy.std(), ms=12, **bar)
    write_numbers(right, places)
    left.set_yticks(range(1, len(rungs) + 1), [f"{name}  {number}" for number, name in enumerate(rungs, start=1)])
    xlabel = "test accuracy (%); hollow: with the mirror image"
    label_axes(left, xlabel, percent="x", ylim=(len(rungs) + 0.5, 0.5))
    label_axes(right, "training (seconds)", "test accuracy (%)", percent="y", xlim=(0, None))
    return figure


def write_numbers(axis: Axes, places: Sequence[tuple[float, float]]) -> None:
    """Number the markers at (cost, accuracy) from 1: inside the marker, or beside it where several coincide."""
    near = 0.03 * np.ptp([accuracy for _, accuracy in places])
    piles: dict[tuple[float, float], list[str]] = {}
    for number, (cost, accuracy) in enumerate(places, start=1):
        alike = [place for place in piles if np.isclose(place[0], cost, rtol=0.1) and abs(place[1] - accuracy) <= near]
        piles.setdefault(alike[0] if alike else (cost, accuracy), []).append(str(number))
    inside = {"ha": "center", "color": "white"}
    beside = {"ha": "right", "color": INK, "xytext": (-9, 0), "textcoords": "offset points"}
    for place, numbers in piles.items():
        where = inside if len(numbers) == 1 else beside
        axis.annotate(" ".join(numbers), place, va="center", fontsize=8, weight="bold", **where)


def reliability(tables: Tables, *, caption: str = "") -> Chart:
    """Reliability diagrams (Guo et al. 2017): accuracy against confidence; a calibrated network lies on the diagonal.

    Args:
        tables: by the network's name, one row per bin of confidence: confidence, accuracy and share of the images, each
            from 0 to 1. The area of a point grows with that share. A name that begins with "residual" takes RESIDUAL.
        caption: what the data are.
    """
    shows = "Reliability diagrams: points of accuracy against confidence"
    figure, (panels,) = chart(shows, 1, len(tables), height=3.6, caption=caption, sharey=True)
    for axis, (name, table) in zip(panels, tables.items(), strict=True):
        axis.plot([0, 1], [0, 1], **THEORY)
        look = {"s": 8 + 900 * table["share"], "color": kind_colour(name), "alpha": 0.6, "clip_on": False}
        axis.scatter(table["confidence"], table["accuracy"], **look)
        label_axes(axis, "confidence (%)", title=name, percent="xy", xlim=(0, 1.02), ylim=(0, 1.02))
    panels[0].set_ylabel("accuracy (%)")
    return figure
