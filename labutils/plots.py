"""Every figure of the course, from DataFrames.

One palette throughout: a plain net is always PLAIN, a residual one RESIDUAL. The colours are Okabe and Ito's, told
apart with any colour vision. Accuracies come in as fractions and are drawn as percentages. Every figure says below
itself what its data are.
"""

import base64
import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter
from PIL import Image
from scipy import stats

PLAIN, RESIDUAL = "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # where neither plain nor residual is meant
STARTS = dict(zip(("transfer", "scratch", "frozen", "progressive"), OTHERS, strict=True))  # where a net comes from
FAINT = "#9A9A9A"
SHADES = "cividis"
EARLIER_PROFILES = 4  # that stay in a live profile
DASHES, MARKERS = ("-", "--", "-.", (0, (6, 1, 1, 1, 1, 1))), "osD^"  # dotted is for theory
DEPTHS = {"depth": "hidden layers", "layers": "layers with weights"}  # the columns that say how deep a net is
COSTS = {"seconds": "training (seconds)", "parameters": "parameters that learn"}
WIDTHS = {"depth": "units a layer", "layers": "channels of the first stage"}
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
CAPTION_CHARACTERS = 140  # in a line as long
DOTS_PER_INCH = 144  # drawn at this, shown at 100: sharp on any screen


class Chart(Figure):
    """A figure that shows itself in a notebook; needs no pyplot, so it can also be drawn in a background thread."""

    def drawn(self) -> FigureCanvasAgg:
        """A canvas with the figure on it, drawn once, where savefig lays out and draws twice."""
        self.set_dpi(DOTS_PER_INCH)
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        return canvas

    def png(self) -> bytes:
        return as_png(self.drawn())

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        width = round(self.get_figwidth() * 100)
        bundle = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": f"<Chart, {width} px wide>"}
        return bundle, {"image/png": {"width": width}}


def as_png(canvas: FigureCanvasAgg) -> bytes:
    """What is drawn on a canvas, as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(file, format="png", compress_level=3)  # as fast as 1
    return file.getvalue()


def styled(draw: Callable[..., Chart]) -> Callable[..., Chart]:
    """Draw in the course's style, and leave matplotlib's own settings as they were."""

    @functools.wraps(draw)
    def in_style(*arguments: object, **options: object) -> Chart:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return in_style


def chart(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float,
    caption: str = "",
    layout: str | None = "constrained",
    **options: object,
) -> tuple[Chart, np.ndarray]:
    """An empty chart of the course's width and its axes, (rows, columns); height in inches."""
    figure = Chart(figsize=(WIDTH_IN, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if caption:
        figure.supxlabel(textwrap.fill(caption, CAPTION_CHARACTERS), x=0.01, ha="left", fontsize=8, color="0.35")
    return figure, axes


def origin(results: pd.DataFrame) -> str:
    """What results rest on, for captions: data, seeds, hardware, torch."""
    seeds = results["seed"].nunique() if "seed" in results else 1

    def distinct(column: str) -> str:
        return ", ".join(map(str, results[column].unique()))

    return (
        f"{distinct('data')} ({distinct('source')}); n = {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{distinct('epochs')} epochs; {distinct('processor')}; torch {distinct('torch')}"
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
        histories: a history's frame, or several by name, the newest last; the older, the fainter. Where a name says
            "residual yes" or "residual no", its colour says so, too. An empty mapping gives empty axes.
        caption: what the data are.
    """
    if isinstance(histories, pd.DataFrame):
        histories = {"": histories}
    named = [name for name in histories if name]
    # Placed in inches, because what is in training is redrawn often, and to find a layout takes as long as to draw it.
    above = 0.6 + 0.2 * len(named) if named else 0.35
    below = 0.6 + 0.15 * len(textwrap.wrap(caption, CAPTION_CHARACTERS))
    height = 2.5 + above + below
    figure, ((left, right),) = chart(1, 2, height=height, caption=caption, layout=None)
    figure.subplots_adjust(left=0.1, right=0.99, bottom=below / height, top=1 - above / height, wspace=0.28)
    newest_first = [PLAIN, *OTHERS]
    for age, (name, frame) in enumerate(reversed(histories.items())):
        colour = newest_first[age] if age < len(newest_first) else FAINT
        if "residual yes" in name or "residual no" in name:
            colour = RESIDUAL if "residual yes" in name else PLAIN
        style = {"color": colour, "alpha": max(0.25, 0.7**age)}
        for axes, measured in ((left, "loss"), (right, "accuracy")):
            for part, stroke, label in (
                ("validation", "-", name or "validation"),
                ("train", "--", "" if name else "training"),
            ):
                values = frame[f"{part}_{measured}"]
                marker = "o" if values.count() == 1 else None  # which no line shows
                axes.plot(frame["epoch"], values, stroke, label=label, marker=marker, **style)
    left.set(title="Loss", xlabel="epoch", ylabel="loss (nats)")
    left.ticklabel_format(axis="y", scilimits=(-2, 3))  # a diverging loss, too, finds room beside the axis
    right.set(title="Accuracy", xlabel="epoch", ylabel="correct (%)")
    right.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if named:
        figure.legend(handles=right.lines[::2], loc="upper left", title="solid: validation, dashed: training",
                      alignment="left", fontsize=9, title_fontsize=9, borderaxespad=0.2)  # fmt: skip
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
    results: pd.DataFrame,
    *,
    metric: str = "test_top1",
    depth: str = "depth",
    panels: Mapping[str, Mapping[str, object]] | None = None,
) -> Chart:
    """Mean ± standard deviation of an accuracy over seeds, for each depth and width.

    Args:
        results: a row a run, with its depth, width, seed and the metric.
        metric: the column to show, fractions from 0 to 1.
        depth: the column that says how deep a net is: depth (hidden layers) or layers (all that have weights).
        panels: what each panel shows, by its title: the columns' values that its runs have. Without it one panel.
    """
    panels = panels or {"": {}}
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure, axes = chart(rows, columns, height=0.9 + 3.1 * rows, caption=origin(results))
    for axis, (title, chosen) in zip(axes.flat, panels.items(), strict=False):
        runs = matching(results, chosen)
        cells = runs.pivot_table(index=depth, columns="width", values=metric, aggfunc=["mean", "std"]) * 100
        mean, spread = cells["mean"], cells["std"].fillna(0)
        text = mean.map("{:.2f}".format) + "\n± " + spread.map("{:.2f}".format)
        mesh = heatmap(axis, mean, text, colours=SHADES, low=10, high=100)
        if axis in axes[:, -1]:
            figure.colorbar(mesh, ax=axis, label="correct (%)")
        axis.set(title=title, xlabel=f"width ({WIDTHS[depth]})", ylabel=f"depth ({DEPTHS[depth]})")
    return figure


def line_styles(labels: Sequence[str]) -> dict[str, dict[str, object]]:
    """How each of several lines is drawn, by its label: colour, dashes, marker.

    A label that begins with "residual" takes a shade of RESIDUAL, one that begins with what some network was taken
    over for (STARTS) that start's colour, any other a shade of PLAIN; within each the lines differ by dashes and
    markers, too.
    """
    styles = {}
    families = {"residual": RESIDUAL, **STARTS}
    named = {label: next((name for name in families if label.startswith(name)), None) for label in labels}
    for name, colour in [*families.items(), (None, PLAIN)]:
        family = [label for label in labels if named[label] == name]
        shades = LinearSegmentedColormap.from_list("family", [colour, shaded(colour, 0.45)])
        for number, label in enumerate(family):
            share = number / max(len(family) - 1, 1)
            styles[label] = {"color": shades(share), "ls": DASHES[number % 4], "marker": MARKERS[number % 4]}
    return {label: styles[label] for label in labels}


def kind_colour(label: str) -> str:
    """The colour of a net whose label begins with "residual", or of a plain one."""
    return RESIDUAL if label.startswith("residual") else PLAIN


def shaded(colour: str, share: float) -> tuple[float, ...]:
    """A colour darkened to a share of its brightness."""
    return tuple(share * channel for channel in to_rgb(colour))


def draw_bands(
    axis: Axes, runs: pd.DataFrame, *, across: str, measured: str, label: str, style: Mapping, logarithmic: bool = False
) -> None:
    """Draw a mean line with a band of one standard deviation over the runs at each place; geometric if logarithmic."""
    values = np.log(runs[measured]) if logarithmic else runs[measured]
    points = values.groupby(runs[across]).agg(["mean", "std"])
    low, middle, high = points["mean"] - points["std"], points["mean"], points["mean"] + points["std"]
    if logarithmic:
        low, middle, high = np.exp(low), np.exp(middle), np.exp(high)
    axis.plot(points.index, middle, label=label, markersize=5, **style)
    axis.fill_between(points.index, low, high, color=style["color"], alpha=0.2, linewidth=0)


@styled
def accuracy_by_depth(
    results: pd.DataFrame,
    lines: Mapping[str, Mapping[str, object]],
    *,
    metric: str,
    depth: str = "depth",
    lowest: float | None = None,
) -> Chart:
    """Mean accuracy against depth, with a band of one standard deviation over seeds.

    Args:
        results: a row a run, with its depth and the metric.
        lines: what each line shows, by its label: the columns' values that its runs have.
        metric: the column to show, fractions from 0 to 1.
        depth: the column that says how deep a net is: depth (hidden layers) or layers (all that have weights).
        lowest: where the axis begins, as a fraction, to look at small differences; what lies lower is not shown.
    """
    figure = accuracy_against(
        results, lines, metric=metric, across=depth, xlabel=f"depth ({DEPTHS[depth]}, logarithmic)", logarithmic=True
    )
    figure.axes[0].set_ylim(lowest, None)
    return figure


@styled
def accuracy_against(
    results: pd.DataFrame,
    lines: Mapping[str, Mapping[str, object]],
    *,
    metric: str,
    across: str,
    xlabel: str,
    logarithmic: bool = False,
) -> Chart:
    """Mean accuracy against any column, with a band of one standard deviation over seeds.

    Args:
        results: a row a run, with the column and the metric.
        lines: what each line shows, by its label: the columns' values that its runs have.
        metric: the column to show, fractions from 0 to 1.
        across: the column to show it against, of a few numbers.
        xlabel: what that is.
        logarithmic: whether equal factors are equally far apart.
    """
    figure, ((axis,),) = chart(height=4.2, caption=origin(results))
    for label, style in line_styles(list(lines)).items():
        draw_bands(axis, matching(results, lines[label]), across=across, measured=metric, label=label, style=style)
    places = sorted(results[across].unique())
    if logarithmic:
        axis.set_xscale("log")
    axis.set_xticks(places, map(str, places))
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel="correct (%)")
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    if any(lines):
        axis.legend()
    return figure


@styled
def epochs(results: pd.DataFrame, lines: Mapping[str, Mapping[str, object]]) -> Chart:
    """Training loss and validation accuracy over the epochs, each with a band of one standard deviation over seeds.

    Args:
        results: a row an epoch of each run, as `labutils sweep --save-epochs` banks them.
        lines: what each line shows, by its label: the columns' values that its runs have.
    """
    figure, ((left, right),) = chart(1, 2, height=3.9, caption=origin(results))
    for label, style in line_styles(list(lines)).items():
        runs = matching(results, lines[label])
        draw_bands(left, runs, across="epoch", measured="train_loss", label=label, style=style)
        draw_bands(right, runs, across="epoch", measured="validation_accuracy", label=label, style=style)
    left.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    right.set(title="Validation accuracy", xlabel="epoch", ylabel="correct (%)")
    right.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    return figure


@styled
def loss_surfaces(surfaces: Mapping[str, pd.DataFrame], *, highest: float = 10.0, caption: str = "") -> Chart:
    """The loss around trained nets, as contours side by side, at the same levels.

    Args:
        surfaces: as `loss_surface` gives them, by the panel's title.
        highest: the loss above which nothing is told apart.
        caption: what the data are.
    """
    lowest = min(surface["loss"].min() for surface in surfaces.values())
    levels = np.geomspace(max(lowest, 1e-3), highest, 13)
    figure, (axes,) = chart(1, len(surfaces), height=4.4, caption=caption, sharey=True)
    for axis, (title, surface) in zip(axes, surfaces.items(), strict=True):
        table = surface.pivot_table(index="y", columns="x", values="loss").clip(levels[0], highest)
        colours = LogNorm(levels[0], highest)
        filled = axis.contourf(table.columns, table.index, table, levels=levels, cmap=SHADES, norm=colours)
        lines = axis.contour(table.columns, table.index, table, levels=levels[::2], colors="white", linewidths=0.7)
        axis.clabel(lines, fmt="%.2g", fontsize=8)
        axis.plot(0, 0, "+", color="white", markersize=10)
        axis.set(title=title, xlabel="along the first direction", aspect="equal")
        axis.grid(visible=False)
    axes[0].set_ylabel("along the second direction")
    bar = figure.colorbar(filled, ax=axes, label="cross-entropy (nats)", shrink=0.85)
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) if levels[0] <= tick <= highest]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    return figure


@styled
def activation_maps(
    images: torch.Tensor,
    maps: torch.Tensor,
    labels: torch.Tensor,
    predictions: torch.Tensor,
    classes: Sequence[str],
    *,
    caption: str = "",
) -> Chart:
    """Images, and below each the same with what spoke for the class that was predicted.

    Args:
        images: (N, C, H, W) uint8.
        maps: (N, H', W') how much each place spoke for the predicted class, in logits.
        labels, predictions: (N,) class numbers; a wrong prediction is marked by a cross and bold type.
        classes: their names.
        caption: what the data are.
    """
    figure, axes = chart(2, len(images), height=3.1, caption=caption)
    reach = maps.abs().max().item()
    side = images.shape[-1]
    for number, (above, below) in enumerate(axes.T):
        picture = images[number].permute(1, 2, 0).numpy(force=True)
        wrong = predictions[number] != labels[number]
        above.imshow(picture)
        title = f"is {classes[labels[number]]}\n{'✗' if wrong else '✓'} {classes[predictions[number]]}"
        above.set_title(title, fontsize=8, loc="center", fontweight="bold" if wrong else "normal")
        below.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        shown = below.imshow(maps[number].numpy(force=True), cmap=SHADES, vmin=-reach, vmax=reach, alpha=0.6,
                             extent=(-0.5, side - 0.5, side - 0.5, -0.5), interpolation="bilinear")  # fmt: skip
        for axis in (above, below):
            axis.axis("off")
    figure.colorbar(shown, ax=axes, label="logit at the place", shrink=0.7)
    return figure


@styled
def ladder(
    results: pd.DataFrame,
    rungs: Mapping[str, Mapping[str, object]],
    *,
    metric: str = "test_top1",
    mirrored: str = "test_flips_top1",
    against: str = "seconds",
) -> Chart:
    """What is improved step by step: each rung's accuracy, and accuracy against what it costs; means ± sd over seeds.

    Args:
        results: a row a run, with seconds and the metrics.
        rungs: what each rung shows, from the plain recipe on, by its label: the columns' values that its runs have.
        metric: the column to show, fractions from 0 to 1.
        mirrored: the column with the same figure for an image and its mirror image together; hollow, where it is known.
        against: the column with the cost, a key of COSTS.
    """
    figure, ((left, right),) = chart(
        1, 2, height=1.2 + 0.3 * len(rungs), caption=origin(results), gridspec_kw={"width_ratios": (3, 2)}
    )
    places = []
    for number, chosen in enumerate(rungs.values(), start=1):
        runs = matching(results, chosen)
        bar = {"fmt": "o", "color": RESIDUAL if runs["residual"].eq(True).all() else PLAIN, "capsize": 2}
        correct, cost = runs[metric], runs[against]
        left.errorbar(correct.mean(), number, xerr=correct.std(), ms=6, **bar)
        if runs[mirrored].notna().all():
            left.errorbar(runs[mirrored].mean(), number, xerr=runs[mirrored].std(), ms=6, mfc="white", **bar)
        places.append((cost.mean(), correct.mean()))
        right.errorbar(*places[-1], xerr=cost.std(), yerr=correct.std(), ms=12, alpha=0.8, **bar)
    write_numbers(right, places)
    left.set_yticks(range(1, len(rungs) + 1), [f"{name}  {number}" for number, name in enumerate(rungs, start=1)])
    left.set(xlabel="correct (%); hollow: with the mirror image", ylim=(len(rungs) + 0.5, 0.5))
    left.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    right.set(xlabel=COSTS[against], ylabel="correct (%)", xlim=(0, None))
    if against == "parameters":
        right.set_xscale("symlog", linthresh=1e4)  # some rungs learn none
        right.set_xlim(-2e3, 2 * right.get_xlim()[1])
    right.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    return figure


def write_numbers(axis: Axes, places: Sequence[tuple[float, float]]) -> None:
    """Number markers at (cost, accuracy) from 1: in the marker, or side by side where several lie in one place."""
    near = 0.03 * np.ptp([accuracy for _, accuracy in places])
    piles: dict[tuple[float, float], list[str]] = {}
    for number, (cost, accuracy) in enumerate(places, start=1):
        alike = [place for place in piles if np.isclose(place[0], cost, rtol=0.1) and abs(place[1] - accuracy) <= near]
        piles.setdefault(alike[0] if alike else (cost, accuracy), []).append(str(number))
    style = {"va": "center", "fontsize": 8, "weight": "bold"}
    for place, numbers in piles.items():
        if len(numbers) == 1:
            axis.annotate(numbers[0], place, ha="center", color="white", **style)
        else:
            axis.annotate(
                " ".join(numbers), place, ha="right", xytext=(-9, 0), textcoords="offset points", color="0.2", **style
            )


@styled
def gradient_profiles(
    profiles: Mapping[str, pd.DataFrame],
    *,
    rates: Mapping[str, float] | None = None,
    what: str = "the hidden layer's outputs",
    caption: str = "",
) -> Chart:
    """Gradient norms against layers, on a logarithmic scale, with what theory predicts.

    Args:
        profiles: a row a layer (and a seed, for a band), with layer and norm, by the line's label.
        rates: the rate per layer that theory predicts for a line, by its label; drawn dotted, starting from the last
            layer's measured norm.
        what: by what the loss was differentiated.
        caption: what the data are.
    """
    figure, ((axis,),) = chart(height=4.2, caption=caption)
    for label, style in line_styles(list(profiles)).items():
        profile = profiles[label]
        style = {**style, "marker": None}
        draw_bands(axis, profile, across="layer", measured="norm", label=label, style=style, logarithmic=True)
        if rates and label in rates:
            layers = np.unique(profile["layer"])
            last = np.exp(np.log(profile[profile["layer"] == layers[-1]]["norm"]).mean())
            predicted = last * rates[label] ** (layers[-1] - layers)
            axis.plot(layers, predicted, color="black", ls=":", lw=1.4)
    if rates:
        axis.plot([], [], color="black", ls=":", lw=1.4, label="theory")
    axis.set_yscale("log")
    axis.set(xlabel="layer (1 is next to the image)", ylabel=f"gradient norm by\n{what}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return figure


@styled
def accuracies(
    results: pd.DataFrame,
    rows: Mapping[str, Mapping[str, object]],
    *,
    metric: str,
    lines: Mapping[str, float] = MappingProxyType({}),
) -> Chart:
    """Accuracies as dots, a faint one a run and a strong one for their mean, with a bar of one standard deviation.

    Args:
        results: a row a run, with the metric.
        rows: what each row shows, from the top, by its label: the columns' values that its runs have.
        metric: the column to show, fractions from 0 to 1.
        lines: accuracies to compare with, a vertical line each, by their labels.
    """
    figure, ((axis,),) = chart(height=1.0 + 0.24 * len(rows), caption=origin(results))
    for place, (label, chosen) in enumerate(rows.items()):
        runs = matching(results, chosen)[metric]
        colour = kind_colour(label)
        axis.plot(runs, [place] * len(runs), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
        spread = 0 if len(runs) == 1 else runs.std()
        axis.errorbar(runs.mean(), place, xerr=spread, fmt="D", color=colour, markersize=4)
    for label, accuracy in lines.items():
        axis.axvline(accuracy, color="black", ls="--", lw=1.4)
        axis.annotate(label, (accuracy, 0), xytext=(-4, 0), textcoords="offset points", ha="right", va="center")
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel="correct (%)", ylim=(len(rows) - 0.5, -0.5))
    axis.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    return figure


class LiveChart:
    """A figure that is redrawn in place: several times as fast as a new one, for a slider's sake."""

    def settle(self, figure: Chart) -> None:
        """Draw a figure once, after which things stay where they stand."""
        self.canvas = figure.drawn()
        figure.set_layout_engine("none")


class LiveProfile(LiveChart):
    """One gradient profile that is redrawn in place."""

    @styled
    def __init__(self) -> None:
        figure, ((self.axis,),) = chart(height=3.8)
        self.axis.set_yscale("log")
        self.axis.set(xlabel="layer (1 is next to the image)", ylabel="gradient norm by\nthe hidden layer's outputs")
        self.earlier = [self.axis.plot([], [], color=FAINT, lw=1, alpha=0.7)[0] for _ in range(EARLIER_PROFILES)]
        (self.line,) = self.axis.plot([], [], marker=".")
        (self.theory,) = self.axis.plot([], [], color="black", ls=":", lw=1.4, label="theory")
        # Numbers as plain text, things that stay where they stand, and a canvas that is drawn once a picture: each a
        # third of the time that a new figure's file would take.
        self.axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.axis.yaxis.set_major_formatter(LogFormatter())
        self.axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        self.axis.set_ylim(1e-9, 1e9)
        self.settle(figure)

    @styled
    def png(
        self, profile: pd.DataFrame, *, label: str, residual: bool, rate: float | None, earlier: Sequence[pd.DataFrame]
    ) -> bytes:
        """Redraw it.

        Args:
            profile: a row a layer, with layer and norm.
            label: the profile's name.
            residual: of what kind the net is, for its colour.
            rate: what theory predicts, per layer; None where it does not.
            earlier: profiles to compare with, the newest last.
        """
        layers, norms = profile["layer"].to_numpy(), profile["norm"].to_numpy()
        self.line.set(xdata=layers, ydata=norms, color=RESIDUAL if residual else PLAIN, label=label)
        predicted = [] if rate is None else norms[-1] * rate ** (layers[-1] - layers)
        self.theory.set(xdata=layers[: len(predicted)], ydata=predicted, visible=rate is not None)
        latest = list(earlier)[-EARLIER_PROFILES:]
        for line, other in zip(self.earlier, [*latest, *[None] * (EARLIER_PROFILES - len(latest))], strict=True):
            line.set(xdata=[] if other is None else other["layer"], ydata=[] if other is None else other["norm"])
        drawn = np.concatenate([norms, predicted, *(other["norm"] for other in latest)])
        drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
        low, high = (np.log10(drawn.min()), np.log10(drawn.max())) if len(drawn) else (-1, 1)
        margin = max(0.05 * (high - low), 0.15)
        deepest = max(len(layers), *(len(other) for other in latest), 2)
        self.axis.set(xlim=(0.5, deepest + 0.5), ylim=(10 ** (low - margin), 10 ** (high + margin)))
        self.axis.legend(handles=[self.line, self.theory] if rate is not None else [self.line], loc="best")
        self.canvas.draw()
        return as_png(self.canvas)


class LiveAnswers(LiveChart):
    """Images, and below each what a network says of it, as bars that are redrawn in place.

    Args:
        images: (N, C, H, W) uint8, up to five.
        labels: (N,) class numbers.
        classes: their names.
        caption: what the data are.
    """

    @styled
    def __init__(self, images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *, caption: str = ""):
        figure, axes = chart(2, len(images), height=4.4, caption=caption, gridspec_kw={"height_ratios": (2, 3)})
        self.bars = []
        for (above, below), image, label in zip(
            axes.T, images.permute(0, 2, 3, 1).numpy(force=True), labels, strict=True
        ):
            above.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray_r")
            above.set_axis_off()
            above.set_title(classes[label], loc="center")
            bars = below.barh(range(len(classes)), [0.0] * len(classes), color=RESIDUAL)
            bars[label].set_color(OTHERS[0])
            below.set(xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5), xlabel="probability (%)")
            below.set_yticks(range(len(classes)), classes if below is axes[1, 0] else [""] * len(classes))
            below.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
            for bar in bars:
                bar.set_animated(True)  # all that changes
            self.bars.append(bars)
        self.settle(figure)
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def png(self, probabilities: torch.Tensor) -> bytes:
        """Redraw the bars for probabilities (N, classes)."""
        self.canvas.restore_region(self.background)
        for bars, row in zip(self.bars, probabilities.tolist(), strict=True):
            for bar, probability in zip(bars, row, strict=True):
                bar.set_width(probability)
                bar.axes.draw_artist(bar)
        return as_png(self.canvas)


@styled
def gains(results: pd.DataFrame, *, rows: str, columns: str, labels: Mapping[str, str], caption: str = "") -> Chart:
    """By how much runs beat what they are compared with, as coloured cells: mean ± standard deviation over seeds.

    A cell is set in bold type if the 95 % confidence interval of its mean (Student's t) leaves out 0.

    Args:
        results: a row a run: the two settings, and its gain, a difference of fractions.
        rows, columns: the settings.
        labels: what the settings are called, by their names.
        caption: what the data are.
    """
    cells = results.pivot_table(index=rows, columns=columns, values="gain", aggfunc=["mean", "std", "size"])
    mean, spread, count = 100 * cells["mean"], 100 * cells["std"], cells["size"]
    text = (mean.map("{:+.2f}".format) + "\n± " + spread.map("{:.2f}".format)).where(mean.notna(), "")
    figure, ((axis,),) = chart(height=1.4 + 0.62 * len(mean), caption=caption)
    reach = mean.abs().max().max()
    mesh = heatmap(axis, mean, text, colours="PuOr", low=-reach, high=reach)
    clear = (mean.abs() > stats.t.ppf(0.975, count - 1) * spread / count**0.5).to_numpy().ravel()
    for cell, stands_out in zip(axis.texts, clear, strict=True):
        cell.set_weight("bold" if stands_out else "normal")
    axis.set(xlabel=labels[columns], ylabel=labels[rows])
    figure.colorbar(mesh, ax=axis, label="gain (points)")
    return figure


@styled
def reliability(tables: Mapping[str, pd.DataFrame], *, caption: str = "") -> Chart:
    """How often networks are right when they are so sure (Guo et al. 2017), a panel a network; on the line: calibrated.

    Args:
        tables: by the network's name, a row a bin of confidence: confidence, accuracy and share of the images. A name
            that begins with "residual" makes it one for the colour, any other a plain one.
        caption: what the data are.
    """
    figure, axes = chart(1, len(tables), height=3.6, caption=caption, sharey=True)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="black", ls=":", lw=1.4)
        axis.scatter(
            table["confidence"],
            table["accuracy"],
            s=8 + 900 * table["share"],
            color=kind_colour(name),
            alpha=0.6,
            clip_on=False,
        )
        axis.set(title=name, xlabel="confidence (%)", xlim=(0, 1.02), ylim=(0, 1.02))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(PercentFormatter(1, symbol=""))
    axes[0, 0].set_ylabel("correct (%)")
    return figure


@styled
def gradient_heatmaps(panels: Mapping[str, pd.DataFrame], *, caption: str = "") -> Chart:
    """Gradient norms of the weights by layer and epoch, one panel a net, on one logarithmic scale of colours.

    Args:
        panels: a row a layer and an epoch, with epoch, layer, kind and norm, as `gradient_norms` and a run's
            `history.probes` give them, by the panel's title.
        caption: what the data are.
    """
    figure, (axes,) = chart(1, len(panels), height=3.8, caption=caption)
    tables = {
        title: np.log10(probes[probes["kind"] == "weight"].pivot_table(index="layer", columns="epoch", values="norm"))
        for title, probes in panels.items()
    }
    low = min(table.to_numpy().min() for table in tables.values())
    high = max(table.to_numpy().max() for table in tables.values())
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        mesh = axis.pcolormesh(table.columns, table.index, table, cmap=SHADES, vmin=low, vmax=high, shading="nearest")
        axis.set(title=title, xlabel="epoch", ylabel="layer (1 is next to the image)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(visible=False)
    figure.colorbar(mesh, ax=list(axes), label="weight gradient's norm (power of ten)")
    return figure


@styled
def lesions(studies: Mapping[str, pd.DataFrame], *, classes: int = 10, caption: str = "") -> Chart:
    """Accuracy of trained nets with one hidden layer left out, against that layer, with a band over seeds.

    Dashed: the whole net.

    Args:
        studies: as `lesion_study` gives them, with a row for each seed too, by the line's label.
        classes: of the data set, whose chance level is drawn.
        caption: what the data are.
    """
    figure, ((axis,),) = chart(height=3.8, caption=caption)
    for label, style in line_styles(list(studies)).items():
        study = studies[label]
        lesioned, whole = study[study["dropped"] > 0], study[study["dropped"] == 0]["top1"].mean()
        draw_bands(axis, lesioned, across="dropped", measured="top1", label=label, style=style)
        axis.axhline(whole, color=style["color"], ls="--", lw=1)
    axis.axhline(1 / classes, color=FAINT, ls=":", lw=1)
    axis.annotate("chance", (1, 1 / classes), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.35")
    axis.set(xlabel="layer left out (1 is next to the image)", ylabel="correct (%)", ylim=(0, 1.02))
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return figure


@styled
def correlations(curves: Mapping[str, pd.DataFrame], *, caption: str = "") -> Chart:
    """How alike gradients are at inputs some way apart, against that distance.

    Args:
        curves: as `gradient_correlation` gives them, with a row for each seed too, by the line's label.
        caption: what the data are.
    """
    figure, ((axis,),) = chart(height=3.8, caption=caption)
    for label, style in line_styles(list(curves)).items():
        style = {**style, "marker": None}
        draw_bands(axis, curves[label], across="distance", measured="correlation", label=label, style=style)
    axis.axhline(0, color=FAINT, lw=1)
    axis.set(
        xlabel="distance between two inputs (Euclidean, normalised pixels)", ylabel="correlation of their gradients"
    )
    axis.legend()
    return figure


@styled
def feature_maps(
    maps: Mapping[str, np.ndarray], groups: Sequence[str], shown: Sequence[str], *, caption: str = ""
) -> Chart:
    """Features laid out in a plane, a dot an image.

    Args:
        maps: places (N, 2) by the name of the method that found them.
        groups: which group each image belongs to, N names.
        shown: the groups in colour, six at most; the others are grey.
        caption: what the data are.
    """
    colours = dict(zip(shown, (*OTHERS, PLAIN, RESIDUAL), strict=False))
    groups = np.asarray(groups)
    figure, axes = chart(1, len(maps), height=4.6, caption=caption)
    for axis, (name, places) in zip(axes[0], maps.items(), strict=True):
        others = ~np.isin(groups, list(colours))
        axis.scatter(*places[others].T, s=3, color=FAINT, alpha=0.35, linewidths=0)
        for (group, colour), marker in zip(colours.items(), "os^Dv*", strict=False):
            axis.scatter(*places[groups == group].T, s=13, color=colour, marker=marker, label=group, linewidths=0)
        axis.set(title=name, xticks=[], yticks=[], xlabel="first dimension", ylabel="second dimension")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return figure


@styled
def accuracies_by_group(results: pd.DataFrame, columns: Sequence[str], *, caption: str = "") -> Chart:
    """Accuracies of several methods, a row a group, the mean over seeds with a bar of one standard deviation.

    Args:
        results: a row a group and seed: group, seed, and a column of fractions from 0 to 1 for each method.
        columns: the methods, two to four; rows are sorted by the first method's share of the last one's accuracy.
        caption: what the data are.
    """
    mean, spread = (results.groupby("group")[list(columns)].agg(how) for how in ("mean", "std"))
    order = (mean[columns[0]] / mean[columns[-1]].clip(lower=1e-9)).sort_values().index
    figure, ((axis,),) = chart(height=1.2 + 0.26 * len(order), caption=caption)
    for name, style in line_styles(list(columns)).items():
        marks = {"fmt": style["marker"], "color": style["color"], "ms": 5, "capsize": 2}
        axis.errorbar(mean.loc[order, name], range(len(order)), xerr=spread.loc[order, name], label=name, **marks)
    axis.set_yticks(range(len(order)), order)
    axis.set(xlabel="correct (%)", ylim=(-0.5, len(order) - 0.5))
    axis.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    figure.legend(loc="outside upper center", ncols=len(columns))
    return figure


@styled
def scores(found: Mapping[str, float], *, caption: str = "") -> Chart:
    """Accuracies of a few choices as bars, the newest on top and dark, earlier ones faint.

    Args:
        found: fractions from 0 to 1 by the choice's label, the newest last.
        caption: what the data are.
    """
    figure, ((axis,),) = chart(height=0.9 + 0.34 * max(len(found), 2), caption=caption)
    newest_first = dict(reversed(found.items()))
    for place, accuracy in enumerate(newest_first.values()):
        axis.barh(place, accuracy, height=0.6, color=RESIDUAL, alpha=1 if place == 0 else 0.35)
        axis.annotate(f"{accuracy:.1%}", (accuracy, place), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(found)), newest_first)
    axis.set(xlabel="validation images that are right (%)", ylim=(max(len(found), 2) - 0.5, -0.5))
    axis.set_xlim(0, 1.15 * max(found.values(), default=1))
    axis.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
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
