"""The exercises of notebook 02."""

import math
from collections.abc import Callable

import pandas as pd
import torch

from labutils.methods.probes import activation_gradients, rate_per_layer
from labutils.models.mlp import MLP
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, read_number, read_numbers
from labutils.notebook.finished import check_finished
from labutils.training.device import seeded

RATE_TOLERANCE = 0.05  # relative; what a few layers of 512 units scatter by
GROWTH_TOLERANCE = 0.03
LEARNT = 0.2  # an accuracy that no net at chance has


@check
def check_plain_rate(answer: Callable[[float], float] | None) -> Verdict:
    """Notebook 02, exercise 1: the gradient's rate per layer in a plain ReLU net.

    Args:
        answer: of a, where the weights are uniform within a/sqrt(n) for n inputs; compared with nets that are built
            and measured.
    """
    for spread in (1.0, 2.0, math.sqrt(6)):
        given = read_number(call(answer, spread))
        with seeded(0, torch.device("cpu")):
            measured = measured_rate(spread)
        if not math.isclose(given, measured, rel_tol=RATE_TOLERANCE):
            raise Rejected(f"a = {spread:.3f}: a net that was built has {measured:.3f} a layer, you say {given:.4g}")
    return Verdict(True, "your formula gives what nets of three spreads were measured to have; a = 1 gives .408")


def measured_rate(spread: float) -> float:
    """The gradient's rate per layer in a wide plain net whose weights are uniform within spread/sqrt(n)."""
    net = MLP(12, 512, in_features=64)
    with torch.no_grad():
        for layer in net.layers:
            bound = spread / math.sqrt(layer.linear.in_features)
            layer.linear.weight.uniform_(-bound, bound)
            layer.linear.bias.zero_()
    images, labels = torch.randn(64, 64), torch.arange(64) % 10
    return rate_per_layer(activation_gradients(net, images, labels)).mean


@check
def check_growth(answer: Callable[[float, float], tuple[float, float]] | None) -> Verdict:
    """Notebook 02, exercise 2: how a residual layer changes the mean and the mean square of its activations.

    Args:
        answer: of the mean and the mean square over the units; what they are after one layer. Compared with layers
            that are built and measured.
    """
    for mean, square in ((0.0, 1.0), (0.8, 1.0), (1.5, 4.0)):
        next_mean, next_square = read_numbers(call(answer, mean, square), 2, "a mean and a mean square")
        with seeded(0, torch.device("cpu")):
            expected_mean, expected_square = measured_growth(mean, square)
        before = f"mean {mean}, mean square {square}: layers that were built have afterwards"
        if not math.isclose(next_mean, expected_mean, abs_tol=GROWTH_TOLERANCE * math.sqrt(square)):
            raise Rejected(f"{before} mean {expected_mean:.2f}, you say {next_mean:.4g}")
        if not math.isclose(next_square, expected_square, abs_tol=GROWTH_TOLERANCE * square):
            independent = math.isclose(next_square, square * 7 / 6, rel_tol=1e-3)
            hint = "; you treat input and branch as if their product were 0 on average" if independent else ""
            raise Rejected(f"{before} mean square {expected_square:.2f}, you say {next_square:.4g}{hint}")
    return Verdict(True, "your recursion gives what residual layers were measured to do")


def measured_growth(mean: float, square: float) -> tuple[float, float]:
    """Mean and mean square over the units after x + relu(Wx), default initialisation, averaged over wide layers."""
    width, spread = 1_000, math.sqrt(square - mean**2)
    after = []
    for _ in range(20):
        x = mean + spread * torch.randn(width)
        after.append(x + torch.nn.Linear(width, width, bias=False)(x).relu().detach())
    after = torch.stack(after)
    return after.mean().item(), after.square().mean().item()


@check
def check_last_depth(answer: int | None, results: pd.DataFrame) -> Verdict:
    """Notebook 02, exercise 3: the depth at which a plain net of width 32 stops learning.

    Args:
        answer: the smallest depth of the results at which no seed learns.
        results: a row a run, with depth and validation_top1.

    Raises:
        SettingError: a run of the results is not finished.
    """
    check_finished(results, "validation_top1")
    best = results.groupby("depth")["validation_top1"].max()
    depth = read_number(answer)
    if depth not in best.index:
        raise Rejected(f"give one of the depths that the results hold ({', '.join(map(str, best.index))})")
    reached = best[best.index == depth].item()
    if reached >= LEARNT:
        raise Rejected(f"at depth {depth:g} a seed reaches {reached:.1%}")
    if (best[best.index < depth] < LEARNT).any():
        raise Rejected(f"right, no seed learns at depth {depth:g}; but is it the first such depth?")
    return Verdict(
        True, f"at depth {depth:g} the best seed reaches {reached:.1%}, and at every smaller depth one learns"
    )
