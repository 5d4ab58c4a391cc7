"""The exercises of notebook 01."""

import math
from collections.abc import Callable

import pandas as pd
import torch

from labutils.models.counting import parameter_count
from labutils.models.mlp import MLP
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, read_number, read_numbers, shown
from labutils.notebook.finished import check_finished


@check
def check_parameters(answer: Callable[[int, int], int] | None) -> Verdict:
    """Notebook 01, exercise 1: the number of parameters of a plain MLP on MNIST.

    Args:
        answer: of depth and width; compared with networks that are built and counted.
    """
    for depth, width in ((1, 32), (2, 32), (5, 64), (40, 128)):
        given = read_number(call(answer, depth, width))
        counted = parameter_count(MLP(depth, width))
        if given != counted:
            raise Rejected(f"depth {depth}, width {width}: the network has {counted:,}, you say {given:,.10g}")
    return Verdict(True, "your formula counts what PyTorch counts, at every depth and width tried")


@check
def check_floor(answer: Callable[[torch.Tensor], float] | None) -> Verdict:
    """Notebook 01, exercise 2: the best accuracy that one constant answer can reach.

    Args:
        answer: of labels (N,) int64; the accuracy as a fraction.
    """
    cases = {
        "balanced classes": torch.arange(1_000) % 10,
        "one class alone": torch.full((50,), 3),
        "classes of 10, 20 and 70": torch.repeat_interleave(torch.arange(3), torch.tensor([10, 20, 70])),
    }
    for name, labels in cases.items():
        given = read_number(call(answer, labels))
        floor = labels.bincount().max().item() / len(labels)
        if not math.isclose(given, floor, abs_tol=1e-6):
            raise Rejected(f"{name}: always answering the commonest class gets {floor:.2%}, you say {given:.4g}")
    return Verdict(True, "the floor is the share of the commonest class")


@check
def check_choice_of_model(answer: tuple[int, int] | None, results: pd.DataFrame, *, target: float) -> Verdict:
    """Notebook 01, exercise 3: the net with the fewest parameters whose mean validation accuracy meets a target.

    Args:
        answer: its (depth, width).
        results: the runs to choose from: depth, width, parameters, validation_top1; a row a seed.
        target: the validation accuracy to reach on average over the seeds, as a fraction.

    Raises:
        SettingError: a run of the results is not finished.
    """
    check_finished(results, "validation_top1")
    nets = results.groupby(["depth", "width", "parameters"], as_index=False)["validation_top1"].mean()
    depth, width = read_numbers(answer, 2, "a (depth, width) that the results hold")
    chosen = nets[(nets["depth"] == depth) & (nets["width"] == width)]
    if chosen.empty:
        raise Rejected(f"a (depth, width) that the results hold is expected, not {shown(answer)}")
    accuracy, parameters = chosen.iloc[0]["validation_top1"], chosen.iloc[0]["parameters"]
    if accuracy < target:
        raise Rejected(f"its mean validation accuracy is {accuracy:.2%}, below {target:.1%} (over all seeds)")
    if ((nets["validation_top1"] >= target) & (nets["parameters"] < parameters)).any():
        raise Rejected(f"it meets the target, but so does a net with fewer than {parameters:,.0f}")
    return Verdict(True, f"{parameters:,.0f} parameters, {accuracy:.2%} on validation")
