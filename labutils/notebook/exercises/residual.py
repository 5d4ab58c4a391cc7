"""What notebook 02 has its readers build, and its exercises."""

import copy
import math
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn

from labutils.methods.probes import activation_gradients, gradient_norms, rate_per_layer
from labutils.models.mlp import MLP
from labutils.notebook.exercises import ours
from labutils.notebook.exercises.comparing import build, cases, check_gradients, compare
from labutils.notebook.exercises.mlp import take_parameters
from labutils.notebook.exercises.verdict import (
    Rejected,
    Verdict,
    call,
    check,
    check_plain,
    read_number,
    read_numbers,
    read_tensor,
)
from labutils.notebook.finished import check_finished
from labutils.training.numerics import seeded

RATE_TOLERANCE = 0.05  # relative; what a few layers of 512 units scatter by
GROWTH_TOLERANCE = 0.03
VARIANCE_TOLERANCE = 0.04  # relative; what 160,000 weights scatter by is a tenth of it
LEARNT = 0.2  # an accuracy that no net at chance has


@check
def check_residual_layer(answer: Callable[[int], nn.Module] | None) -> Verdict:
    """Notebook 02, to build: a residual layer, x + relu(Wx + b).

    Args:
        answer: a class of the width. Compared with PyTorch's linear layer of the same weights.
    """
    for draw in cases():
        width = draw.randint(5, 9)
        layer, linear = build(answer, width), nn.Linear(width, width)
        take_parameters(linear, layer, f"width {width}")
        seen = torch.randn(7, width).requires_grad_()
        with torch.no_grad():
            x = seen.clone()
            y = call(lambda layer=layer, x=x: layer(x))
        branch = linear(seen)
        expected = seen + branch.relu()
        mistakes = {
            "the input is added before the ReLU, which then cuts off what the skip carries: add it after": (
                (seen + branch).relu()
            ),
            "there is no skip: the input has to be added": branch.relu(),
            "there is no ReLU in the branch": seen + branch,
            "the input is added to the linear layer's input": linear(seen + seen).relu(),
            "the input passes a ReLU before the linear layer": seen + linear(seen.relu()),
            "the skip passes through the ReLU, too: add the input itself": seen.relu() + branch.relu(),
        }
        compare(y, expected, "the output", mistakes)
        if not x.equal(seen):
            raise Rejected("the right output, but the layer changes its input in place (x += ...): write x + ...")
        y = call(lambda layer=layer, x=seen: layer(x))
        check_gradients(y, expected, [seen, *layer.parameters()], [seen, *linear.parameters()])
    return Verdict(True, "x + relu(Wx + b), for each width tried")


@check
def check_gradient_norms(answer: Callable[..., list[float]] | None) -> Verdict:
    """Notebook 02, to build: hooks that record the gradient's norm with respect to each hidden layer's outputs.

    Args:
        answer: of an MLP, whose hidden layers are model.layers, images and labels; gives a norm for each layer, from
            the input on. Compared with labutils' own instrument.
    """
    for draw, residual in zip(cases(), (False, True, False), strict=True):
        depth, count, classes = draw.randint(3, 6), draw.randint(8, 12), draw.randint(3, 5)
        net = MLP(depth, 8, in_features=12, classes=classes, residual=residual)
        images, labels = torch.randn(count, 1, 3, 4), torch.randint(classes, (count,))
        expected = torch.tensor(ours.gradient_norms(net, images, labels))
        weights = gradient_norms(net, images, labels).query("kind == 'weight'")["norm"]
        mistakes = {
            "the norms are in the order in which backward() meets the layers: the first should be next to the input": (
                expected.flip(0)
            ),
            "those are the gradients with respect to the weights; take them with respect to the layers' outputs": (
                torch.tensor(weights.tolist()[:-1])
            ),
            "those are the gradients before the ReLU; put the hooks on model.layers, whose outputs come after it": (
                before_relu(net, images, labels)
            ),
            "those are the norms of the outputs themselves, not of the gradients": outputs_norms(net, images),
            "your loss is a sum over the images; the mean is expected": count * expected,
            "those are squared norms: the root is missing": expected.square(),
        }
        compare(call(answer, net, images, labels), expected, "a norm for each hidden layer", mistakes)
        if any(module._forward_hooks or module._backward_hooks for module in net.modules()):
            raise Rejected("the right norms, but your hooks are still on the network: call remove() on each handle")
    return Verdict(True, "the norms that labutils' instrument finds, and no hook is left behind")


def before_relu(net: MLP, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss's gradient norms with respect to what each hidden layer's ReLU gets."""
    found = []
    hooks = [layer.linear.register_forward_hook(lambda _, inputs, output: found.append(output)) for layer in net.layers]
    loss = nn.functional.cross_entropy(net(images), labels)
    for hook in hooks:
        hook.remove()
    return torch.stack([gradient.norm() for gradient in torch.autograd.grad(loss, found)])


@torch.no_grad()
def outputs_norms(net: MLP, images: torch.Tensor) -> torch.Tensor:
    """The norm of each hidden layer's outputs."""
    norms, x = [], images.flatten(1)
    for layer in net.layers:
        x = layer(x)
        norms.append(x.norm())
    return torch.stack(norms)


@check
def check_rate(answer: Callable[[torch.Tensor], float] | None) -> Verdict:
    """Notebook 02, to build: the gradient's rate per layer, by a line fitted to the logarithms of its norms.

    Args:
        answer: of norms (L,), the first next to the input; gives the factor by which they grow with each layer towards
            the input.
    """
    for draw in cases():
        layers, factor = draw.randint(6, 12), draw.choice([0.4, 0.8, 1.2])
        norms = torch.exp(0.3 * torch.randn(layers, dtype=torch.float64)) * factor ** -torch.arange(float(layers))
        rate, expected = call(answer, norms), ours.rate(norms)
        given = read_number(rate)
        ratios = norms[:-1] / norms[1:]
        ends = ratios.log().mean().exp()
        mistakes = {
            "that is the factor on the way to the head; gradients go the other way, so take 1 over it": 1 / expected,
            "that is the slope of the line; the factor is exp of it, with the sign of the way back": (
                -math.log(expected)
            ),
            "that is the slope of the line; the factor is exp of minus the slope": math.log(expected),
            "that depends on the first and the last norm alone: fit a line to the logarithms of all": ends,
            "that is the mean of the ratios, in which large ones count more: fit a line to the logarithms": (
                ratios.mean()
            ),
            "natural and decimal logarithms are mixed: 10 ** goes with log10, exp with log": (
                10 ** math.log(expected)
            ),
        }  # fmt: skip
        mistakes = {message: torch.as_tensor(wrong) for message, wrong in mistakes.items()}
        compare(torch.tensor(given), torch.tensor(expected), "the rate", mistakes)
        check_plain(rate)
    return Verdict(True, "the slope of the line of least squares, on the way back")


@check
def check_he_weights(answer: Callable[[int, int], torch.Tensor] | None) -> Verdict:
    """Notebook 02, to build: random weights with which a ReLU layer keeps the length of what it is given.

    Args:
        answer: of the numbers of outputs and of inputs; gives weights (outputs, inputs), whose mean and variance are
            measured.
    """
    for draw, wider in zip(cases(), (True, False, True), strict=True):
        small, large = draw.randint(300, 400), draw.randint(500, 700)
        outputs, inputs = (small, large) if wider else (large, small)
        weights = read_tensor(call(answer, outputs, inputs), (outputs, inputs), "a tensor of weights")
        variance = weights.var().item()
        where = f"{inputs} inputs, {outputs} outputs: your weights have the variance {variance:.3g}"
        known = {
            f"{where}, 1 / inputs: that keeps lengths without a ReLU, which takes half of the mean square away": (
                1 / inputs
            ),
            f"{where}: count the inputs of a unit, not the outputs of the layer": 2 / outputs,
            f"{where}, which is meant as the standard deviation: take its root": 4 / inputs**2,
            f"{where}; that is He's standard deviation": math.sqrt(2 / inputs),
            f"{where}, Glorot's: it averages over inputs and outputs, and leaves out the ReLU": 2 / (inputs + outputs),
            f"{where}, a third of what is needed: numbers uniform within b have the variance b^2 / 3": 2 / inputs / 3,
        }
        if not math.isclose(variance, 2 / inputs, rel_tol=VARIANCE_TOLERANCE):
            for message, wrong in known.items():
                if math.isclose(variance, wrong, rel_tol=VARIANCE_TOLERANCE):
                    raise Rejected(message)
            raise Rejected(f"{where}; with it a layer multiplies the mean square by {variance * inputs / 2:.3g}, not 1")
        if abs(weights.mean().item()) > 0.05 * math.sqrt(variance):
            raise Rejected(f"the variance is right, but the mean is {weights.mean():.2g} instead of 0")
        again = read_tensor(call(answer, outputs, inputs), (outputs, inputs), "a tensor of weights")
        if weights.equal(again):
            raise Rejected("the variance is right, but each call gives the same weights; draw new ones for each layer")
        if weights[0].equal(weights[1]) or weights[:, 0].equal(weights[:, 1]):
            raise Rejected("the variance is right, but rows or columns repeat; each weight has to be drawn by itself")
    return Verdict(True, "a ReLU layer keeps the mean square of its inputs, for each size tried")


@check
def check_lesion(answer: Callable[[nn.Module, int, torch.Tensor], torch.Tensor] | None) -> Verdict:
    """Notebook 02, to build: a network's logits when one of its hidden layers is left out.

    Args:
        answer: of an MLP, whose hidden layers are model.layers, the number of a layer (counted from 1 at the input,
            2 or more), and images; gives logits. The layer passes its input on. The network has to stay as it is.
    """
    for draw, residual, norm in zip(cases(), (True, False, True), (None, None, "batch"), strict=True):
        depth = draw.randint(4, 6)
        net = MLP(depth, 8, in_features=12, residual=residual, normalization=norm).eval().requires_grad_(False)
        images, number = torch.randn(5, 1, 3, 4), draw.randint(3, depth - 1)
        layers, before = list(net.layers), net(images)
        expected = ours.lesion(net, number, images)
        given = call(answer, net, number, images)
        same = not any(module.training for module in net.modules()) and before.equal(call(net, images))
        if not same or layers != list(call(lambda net=net: net.layers)):
            raise Rejected("the network has changed: the next lesion needs it whole, so put it back or work on a copy")
        mistakes = {
            f"you leave out layer {number + 1} instead of {number}: layers are counted from 1, lists from 0": (
                ours.lesion(net, number + 1, images)
            ),
            f"you leave out layer {number - 1} instead of {number}: layers are counted from 1": (
                ours.lesion(net, number - 1, images)
            ),
            "you give probabilities, but logits are expected": expected.softmax(1),
            "the network is in training mode, and uses the batch's statistics: leave it in evaluation mode": (
                ours.lesion(copy.deepcopy(net).train(), number, images)
            ),
            "nothing is left out: those are the whole network's logits": before,
            "the layer gives zeros; it should pass its input on": hooked(net, number, lambda x, y: 0 * y, images),
            "you take the skip out and keep the branch": hooked(net, number, lambda x, y: y - x, images),
            "everything from this layer on is left out": net.head(net.layers[: number - 1](images.flatten(1))),
        }
        compare(given, expected, "a tensor of logits", mistakes)
    return Verdict(True, "plain or residual, the layer passes its input on, and the network is as it was")


def hooked(net: MLP, number: int, change: Callable, images: torch.Tensor) -> torch.Tensor:
    """A network's logits where a hidden layer's output is changed, by a function of its input and output."""
    hook = net.layers[number - 1].register_forward_hook(lambda _, inputs, output: change(inputs[0], output))
    try:
        return net(images)
    finally:
        hook.remove()


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
            known = {
                "; the ReLU takes half of the mean square away": measured * math.sqrt(2),
                "; that is the factor of the mean square, and the length is its root": measured**2,
            }
            hint = next((hint for hint, wrong in known.items() if math.isclose(given, wrong, rel_tol=0.02)), "")
            raise Rejected(
                f"a = {spread:.3f}: a net that was built has {measured:.3f} a layer, you say {given:.4g}{hint}"
            )
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
            middle = mean * math.sqrt(square / (6 * math.pi))
            known = {
                "; you treat input and branch as if their product were 0 on average": square * 7 / 6,
                "; the square of a sum has the product twice": square * 7 / 6 + middle,
            }
            hint = next((hint for hint, wrong in known.items() if math.isclose(next_square, wrong, rel_tol=1e-3)), "")
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
    """Notebook 02, exercise 3: the depth at which plain nets stop learning.

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
