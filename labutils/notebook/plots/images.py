"""What seaborn has no plot for: images, activation maps, features in the plane, loss landscapes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator
from torch import Tensor

from labutils.notebook.plots.selection import Tables
from labutils.notebook.plots.style import FAINT, INK, OTHERS, PLAIN, RESIDUAL, SHADES, Chart, chart, label_axes


def verdict(label: int, prediction: int, classes: Sequence[str]) -> tuple[str, str]:
    """An image's title with its label and prediction, and the title's font weight: bold if the prediction is wrong."""
    wrong = label != prediction
    return f"is {classes[label]}\n{'✗' if wrong else '✓'} {classes[prediction]}", "bold" if wrong else "normal"


def image_grid(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    predictions: Tensor | None = None,
    confidences: Tensor | None = None,
    columns: int = 10,
    caption: str = "",
) -> Chart:
    """Images with their labels and, where given, a network's predictions.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) class numbers.
        classes: their names.
        predictions: (N,) class numbers; a wrong one is marked by a cross and bold type.
        confidences: (N,) the predictions' probabilities, from 0 to 1.
        columns: images per row.
        caption: what the data are.
    """
    lines = 1 if predictions is None else 2
    pitch = 1.05 + 0.28 * lines  # the distance between rows, in image heights
    rows = -(-len(images) // columns)
    shows = f"{len(images)} images with their labels" + ("" if predictions is None else " and predictions")
    figure, ((axis,),) = chart(shows, height=0.3 + 0.83 * rows * pitch, caption=caption)
    # One axes for all: an axes for each image would take ten times as long to lay out.
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy(force=True)):
        x, y = number % columns, number // columns * pitch
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=255, extent=(x + 0.05, x + 0.95, y + 0.95, y + 0.05))
        title, weight = classes[labels[number]], "normal"
        if predictions is not None:
            title, weight = verdict(labels[number], predictions[number], classes)
            title += "" if confidences is None else f" {confidences[number]:.1%}"
        axis.text(x + 0.5, y, title, ha="center", va="bottom", fontsize=8, fontweight=weight, color=INK)
    axis.set(xlim=(0, columns), ylim=(rows * pitch - 0.28 * lines, -0.3 * lines), aspect="equal")
    axis.axis("off")
    return figure


def activation_maps(
    images: Tensor, maps: Tensor, labels: Tensor, predictions: Tensor, classes: Sequence[str], *, caption: str = ""
) -> Chart:
    """Images, and below each its class activation map (Zhou et al. 2016) laid over it.

    Args:
        images: (N, C, H, W) uint8.
        maps: (N, H', W') each location's contribution to the predicted class, in logits.
        labels, predictions: (N,) class numbers; a wrong prediction is marked by a cross and bold type.
        classes: their names.
        caption: what the data are.
    """
    shows = f"{len(images)} images with their labels and predictions, and their class activation maps"
    figure, axes = chart(shows, 2, len(images), height=3.1, caption=caption)
    reach = maps.abs().max().item()
    edges = (-0.5, images.shape[-1] - 0.5, images.shape[-1] - 0.5, -0.5)
    heat = {"cmap": SHADES, "vmin": -reach, "vmax": reach, "alpha": 0.6, "interpolation": "bilinear", "extent": edges}
    for number, (above, below) in enumerate(axes.T):
        picture = images[number].permute(1, 2, 0).numpy(force=True)
        title, weight = verdict(labels[number], predictions[number], classes)
        above.imshow(picture)
        above.set_title(title, fontsize=8, loc="center", fontweight=weight)
        below.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        mesh = below.imshow(maps[number].numpy(force=True), **heat)
        above.axis("off")
        below.axis("off")
    figure.colorbar(mesh, ax=axes, label="contribution (logits)", shrink=0.7)
    return figure


def feature_maps(
    maps: Mapping[str, np.ndarray], groups: Sequence[str], shown: Sequence[str], *, caption: str = ""
) -> Chart:
    """Features in the plane, one point per image.

    Args:
        maps: coordinates (N, 2) by the name of the method that found them.
        groups: N names, each image's group.
        shown: the groups in colour, six at most; the others are grey.
        caption: what the data are.
    """
    groups = np.asarray(groups)
    figure, (panels,) = chart("Images as points in the plane", 1, len(maps), height=4.6, caption=caption)
    for axis, (name, places) in zip(panels, maps.items(), strict=True):
        others = ~np.isin(groups, list(shown))
        axis.scatter(*places[others].T, s=3, color=FAINT, alpha=0.35, linewidths=0)
        for group, colour, marker in zip(shown, (*OTHERS, PLAIN, RESIDUAL), "os^Dv*", strict=False):
            axis.scatter(*places[groups == group].T, s=13, color=colour, marker=marker, label=group, linewidths=0)
        label_axes(axis, "first dimension", "second dimension", title=name, xticks=[], yticks=[])
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def loss_surfaces(surfaces: Tables, *, highest: float = 10.0, caption: str = "") -> Chart:
    """The loss around trained networks (Li et al. 2018), as contours at the same levels.

    Args:
        surfaces: tables as `loss_surface` returns them, by the panel's title.
        highest: the highest level, in nats; a higher loss is drawn like this one.
        caption: what the data are.
    """
    lowest = max(min(surface["loss"].min() for surface in surfaces.values()), 1e-3)
    levels = np.geomspace(lowest, highest, 13)
    shows = "Contours of the loss in a plane around trained networks"
    figure, (panels,) = chart(shows, 1, len(surfaces), height=4.4, caption=caption, sharey=True)
    for axis, (title, surface) in zip(panels, surfaces.items(), strict=True):
        table = surface.pivot_table(index="y", columns="x", values="loss").clip(lowest, highest)
        grid = (table.columns, table.index, table)
        filled = axis.contourf(*grid, levels=levels, cmap=SHADES, norm=LogNorm(lowest, highest))
        lines = axis.contour(*grid, levels=levels[::2], colors="white", linewidths=0.7)
        axis.clabel(lines, fmt="%.2g", fontsize=8)
        axis.plot(0, 0, "+", color="white", markersize=10)  # the trained network
        label_axes(axis, "along the first direction", title=title, aspect="equal")
        axis.grid(visible=False)
    panels[0].set_ylabel("along the second direction")
    ticks = {"ticks": LogLocator(subs=(1, 3)), "format": "%g"}
    figure.colorbar(filled, ax=panels, label="cross-entropy (nats)", shrink=0.85, **ticks)
    return figure
