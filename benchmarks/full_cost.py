"""What each config costs at the full profile: reckoned from its networks' size, not measured.

    python benchmarks/full_cost.py            # a line a config
    python benchmarks/full_cost.py --write    # and put it beside `full:` in labutils/configs

A step takes as long as the longer of two things. The arithmetic: 6 floating-point operations an image for each
multiply-add that `lab.describe` counts (2 forward, 4 backward), at the speed below, which is an assumed share of the
card's peak. And the launches, which the processor makes one after the other: an assumed time for each layer, more with
Muon. Validation takes a third of either. Runs go one after the other on one GPU, and each takes a second to begin.
"""

import functools
import json
import math
import re
import sys
from dataclasses import dataclass

import labutils as lab
from labutils.experiments.configs import CONFIGS, config_names
from labutils.experiments.settings import read_config
from labutils.models.building import build_model

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
IMAGES = {"mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}
CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100}
START_S = 1.0
HEAD_S = 20.0  # to find a head for frozen features, once they are there


@dataclass(frozen=True)
class Card:
    """What is assumed of a GPU: multiply-adds and additions a second, seconds to launch a layer forward and back."""

    name: str
    convolutions: float
    matrices: float
    convolution_s: float
    matrix_s: float
    muon_s: float


CARDS = (
    # 10 % of 989 TFLOP/s in bf16, 30 % of 67 in float32.
    Card("H100", 0.10 * 989e12, 0.30 * 67e12, convolution_s=0.15e-3, matrix_s=0.1e-3, muon_s=0.35e-3),
    # 60 % of 8.1 TFLOP/s in float32, for it has no bf16; the processor beside it is half as fast.
    Card("T4", 0.60 * 8.1e12, 0.60 * 8.1e12, convolution_s=0.3e-3, matrix_s=0.2e-3, muon_s=0.7e-3),
)


@functools.cache
def described(model: str, name: str) -> dict[str, int]:
    """`lab.describe` of a model's settings as JSON, for a data set."""
    built = build_model(**json.loads(model), image_shape=SHAPES[name], classes=CLASSES[name])
    return lab.describe(built, SHAPES[name])


def run_seconds(experiment: lab.Experiment, card: Card) -> float:
    """The seconds that one run takes on a card."""
    training, data, name = experiment.training, experiment.data, experiment.data["name"]
    cost = described(json.dumps(experiment.model), name)
    whole = min(IMAGES[name], data["limit"] or IMAGES[name])
    held_out = whole * data["validation"]
    images = CLASSES[name] * data["per_class"] if data["per_class"] else whole - held_out
    is_mlp = experiment.model["kind"] == "mlp"
    image_s = 6 * cost["multiply_adds"] / (card.matrices if is_mlp else card.convolutions)
    if experiment.distillation.consistent:
        image_s *= 2  # the teacher looks at each image, too
    layer_s = card.matrix_s if is_mlp else card.convolution_s
    if experiment.transfer.method != "fine_tuning":
        return START_S + HEAD_S + (images + held_out) * image_s / 3
    launches_s = cost["layers"] * (layer_s + card.muon_s * (training.optimizer == "muon"))
    steps = math.ceil(images / training.batch_size)
    epoch_s = steps * max(launches_s, training.batch_size * image_s)
    validation_s = held_out / 250 * max(cost["layers"] * layer_s, 250 * image_s) / 3
    return START_S + training.epochs * (epoch_s + validation_s)


def reckoned(name: str) -> str:
    """What all runs of a config take at the full profile, in words."""
    base, axes = read_config(name, "full", {})
    runs = lab.grid(name, profile="full") if axes else [base]
    times = [f"{in_words(sum(run_seconds(run, card) for run in runs))} on one {card.name}" for card in CARDS]
    return f"{len(runs)} run{'s' * (len(runs) > 1)}, reckoned, not measured: {', '.join(times)}"


def in_words(seconds: float) -> str:
    minutes = seconds / 60
    return f"{max(1, round(minutes))} min" if minutes < 100 else f"{minutes / 60:.0f} h"


def main() -> None:
    for name in config_names():
        path, cost = CONFIGS / f"{name}.yaml", reckoned(name)
        print(f"{name:24} {cost}")
        text = path.read_text(encoding="utf-8")
        if "--write" in sys.argv:
            beside = re.sub(r"(?m)^(  full:(?: \{\})?)(?:  #.*)?$", rf"\1  # {cost}", text)
            if beside != text:
                path.write_text(beside, encoding="utf-8")


if __name__ == "__main__":
    main()
