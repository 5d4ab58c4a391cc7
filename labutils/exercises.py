"""The automatic checks of the notebooks' exercises. Each says what is right, or the first thing that is not."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from labutils.distillation import distillation_loss, mean_entropy
from labutils.models import MLP, ResNet, describe, parameter_count
from labutils.probes import activation_gradients, calibration_error, class_activation_maps, rate_per_layer
from labutils.training import seeded

RATE_TOLERANCE = 0.05  # relative; what a few layers of 512 units scatter by
GROWTH_TOLERANCE = 0.03
ENTROPY_TOLERANCE = 0.02  # nats
CAUGHT_UP = 0.01  # of an accuracy read off a line
LEARNT = 0.2  # an accuracy that no net at chance has


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


def check_plain_rate(answer: Callable[[float], float] | None) -> Verdict:
    """Notebook 02, exercise 1: the gradient's rate per layer in a plain ReLU net.

    Args:
        answer: of a, where the weights are uniform within a/sqrt(n) for n inputs; compared with nets that are built
            and measured.
    """
    if answer is None:
        return NOT_ANSWERED
    for spread in (1.0, 2.0, math.sqrt(6)):
        given, trouble = call(answer, spread)
        if trouble is not None:
            return trouble
        with seeded(0, torch.device("cpu")):
            measured = measured_rate(spread)
        if not is_near(given, measured, RATE_TOLERANCE):
            return Verdict(False, f"a = {spread:.3f}: a net that was built has {measured:.3f} a layer, you say {given}")
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


def check_growth(answer: Callable[[float, float], tuple[float, float]] | None) -> Verdict:
    """Notebook 02, exercise 2: how a residual layer changes the mean and the mean square of its activations.

    Args:
        answer: of the mean and the mean square over the units; what they are after one layer. Compared with layers
            that are built and measured.
    """
    if answer is None:
        return NOT_ANSWERED
    for mean, square in ((0.0, 1.0), (0.8, 1.0), (1.5, 4.0)):
        given, trouble = call(answer, mean, square)
        if trouble is not None:
            return trouble
        try:
            next_mean, next_square = map(float, given)
        except (TypeError, ValueError):
            return Verdict(False, f"return two numbers, the mean and the mean square, not {given!r}")
        with seeded(0, torch.device("cpu")):
            expected_mean, expected_square = measured_growth(mean, square)
        before = f"mean {mean}, mean square {square}: layers that were built have afterwards"
        if abs(next_mean - expected_mean) > GROWTH_TOLERANCE * math.sqrt(square):
            return Verdict(False, f"{before} mean {expected_mean:.2f}, you say {next_mean:.2f}")
        if abs(next_square - expected_square) > GROWTH_TOLERANCE * square:
            independent = is_near(next_square, square * 7 / 6, 1e-3)
            hint = "; you treat input and branch as if their product were 0 on average" if independent else ""
            return Verdict(False, f"{before} mean square {expected_square:.2f}, you say {next_square:.2f}{hint}")
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


def check_last_depth(answer: int | None, results: pd.DataFrame) -> Verdict:
    """Notebook 02, exercise 3: the depth at which a plain net of width 32 stops learning.

    Args:
        answer: the smallest depth of the results at which no seed learns.
        results: a row a run, with depth and validation_top1.
    """
    if answer is None:
        return NOT_ANSWERED
    best = results.groupby("depth")["validation_top1"].max()
    if answer not in best.index:
        return Verdict(False, f"give one of the depths that the results hold ({', '.join(map(str, best.index))})")
    if best[answer] >= LEARNT:
        return Verdict(False, f"at depth {answer} a seed reaches {best[answer]:.1%}")
    smaller = [depth for depth in best.index if depth < answer and best[depth] < LEARNT]
    if smaller:
        return Verdict(False, f"right, no seed learns at depth {answer}; but is it the first such depth?")
    return Verdict(
        True, f"at depth {answer} the best seed reaches {best[answer]:.1%}, and at every smaller depth one learns"
    )


def check_convolution_cost(answer: Callable[[int, int, int, int], tuple[int, int]] | None) -> Verdict:
    """Notebook 03, exercise 1: parameters and multiply-adds of a convolution.

    Args:
        answer: of input channels, output channels, the kernel's side and the output's side in pixels; gives both
            numbers for a convolution without biases. Compared with layers that are built and counted.
    """
    if answer is None:
        return NOT_ANSWERED
    for inputs, outputs, kernel, side in ((3, 16, 3, 32), (16, 32, 3, 16), (16, 32, 1, 16), (64, 64, 3, 8)):
        given, trouble = call(answer, inputs, outputs, kernel, side)
        if trouble is not None:
            return trouble
        layer = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        counted = describe(layer, (inputs, side, side))
        expected = (counted["parameters"], counted["multiply_adds"])
        if given != expected:
            layer = f"{inputs} -> {outputs} channels, {kernel}x{kernel}, {side}x{side} pixels"
            return Verdict(False, f"{layer}: PyTorch counts {expected[0]:,} and {expected[1]:,}, you say {given}")
    return Verdict(True, "your formulas count what PyTorch counts, for each layer tried")


def check_receptive_field(answer: Callable[[Sequence[int]], int] | None) -> Verdict:
    """Notebook 03, exercise 2: how many pixels, side by side, one place of a ResNet's last map depends on.

    Args:
        answer: of the blocks a stage. Compared with nets through which a gradient is sent back to the image.
    """
    if answer is None:
        return NOT_ANSWERED
    for blocks in ((1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 1, 2), (2, 2, 2, 2)):
        given, trouble = call(answer, blocks)
        if trouble is not None:
            return trouble
        measured = measured_receptive_field(blocks)
        if given != measured:
            return Verdict(False, f"{list(blocks)}: a net that was built sees {measured} pixels, you say {given}")
    return Verdict(True, "your recursion gives what gradients were measured to reach; CIFAR's images have 32 pixels")


def measured_receptive_field(blocks: Sequence[int]) -> int:
    """Pixels of a row of the image on which one place of a ResNet's last map depends."""
    net = ResNet(blocks, width=1, in_channels=1).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1)  # all positive, so that no path through the net is lost
    images = torch.ones(1, 1, 256, 256, requires_grad=True)
    maps = net.feature_maps(images)
    middle = maps.shape[-1] // 2
    (gradient,) = torch.autograd.grad(maps[0, -1, middle, middle], images)
    return (gradient[0, 0].abs().sum(0) > 0).sum().item()


def check_activation_maps(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None) -> Verdict:
    """Notebook 03, exercise 3: class activation maps from feature maps and the head's weights.

    Args:
        answer: of the last stage's maps (N, F, H, W) and the head's weights (classes, F); gives (N, classes, H, W),
            without the head's bias.
    """
    if answer is None:
        return NOT_ANSWERED
    with seeded(0, torch.device("cpu")):
        net = ResNet((1, 1, 1, 1), width=4, classes=7).eval()
        images = torch.randn(3, 3, 40, 32)  # higher than wide, so that rows and columns can't be swapped unnoticed
    with torch.no_grad():
        maps = net.feature_maps(images)
        given, trouble = call(answer, maps, net.head.weight.detach())
        if trouble is not None:
            return trouble
        expected = class_activation_maps(net, images) - net.head.bias.view(-1, 1, 1)
    if not isinstance(given, torch.Tensor) or given.shape != expected.shape:
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        return Verdict(False, f"the maps should have the shape {tuple(expected.shape)}, yours: {shape}")
    if not torch.allclose(given, expected, atol=1e-4):
        return Verdict(False, "the right shape, but the mean of a class's map over the places is not its logit")
    return Verdict(True, "the mean of each map over the places is the class's logit, but for the bias")


def check_new_head(answer: Callable[[torch.nn.Module, int], torch.nn.Module] | None) -> Verdict:
    """Notebook 04, exercise 1: a copy of a trained network for other classes, of which only the new head learns.

    Args:
        answer: of a ResNet and a number of classes; gives the new network. Compared with what must not have changed.
    """
    if answer is None:
        return NOT_ANSWERED
    with seeded(0, torch.device("cpu")):
        net = ResNet((1, 1, 1, 1), width=2).eval()
        images = torch.randn(4, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given, trouble = call(answer, net, 7)
    if trouble is not None:
        return trouble
    after = net.state_dict()
    if after.keys() != before.keys() or any(not before[name].equal(tensor) for name, tensor in after.items()):
        return Verdict(False, "the network you were given has changed; whoever uses it next would be surprised")
    if not all(parameter.requires_grad for parameter in net.parameters()):
        return Verdict(False, "the network you were given is frozen now; work on a copy")
    if not isinstance(given, ResNet):
        return Verdict(False, f"a network was expected, not {type(given).__name__}")
    with torch.no_grad():
        logits = given(images)
        features_stay = torch.allclose(given.features(images), net.features(images), atol=1e-5)
    if logits.shape != (4, 7):
        return Verdict(
            False, f"for 7 classes 4 images should give logits of the shape (4, 7), not {tuple(logits.shape)}"
        )
    if not features_stay:
        return Verdict(False, "the features are not those of the trained network any more")
    learning = [name for name, parameter in given.named_parameters() if parameter.requires_grad]
    if sorted(learning) != ["head.bias", "head.weight"]:
        return Verdict(False, f"only the head should learn, not {', '.join(learning[:3]) or 'nothing'}")
    return Verdict(True, "a new head on the old features, and the network it came from is as it was")


def check_nearest_mean(answer: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None) -> Verdict:
    """Notebook 04, exercise 2: each feature gets the class whose mean feature is nearest.

    Args:
        answer: of training features (N, F), their labels (N,) and other features (M, F); gives classes (M,).
    """
    if answer is None:
        return NOT_ANSWERED
    with seeded(0, torch.device("cpu")):
        centres = torch.randn(5, 3) * torch.tensor([3.0, 1.0, 1.0]) + 4
        labels = torch.cat([torch.arange(5), torch.randint(5, (195,))])
        train = centres[labels] + torch.randn(200, 3)
        others = centres[torch.randint(5, (300,))] + torch.randn(300, 3)
    given, trouble = call(answer, train, labels, others)
    if trouble is not None:
        return trouble
    means = torch.stack([train[labels == number].mean(dim=0) for number in range(5)])
    expected = (others[:, None] - means).square().sum(dim=2).argmin(dim=1)
    if not isinstance(given, torch.Tensor) or given.shape != expected.shape:
        return Verdict(False, f"a tensor with a class for each of the {len(others)} features was expected")
    wrong = (given != expected).sum().item()
    if wrong:
        return Verdict(False, f"{wrong} of {len(others)} features have a nearer mean than that of the class you say")
    return Verdict(True, "each feature gets the class whose mean is nearest, in the Euclidean sense")


def check_labels_saved(answer: float | None, results: pd.DataFrame, *, few: int) -> Verdict:
    """Notebook 04, exercise 3: how many labels a class a training from scratch needs to catch up with a transfer.

    Args:
        answer: images of each class.
        results: rows of runs with backbone ("none" from scratch), per_class and test_top1.
        few: images of each class that the transfer has.
    """
    if answer is None:
        return NOT_ANSWERED
    mean = results.groupby([results["backbone"] != "none", "per_class"])["test_top1"].mean()
    target, scratch = mean[True][few], mean[False].sort_index()
    if not isinstance(answer, int | float) or not scratch.index.min() <= answer <= scratch.index.max():
        return Verdict(
            False, f"the runs from scratch have {scratch.index.min()} to {scratch.index.max()} images a class"
        )
    reached = np.interp(math.log(answer), np.log(scratch.index), scratch)
    if abs(reached - target) > CAUGHT_UP:
        return Verdict(
            False,
            f"with {answer:g} images a class a start from scratch reaches {reached:.1%}, the transfer {target:.1%}",
        )
    return Verdict(True, f"with about {answer:g} images a class, instead of {few}, scratch reaches {target:.1%}, too")


def check_distillation_loss(answer: Callable[..., torch.Tensor] | None) -> Verdict:
    """Notebook 05, exercise 1: the loss of distillation.

    Args:
        answer: of the student's logits (B, classes), the teacher's, labels (B,), temperature and alpha.
    """
    if answer is None:
        return NOT_ANSWERED
    with seeded(0, torch.device("cpu")):
        student, teacher, labels = 2 * torch.randn(8, 5), 3 * torch.randn(8, 5), torch.randint(5, (8,))
    for temperature, alpha in ((1.0, 0.0), (1.0, 1.0), (4.0, 1.0), (3.0, 0.7)):
        given, trouble = call(answer, student, teacher, labels, temperature, alpha)
        if trouble is not None:
            return trouble
        expected = distillation_loss(student, teacher, labels, temperature=temperature, alpha=alpha).item()
        if not is_near(given, expected, 1e-3):
            return Verdict(
                False, f"temperature {temperature:g}, alpha {alpha:g}: {expected:.4f} is right, yours: {given}"
            )
    return Verdict(True, "labels alone, the teacher alone, hot and cold: each as it should be")


def check_temperature(answer: Callable[[torch.Tensor, float], float] | None) -> Verdict:
    """Notebook 05, exercise 2: the temperature at which soft answers have a given mean entropy.

    Args:
        answer: of logits (N, classes) and an entropy in nats.
    """
    if answer is None:
        return NOT_ANSWERED
    with seeded(0, torch.device("cpu")):
        logits = 6 * torch.randn(200, 10)
    for wanted in (0.5, 1.0, 2.0):
        given, trouble = call(answer, logits, wanted)
        if trouble is not None:
            return trouble
        if not isinstance(given, int | float | torch.Tensor) or not float(given) > 0:
            return Verdict(False, f"for {wanted} nats a temperature above 0 was expected, not {given}")
        found = mean_entropy(logits, float(given))
        if abs(found - wanted) > ENTROPY_TOLERANCE:
            return Verdict(
                False, f"at the temperature {float(given):.3g} the entropy is {found:.2f} nats, not {wanted}"
            )
    return Verdict(True, "at your temperatures the answers are as soft as was asked for")


def check_calibration_error(answer: Callable[[torch.Tensor, torch.Tensor, int], float] | None) -> Verdict:
    """Notebook 05, exercise 3: the expected calibration error.

    Args:
        answer: of logits (N, classes), labels (N,) and the number of bins.
    """
    if answer is None:
        return NOT_ANSWERED
    with seeded(0, torch.device("cpu")):
        logits = 2 * torch.randn(500, 4)
        # right as often when it is unsure as when it is sure: the bins err to either side
        labels = torch.where(torch.rand(500) < 0.6, logits.argmax(1), torch.randint(4, (500,)))
    for bins in (1, 5, 15):
        given, trouble = call(answer, logits, labels, bins)
        if trouble is not None:
            return trouble
        expected = calibration_error(logits, labels, bins=bins)
        if not is_near(given, expected, 1e-3):
            return Verdict(False, f"with {bins} bins the error is {expected:.4f}, yours: {given}")
    return Verdict(True, "bins without images count for nothing, and the others by their share")


def is_near(given: object, expected: float, tolerance: float) -> bool:
    """Whether a given number is within a relative tolerance of the expected one."""
    return isinstance(given, int | float | torch.Tensor) and math.isclose(float(given), expected, rel_tol=tolerance)
