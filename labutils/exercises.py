"""The automatic checks of the notebooks' exercises. Each says what is right, or the first thing that is not."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch

from labutils.models import MLP, parameter_count


@dataclass(frozen=True)
class Verdict:
    """What a check found; true when the answer is right."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'✓ right' if self.right else '✗ not yet'}: {self.message}"


NOT_ANSWERED = Verdict(False, "no answer so far")


def call(answer: Callable, *arguments: object) -> tuple[object, Verdict | None]:
    """What an answer returns, or why it can't be judged."""
    try:
        return answer(*arguments), None
    except Exception as error:  # a student's code may fail in any way
        return None, Verdict(False, f"your function stopped with {type(error).__name__}: {error}")


def check_parameters(answer: Callable[[int, int], int] | None) -> Verdict:
    """Notebook 01, exercise 1: the number of parameters of a plain MLP on MNIST.

    Args:
        answer: of depth and width; compared with networks that are built and counted.
    """
    if answer is None:
        return NOT_ANSWERED
    for depth, width in ((1, 32), (2, 32), (5, 64), (40, 128)):
        given, trouble = call(answer, depth, width)
        if trouble is not None:
            return trouble
        counted = parameter_count(MLP(depth, width))
        if given != counted:
            return Verdict(False, f"depth {depth}, width {width}: the network has {counted:,}, you say {given}")
    return Verdict(True, "your formula counts what PyTorch counts, at every depth and width tried")


def check_floor(answer: Callable[[torch.Tensor], float] | None) -> Verdict:
    """Notebook 01, exercise 2: the best accuracy that one constant answer can reach.

    Args:
        answer: of labels (N,) int64; the accuracy as a fraction.
    """
    if answer is None:
        return NOT_ANSWERED
    cases = {
        "balanced classes": torch.arange(1_000) % 10,
        "one class alone": torch.full((50,), 3),
        "classes of 10, 20 and 70": torch.repeat_interleave(torch.arange(3), torch.tensor([10, 20, 70])),
    }
    for name, labels in cases.items():
        given, trouble = call(answer, labels)
        if trouble is not None:
            return trouble
        floor = labels.bincount().max().item() / len(labels)
        if not isinstance(given, int | float | torch.Tensor) or abs(float(given) - floor) > 1e-6:
            return Verdict(False, f"{name}: always answering the commonest class gets {floor:.2%}, you say {given}")
    return Verdict(True, "the floor is the share of the commonest class")


def check_choice_of_model(answer: tuple[int, int] | None, results: pd.DataFrame, *, target: float) -> Verdict:
    """Notebook 01, exercise 3: the net with the fewest parameters whose mean validation accuracy meets a target.

    Args:
        answer: its (depth, width).
        results: the runs to choose from: depth, width, parameters, validation_top1; a row a seed.
        target: the validation accuracy to reach on average over the seeds, as a fraction.
    """
    if answer is None:
        return NOT_ANSWERED
    nets = results.groupby(["depth", "width", "parameters"], as_index=False)["validation_top1"].mean()
    try:
        depth, width = answer
        given = nets[(nets["depth"] == depth) & (nets["width"] == width)].iloc[0]
    except (TypeError, ValueError, IndexError):
        return Verdict(False, f"give a (depth, width) that the results hold, not {answer!r}")
    if given["validation_top1"] < target:
        return Verdict(
            False,
            f"its mean validation accuracy is {given['validation_top1']:.2%}, below {target:.1%} (over all seeds)",
        )
    smaller = nets[(nets["validation_top1"] >= target) & (nets["parameters"] < given["parameters"])]
    if len(smaller):
        return Verdict(False, f"it meets the target, but so does a net with fewer than {given['parameters']:,.0f}")
    return Verdict(True, f"{given['parameters']:,.0f} parameters, {given['validation_top1']:.2%} on validation")
