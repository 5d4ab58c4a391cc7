"""Charts of banked results that a reader explores in a page, where no kernel runs: one for each notebook."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import pandas as pd

import labutils as lab
from labutils.data import batches
from labutils.methods.probes import activation_gradients, rate_per_layer
from labutils.models.mlp import MLP
from labutils.notebook.claims import percent
from labutils.notebook.claims.statistics import difference
from labutils.notebook.explorers.base import FOLDER, choice_label, offers
from labutils.notebook.explorers.gradients import predict_rate
from labutils.notebook.plots.selection import matching, origin
from labutils.notebook.plots.style import FAINT, INK, OTHERS, PLAIN, RESIDUAL
from labutils.training.numerics import seeded

HERE = Path(__file__).parent
GRADIENT_IMAGES = 200
GRADIENT_SEEDS = 3
DIGITS = 5  # of the numbers in a page: more than can be seen
Settings = Mapping[str, object]


@dataclass(frozen=True)
class Explorable:
    """A chart that answers choices from banked runs.

    Args:
        choices: the settings and the values they offer.
        start: the values chosen at first.
        layers: of the chart. Each setting's chosen value is their parameter `chosen_NAME`; Vega has names such as
            width itself.
        shows: what is to be seen, for those who cannot see it.
        answer: what a choice comes to, in words.
        caption: what the data are.
    """

    choices: Mapping[str, list]
    start: Settings
    layers: Sequence[alt.Chart]
    shows: str
    answer: Callable[[Settings], str]
    caption: str

    def as_html(self, place: str) -> str:
        """The chart with its controls, which are those of the live explorers.

        Args:
            place: an HTML id that is the page's only one.
        """
        content = {
            "offers": [offer | {"values": self.choices[offer["name"]]} for offer in offers(self.choices)],
            "places": {name: values.index(self.start[name]) for name, values in self.choices.items()},
            "answers": [
                f"<b>{choice_label(choice)}</b>: {self.answer(choice)}." for choice in every_choice(self.choices)
            ],
            "chart": self.look().to_dict(),
        }
        explorer = (FOLDER / "explorer.js").read_text(encoding="utf-8").replace("export default { render };", "")
        page = (HERE / "explorable.js").read_text(encoding="utf-8")
        style = (FOLDER / "explorer.css").read_text(encoding="utf-8")
        # "</" would end the script.
        data = json.dumps(content, allow_nan=False).replace("</", "<\\/")
        return (
            f'<div id="{place}"><style>{style}</style><noscript>This chart needs JavaScript.</noscript></div>\n'
            f'<p class="explorable-caption">{self.caption}</p>\n'
            f'<script type="module">\n{explorer}\n{page}\n'
            f'explore(document.getElementById("{place}"), {data});\n</script>'
        )

    def look(self) -> alt.LayerChart:
        """The chart in the course's look, as wide as the page."""
        parameters = [alt.param(name=f"chosen_{name}", value=self.start[name]) for name in self.choices]
        return (
            alt.layer(*self.layers)
            .add_params(*parameters)
            .properties(description=self.shows, width="container", height=300, background="transparent")
            .configure(font="system-ui, sans-serif")
            .configure_view(stroke=None)
            .configure_axis(
                labelColor=INK, titleColor=INK, tickColor=INK, domainColor=INK, labelFontSize=12, titleFontSize=13,
                gridColor=FAINT, gridOpacity=0.25, titleFontWeight="normal",
            )
            .configure_legend(labelColor=INK, titleColor=INK, labelFontSize=13, symbolStrokeWidth=3, orient="top",
                              labelLimit=400, columns=2)
        )  # fmt: skip


def every_choice(choices: Mapping[str, list]) -> Iterator[dict[str, object]]:
    """All combinations of values, the last setting's changing first, as explorable.js counts them."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def is_chosen(*names: str) -> str:
    """A filter of a table's rows: those with the chosen values of these settings."""
    return " && ".join(f"datum.{name} == chosen_{name}" for name in names)


def depth_and_width() -> Explorable:
    """Notebook 01: the test error of MLPs on MNIST by depth and width."""
    bank = lab.load_results("mlp_depth_width").assign(error=lambda runs: 100 * (1 - runs["test_top1"]))
    choices = {
        "depth": [1, 2, 5, 10, 20, 40],
        "width": [32, 64, 128],
        "normalization": ["none", "batch"],
        "scheduler": ["none", "cosine"],
    }
    table = rounded(bank[[*choices, "seed", "error"]])
    means = table.groupby(list(choices), as_index=False)["error"].mean()
    log = alt.Scale(type="log", nice=False, padding=8)
    x = alt.X("depth:Q", scale=log, axis=alt.Axis(values=choices["depth"]), title="depth (hidden layers, logarithmic)")
    y = alt.Y(
        "error:Q", scale=log, title="test error (%, logarithmic)", axis=alt.Axis(values=[2, 3, 5, 10, 20, 50, 90])
    )
    shown = is_chosen("normalization", "scheduler")
    chosen = is_chosen("normalization", "scheduler", "width")
    others = alt.Chart(means).transform_filter(shown).mark_line(color=FAINT, strokeDash=[4, 3])
    line = alt.Chart(means).transform_filter(chosen).mark_line(color=RESIDUAL, strokeWidth=3)
    seeds = alt.Chart(table).transform_filter(chosen).mark_point(color=RESIDUAL, size=40, opacity=0.8)
    rule = alt.Chart(means).transform_filter(is_chosen(*choices)).mark_rule(color=PLAIN, strokeWidth=2)
    layers = (
        others.encode(x=x, y=y, detail="width:N"),
        line.encode(x=x, y=y),
        seeds.encode(x=x, y=y, tooltip=["depth", "width", "seed", "error"]),
        rule.encode(x=x),
    )

    def answer(choice: Settings) -> str:
        runs = matching(bank, choice)
        return f"test accuracy {percent(runs['test_top1'])}"

    start = {"depth": 5, "width": 64, "normalization": "none", "scheduler": "none"}
    caption = f"Points: seeds; dashed: the other widths. {origin(bank)}"
    return Explorable(choices, start, layers, "Test error by depth, a line for each width.", answer, caption)


def gradient_profiles() -> Explorable:
    """Notebook 02: the gradient's norm by layer in MLPs at initialisation, measured now.

    On the built-in digits: no page waits for a download, and untrained networks hardly mind.
    """
    data = lab.load_data("mnist", source="builtin")
    images, labels = next(batches(data.train, data, GRADIENT_IMAGES))
    connections = {
        "plain": {"residual": False},
        "residual": {"residual": True},
        "residual, scaled by 1/√depth": {"residual": True, "residual_scale": "depth"},
    }
    choices = {
        "depth": [5, 10, 20, 40, 80],
        "width": [16, 64, 256],
        "init": ["default", "he"],
        "connections": list(connections),
    }
    rows, words = [], {}
    for choice in every_choice(choices):
        settings = {name: value for name, value in choice.items() if name != "connections"}
        settings |= connections[choice["connections"]]
        profiles = []
        for seed in range(GRADIENT_SEEDS):
            with seeded(seed, data.device):
                model = MLP(**settings, in_features=images[0].numel(), classes=len(data.classes)).to(data.device)
            profiles.append(activation_gradients(model, images, labels))
        norms = pd.concat(profiles).groupby("layer")["norm"].agg(["mean", "min", "max"]).reset_index()
        rows.append(norms.assign(**choice))
        factor = rate_per_layer(norms.rename(columns={"mean": "norm"})).mean
        words[tuple(choice.values())] = (
            f"from the last layer back to the first, the gradient changes by a factor of {factor:.4f} a layer; "
            f"theory: {predict_rate(model)[1]}"
        )
    table = rounded(pd.concat(rows)[[*choices, "layer", "mean", "min", "max"]])
    chosen = is_chosen(*choices)
    log = alt.Scale(type="log", nice=False)
    x = alt.X("layer:Q", title="layer (1 is next to the input)")
    title = "gradient norm with respect to activations"
    powers = alt.Axis(format="~e", tickCount=8, title=title)
    base = alt.Chart(table).transform_filter(chosen)
    colour = alt.condition("datum.connections == 'plain'", alt.value(PLAIN), alt.value(RESIDUAL))
    layers = (
        base.mark_area(opacity=0.3).encode(x=x, y=alt.Y("min:Q", scale=log, axis=powers), y2="max:Q", color=colour),
        base.mark_line(point=True).encode(
            x=x, y=alt.Y("mean:Q", scale=log, axis=powers), color=colour, tooltip=["layer", "mean", "min", "max"]
        ),
    )
    start = {"depth": 40, "width": 64, "init": "default", "connections": "plain"}
    caption = f"Mean, least and largest of {GRADIENT_SEEDS} untrained networks, {GRADIENT_IMAGES} images: {data.title}."
    shows = "Norm of the gradient by layer at initialisation, on a logarithmic axis."
    return Explorable(choices, start, layers, shows, lambda choice: words[tuple(choice.values())], caption)


def block_patterns() -> Explorable:
    """Notebook 03: training and validation curves of plain and residual CNNs."""
    bank = lab.load_results("cnn_depth").query("zero_init_residual")
    epochs = lab.load_results("cnn_depth_epochs").query("zero_init_residual")
    choices = {"layers": [10, 18, 34, 50], "width": [8, 16], "accuracy": ["training", "validation"]}
    curves = epochs.melt(
        ["layers", "width", "residual", "seed", "epoch"], ["train_accuracy", "validation_accuracy"], "accuracy", "value"
    ).replace({"train_accuracy": "training", "validation_accuracy": "validation"})
    curves["network"] = curves["residual"].map({False: "plain", True: "residual"})
    curves["value"] *= 100
    layers = curve_layers(rounded(curves), is_chosen(*choices), "network", ["plain", "residual"])

    def answer(choice: Settings) -> str:
        parts = []
        for name, residual in (("plain", False), ("residual", True)):
            runs = matching(bank, {"layers": choice["layers"], "width": choice["width"], "residual": residual})
            parts.append(f"{name} {percent(runs['test_top1'])}")
        return f"test accuracy {', '.join(parts)}"

    caption = f"Mean of the seeds; bands: from the least to the largest. {origin(bank)}"
    start = {"layers": 50, "width": 16, "accuracy": "validation"}
    shows = "Accuracy over the epochs of a plain and a residual network of the chosen depth."
    return Explorable(choices, start, layers, shows, answer, caption)


def transfer_ladder() -> Explorable:
    """Notebook 04: test accuracy on CIFAR-100 by what is trained, and by the number of labelled images."""
    ladder, labels = lab.load_results("transfer_ladder"), lab.load_results("transfer_labels")
    bank = pd.concat([ladder.assign(per_class="all"), labels], ignore_index=True)
    bank = matching(bank, {"progressive": False})
    rungs = {
        "fine-tuned, all": ("fine-tuned", {"method": "fine_tuning", "backbone": "cnn_backbone", "stages": -1}),
        "fine-tuned, 3 stages": ("fine-tuned", {"method": "fine_tuning", "stages": 3}),
        "fine-tuned, 2 stages": ("fine-tuned", {"method": "fine_tuning", "stages": 2}),
        "fine-tuned, 1 stage": ("fine-tuned", {"method": "fine_tuning", "stages": 1}),
        "linear probe": ("frozen features", {"method": "probe"}),
        "linear SVM": ("frozen features", {"method": "svm"}),
        "nearest neighbours": ("frozen features", {"method": "knn"}),
        "from scratch": ("from scratch", {"backbone": "none"}),
    }
    named = [matching(bank, chosen).assign(rung=name, kind=kind) for name, (kind, chosen) in rungs.items()]
    named = pd.concat(named).astype({"per_class": str})
    table = rounded(named.assign(accuracy=100 * named["test_top1"])[["per_class", "rung", "kind", "seed", "accuracy"]])
    choices = {"images_per_class": ["10", "50", "100", "all"]}
    base = alt.Chart(table).transform_filter("datum.per_class == chosen_images_per_class")
    kinds = ["fine-tuned", "frozen features", "from scratch"]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[RESIDUAL, OTHERS[0], PLAIN]), title=None)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["circle", "square", "diamond"]), title=None)
    x = alt.X("accuracy:Q", scale=alt.Scale(domain=[0, 70]), title="test accuracy (%)")
    y = alt.Y("rung:N", sort=list(rungs), title=None, axis=alt.Axis(labelLimit=220))
    layers = (
        base.mark_tick(thickness=3, size=22).encode(x=alt.X("mean(accuracy):Q"), y=y, color=colour),
        base.mark_point(size=50).encode(x=x, y=y, color=colour, shape=shape, tooltip=["rung", "seed", "accuracy"]),
    )

    def answer(choice: Settings) -> str:
        runs = named[named["per_class"] == choice["images_per_class"]]
        means = runs.groupby("rung")["test_top1"].mean()
        best = means.idxmax()
        lead = 100 * (means[best] - means["from scratch"])
        return f"{best} comes to {100 * means[best]:.2f} %, {lead:.2f} points above from scratch"

    caption = (
        "Points: seeds; ticks: their means. Some rungs were measured with all images only. With few images networks "
        f"are trained for 20 epochs, with all for 6. {origin(bank)}"
    )
    shows = "Test accuracy on CIFAR-100 of each way to use a network trained on CIFAR-10."
    return Explorable(choices, {"images_per_class": "50"}, layers, shows, answer, caption)


def distillation() -> Explorable:
    """Notebook 05: a student's curve by the weight and the temperature of its teacher's answers, beside it alone."""
    shown = {"residual": False, "consistent": False, "label_smoothing": 0.0}
    bank, epochs = (matching(lab.load_results(name), shown) for name in ("distillation", "distillation_epochs"))
    taught, alone = bank[bank["teacher"] != "none"], bank[bank["teacher"] == "none"]
    choices = {"alpha": [0.5, 0.7, 0.8, 0.9], "temperature": [1.0, 2.0, 3.0, 4.0, 8.0]}
    curves = epochs.assign(value=100 * epochs["validation_accuracy"])
    curves["student"] = curves["teacher"].map(lambda teacher: "alone" if teacher == "none" else "taught")
    curves = rounded(curves[[*choices, "student", "seed", "epoch", "value"]])
    chosen = f"datum.student == 'alone' || {is_chosen(*choices)}"
    layers = curve_layers(curves, chosen, "student", ["alone", "taught"])

    def answer(choice: Settings) -> str:
        runs = matching(taught, choice)
        gain = difference(list(100 * runs["test_top1"]), list(100 * alone["test_top1"]))
        return (
            f"test accuracy {percent(runs['test_top1'])}, {gain.effect:+.2f} points "
            f"[{gain.low:+.2f}, {gain.high:+.2f}] against the student alone"
        )

    caption = f"Mean of the seeds; bands: from the least to the largest. {origin(bank)}"
    shows = "Validation accuracy over the epochs of the student alone and of the taught one."
    return Explorable(choices, {"alpha": 0.9, "temperature": 3.0}, layers, shows, answer, caption)


def curve_layers(table: pd.DataFrame, chosen: str, name: str, lines: Sequence[str]) -> tuple[alt.Chart, ...]:
    """Two curves over the epochs: a mean and a band over the seeds for each, apart by colour and by dashes."""
    base = alt.Chart(table).transform_filter(chosen)
    x = alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1), scale=alt.Scale(nice=False))
    colour = alt.Color(f"{name}:N", scale=alt.Scale(domain=lines, range=[PLAIN, RESIDUAL]), title=None)
    dash = alt.StrokeDash(f"{name}:N", scale=alt.Scale(domain=lines, range=[[6, 3], [1, 0]]), title=None)
    scale = alt.Scale(zero=False)
    return (
        base.mark_area(opacity=0.25).encode(
            x=x, y=alt.Y("min(value):Q", scale=scale, title="accuracy (%)"), y2="max(value):Q", color=colour
        ),
        base.mark_line(strokeWidth=3).encode(x=x, y=alt.Y("mean(value):Q", scale=scale), color=colour, strokeDash=dash),
    )


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose numbers have no more digits than can be seen."""
    numbers = table.select_dtypes("float")
    return table.assign(**{name: numbers[name].map(lambda value: float(f"{value:.{DIGITS}g}")) for name in numbers})


CHARTS = {
    "01": depth_and_width,
    "02": gradient_profiles,
    "03": block_patterns,
    "04": transfer_ladder,
    "05": distillation,
}
