"""Diagrams of the course's ideas, drawn in the figures' palette.

They are charts like all others, a PNG picture with its description inside HTML, because that is what every reader
shows. JupyterLab drops SVG from notebooks that it does not trust, such as a fresh clone, and GitHub shows the SVG of
matplotlib without its text. Neither theme's colours reach into a picture. So the ground is transparent, all lines and
boxes stand out from white and from black, and every word stands on a box of its own. For slides and print, save one by
`savefig("NAME.svg")`.
"""

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from labutils.notebook.plots.style import FAINT, INK, LINE_WIDTH, OTHERS, PLAIN, RESIDUAL, WIDTH_IN, Chart

UNITS_PER_INCH = 2  # of a diagram's coordinates, which begin at its lower left corner
WIDE = UNITS_PER_INCH * WIDTH_IN
HIGH = 0.8  # height of a box with one line
TINT = 0.2  # share of a box's colour inside it
GAP = 0.15  # between an arrow and a box
NEW = OTHERS[0]
Point = tuple[float, float]


def diagram(shows: str, height: float) -> tuple[Chart, Axes]:
    """An empty diagram of the course's width, and where to draw it.

    Args:
        shows: what is to be seen, for readers who cannot see it, without the last full stop.
        height: in units.
    """
    figure = Chart(figsize=(WIDTH_IN, height / UNITS_PER_INCH))
    figure.shows = shows
    figure.patch.set_alpha(0)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDE), ylim=(0, height))
    axis.axis("off")
    return figure, axis


def look(colour: str) -> dict[str, object]:
    """A box with an edge of a colour, and light enough inside for black words."""
    light = [1 - TINT * (1 - part) for part in to_rgb(colour)]
    return {"facecolor": light, "edgecolor": colour, "linewidth": LINE_WIDTH}


def box(
    axis: Axes, x: float, y: float, text: str, *, colour: str = INK, width: float = 2, height: float = HIGH
) -> tuple[float, float]:
    """A rounded box with a text; returns where its left and right edges are."""
    left, right = x - width / 2, x + width / 2
    rounded = "round,pad=0,rounding_size=0.15"
    axis.add_patch(FancyBboxPatch((left, y - height / 2), width, height, boxstyle=rounded, **look(colour)))
    axis.text(x, y, text, ha="center", va="center", fontsize=10)
    return left, right


def note(axis: Axes, x: float, y: float, text: str, *, colour: str = INK) -> None:
    """A remark in small type, in a box that fits it."""
    fitting = {"boxstyle": "round,pad=0.3", **look(colour), "linewidth": 0.8}
    axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox=fitting)


def arrow(axis: Axes, *points: Point, colour: str = INK, gradient: bool = False) -> None:
    """An arrow along points: solid for what is computed, dashed for a gradient on its way back."""
    line = {"linestyle": (0, (3, 1.5)) if gradient else "-", "linewidth": LINE_WIDTH, "color": colour}
    axis.add_patch(FancyArrowPatch(path=Path(points), arrowstyle="-|>", mutation_scale=12, **line))


def chain(axis: Axes, y: float, *edges: tuple[float, float]) -> None:
    """Arrows from each box in a row to the next, given their left and right edges."""
    for (_, start), (end, _) in itertools.pairwise(edges):
        arrow(axis, (start + GAP, y), (end - GAP, y))


def residual_block() -> Chart:
    """A plain and a residual block, and the ways of the gradient back through each (notebook 02)."""
    figure, axis = diagram(
        "A plain block computes f(x) from x. Its gradient has one way back from f(x) to x, through the layers, and is "
        "multiplied by their derivative. A residual block computes x + f(x): a skip carries x past the layers to a "
        "sum. Its gradient has two ways back: through the skip, where it stays as it is, and through the layers, "
        "where it is multiplied by their derivative",
        height=8.6,
    )
    first, layers, last = 1.2, 7.5, 14.9
    y = 7
    note(axis, first, y + 1, "plain", colour=PLAIN)
    chain(
        axis,
        y,
        box(axis, first, y, "x", width=1.2),
        box(axis, layers, y, "layers f", width=3, colour=PLAIN),
        box(axis, last, y, "f(x)"),
    )
    back(axis, last, first, y - HIGH / 2, y - 1.2, "gradient: multiplied by the derivative of f", PLAIN)
    y = 2.4
    skip, total = y + 1.1, 12.2
    note(axis, first + 0.2, y + 2.8, "residual", colour=RESIDUAL)
    chain(
        axis,
        y,
        box(axis, first, y, "x", width=1.2),
        box(axis, layers, y, "layers f", width=3, colour=PLAIN),
        box(axis, total, y, "+", width=HIGH),
        box(axis, last, y, "x + f(x)"),
    )
    start = (first + 1.2, y)
    arrow(axis, start, (start[0], skip), (total, skip), (total, y + HIGH / 2 + GAP), colour=RESIDUAL)
    back(axis, last, first, y + HIGH / 2, y + 1.9, "gradient through the skip: unchanged", RESIDUAL)
    multiplied = "gradient through the layers: multiplied by the derivative of f"
    back(axis, last, first, y - HIGH / 2, y - 1.2, multiplied, PLAIN)
    return figure


def back(axis: Axes, start: float, end: float, edge: float, way: float, text: str, colour: str) -> None:
    """A gradient's way from the box at `start` to the box at `end`, whose edges are at one height, with a remark."""
    edge += GAP if way > edge else -GAP
    arrow(axis, (start, edge), (start, way), (end, way), (end, edge), colour=colour, gradient=True)
    note(axis, (start + end) / 2, way, text, colour=colour)


def zero_init_block() -> Chart:
    """A residual block whose last normalization starts with weight 0, and so is its skip alone (notebook 03)."""
    figure, axis = diagram(
        "A residual block before training. In its branch follow a convolution, a normalization, a ReLU, a second "
        "convolution and a second normalization, whose weight gamma starts at 0. So the branch adds 0 to what the "
        "skip carries, and the block gives out x as it came in. In the first step of training only the second "
        "normalization gets a gradient, of all that is in the branch",
        height=4.6,
    )
    y, skip, total = 2, 3.6, 12.4
    chain(
        axis,
        y,
        box(axis, 0.8, y, "x", width=0.9),
        box(axis, 3.1, y, "conv", width=1.4),
        box(axis, 5, y, "norm", width=1.4),
        box(axis, 6.9, y, "ReLU", width=1.4),
        box(axis, 8.8, y, "conv", width=1.4),
        box(axis, 10.7, y, "norm\nγ = 0", width=1.4, height=1.3, colour=PLAIN),
        box(axis, total, y, "+", width=HIGH),
        box(axis, 15.1, y, "ReLU(x + 0) = x", width=3.2),
    )
    arrow(axis, (1.8, y), (1.8, skip), (total, skip), (total, y + HIGH / 2 + GAP), colour=RESIDUAL)
    note(axis, 7, skip, "skip: carries x past the branch", colour=RESIDUAL)
    note(axis, 7, 0.6, "branch: adds 0 at the start; in the first step only its last norm learns", colour=PLAIN)
    return figure


STRIDES = (1, 2, 1)  # of the convolutions in the diagram of receptive fields
PIXELS = 13


def receptive_fields(strides: Sequence[int]) -> list[tuple[int, int]]:
    """For the image and after each 3x3 convolution: the side of what a place sees, and the distance between places.

    Both in pixels.
    """
    fields = [(1, 1)]
    for stride in strides:
        side, apart = fields[-1]
        fields.append((side + 2 * apart, stride * apart))
    return fields


def receptive_field() -> Chart:
    """What one place sees of the image through three 3x3 convolutions, one of them of stride 2 (notebook 03)."""
    fields = receptive_fields(STRIDES)
    names = ["image", *(f"3 × 3, stride {stride}" for stride in STRIDES)]
    sizes = [f"sees {side} × {side} pixels,\nneighbours {apart} apart" for side, apart in fields]
    rows = zip(names[1:], sizes[1:], strict=True)
    figure, axis = diagram(
        f"A row of {PIXELS} pixels, and above it the places of {len(STRIDES)} convolutions, from the side. Lines lead "
        "from one place at the top to the three below that it is computed from, from each of these to three, and so on "
        "down to the pixels. A place of each convolution, from the first: "
        + "; ".join(f"{name}: {' '.join(size.split())}" for name, size in rows),
        height=7.2,
    )
    left, pitch, rise, side = 4.8, 0.62, 1.8, 0.5
    on_the_way = {PIXELS // 2}
    for level in range(len(STRIDES), -1, -1):
        y = 0.9 + rise * level
        note(axis, 2, y, names[level])
        for place in range(PIXELS // 2 % fields[level][1], PIXELS, fields[level][1]):
            corner = left + pitch * place - side / 2, y - side / 2
            axis.add_patch(Rectangle(corner, side, side, color=RESIDUAL if place in on_the_way else FAINT, lw=0))
        if level:
            note(axis, 14.9, y, sizes[level])
            apart = fields[level - 1][1]
            ways = [(place, place + step * apart) for place in on_the_way for step in (-1, 0, 1)]
            for way in ways:
                places = [left + pitch * place for place in way]
                axis.plot(places, (y - side / 2, y - rise + side / 2), color=RESIDUAL, lw=1)
            on_the_way = {below for _, below in ways}
    return figure


PARTS = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "head")
LOOKS = {"frozen": FAINT, "fine-tuned": RESIDUAL, "new": NEW}


def transfer_ladder() -> Chart:
    """What is frozen and what learns on each rung of the transfer ladder (notebook 04)."""
    rungs = {
        "neighbours, SVM, probe": 0,
        "last stage": 1,
        "last two stages": 2,
        "last three stages": 3,
        "all stages and stem": 5,
    }
    states = {name: ["frozen"] * (5 - number) + ["fine-tuned"] * number + ["new"] for name, number in rungs.items()}
    states["from scratch"] = ["new"] * len(PARTS)
    rows = [
        f"{name}: " + ", ".join(f"{part} {state}" for part, state in zip(PARTS, row, strict=True))
        for name, row in states.items()
    ]
    figure, axis = diagram(
        "A table of the parts of a network, from stem to head, by the rungs of the transfer ladder: frozen parts keep "
        f"the backbone's weights, fine-tuned ones learn on from these, new ones start without any. {'; '.join(rows)}",
        height=7.6,
    )
    columns = [5.7 + 2 * number for number in range(len(PARTS))]
    top = 6.9
    for x, part in zip(columns, PARTS, strict=True):
        note(axis, x, top, part)
    for level, (name, row) in enumerate(states.items(), start=1):
        y = top - level
        note(axis, 2.3, y, name)
        for x, state in zip(columns, row, strict=True):
            box(axis, x, y, state, colour=LOOKS[state], width=1.8)
    return figure


def distillation() -> Chart:
    """How a student learns from a teacher's soft answers and from labels (notebook 05)."""
    figure, axis = diagram(
        "An image goes to a frozen teacher and to a student. The logits of both are divided by the temperature T, and "
        "softmax turns them into soft answers, q of the teacher and p of the student. Their Kullback-Leibler "
        "divergence counts alpha times T squared in the loss. The cross-entropy of the student's answers at T = 1 with "
        "the label y counts 1 minus alpha. The gradient of the loss goes back to the student alone",
        height=7.4,
    )
    image, networks, answers, terms, loss = 1.2, 4.4, 8.3, 12.6, 15.8
    high, middle, low, bottom = 6.4, 4.4, 2.4, 0.8
    tall = {"height": 1.2}
    (_, end) = box(axis, image, middle, "image", width=1.6)
    teacher = box(axis, networks, high, "teacher,\nfrozen", colour=FAINT, **tall)
    student = box(axis, networks, middle, "student", colour=RESIDUAL)
    q = box(axis, answers, high, "soft answers q\nsoftmax(logits / T)", colour=FAINT, width=3.7, **tall)
    p = box(axis, answers, middle, "soft answers p\nsoftmax(logits / T)", colour=RESIDUAL, width=3.7, **tall)
    hard = box(axis, answers, low, "answers at T = 1\nsoftmax(logits)", colour=RESIDUAL, width=3.7, **tall)
    label = box(axis, answers, bottom, "label y", width=3.7)
    soft_term, hard_term, sum_of_terms = (high + middle) / 2, (low + bottom) / 2, (middle + low) / 2
    box(axis, terms, soft_term, "α T² ·\nKL(q ‖ p)", colour=PLAIN, width=2.8, **tall)
    box(axis, terms, hard_term, "(1 − α) ·\ncross-entropy", colour=PLAIN, width=2.8, **tall)
    (begin, _) = box(axis, loss, sum_of_terms, "loss", colour=PLAIN, width=1.6)

    chain(axis, high, teacher, q)
    chain(axis, middle, (0, end), student, p)
    arrow(axis, (image, middle + HIGH / 2 + GAP), (image, high), (teacher[0] - GAP, high))
    arrow(axis, (networks - 0.6, middle - HIGH / 2 - GAP), (networks - 0.6, low), (hard[0] - GAP, low))
    for (_, right), y, term in ((q, high, soft_term), (p, middle, soft_term), (hard, low, hard_term)):
        arrow(axis, (right + GAP, y), (terms - 1.4 - GAP, term + (y - term) / 3))
    arrow(axis, (label[1] + GAP, bottom), (terms - 1.4 - GAP, hard_term - 0.3))
    for term, side in ((soft_term, 1), (hard_term, -1)):
        arrow(axis, (terms + 1.4 + GAP, term), (loss, term), (loss, sum_of_terms + side * (HIGH / 2 + GAP)))
    way = [(begin - GAP, sum_of_terms), (networks + 0.5, sum_of_terms), (networks + 0.5, middle - HIGH / 2 - GAP)]
    arrow(axis, *way, colour=PLAIN, gradient=True)
    note(axis, 9.6, sum_of_terms, "gradient: to the student alone", colour=PLAIN)
    return figure
