"""What notebook 01 has its readers build, and its exercises."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.models.counting import parameter_count
from labutils.models.mlp import MLP
from labutils.notebook.exercises import ours
from labutils.notebook.exercises.comparing import build, cases, check_gradient, check_gradients, compare
from labutils.notebook.exercises.verdict import (
    Rejected,
    Verdict,
    call,
    check,
    check_plain,
    read_number,
    read_numbers,
    shown,
)
from labutils.notebook.finished import check_finished

HUGE = 1_000  # logits whose exponentials no float32 holds


@check
def check_mlp(answer: Callable[..., nn.Module] | None) -> Verdict:
    """Notebook 01, to build: a multilayer perceptron.

    Args:
        answer: a class of depth, width, in_features and classes, which gives logits (N, classes) for images
            (N, C, H, W). Compared with labutils' own MLP of the same weights.
    """
    for draw, depth in zip(cases(), (3, 1, 2), strict=True):
        width, classes, channels = draw.randint(6, 9), draw.randint(3, 5), draw.randint(2, 3)
        height, side = draw.randint(2, 3), draw.choice([5, 7])
        sizes = {"depth": depth, "width": width, "in_features": channels * height * side, "classes": classes}
        model, reference = build(answer, **sizes), MLP(**sizes)
        take_parameters(reference, model, ", ".join(f"{name} {size}" for name, size in sizes.items()))
        images = torch.randn(6, channels, height, side)
        logits, given = reference(images), call(model, images)
        layers = range(1, depth + 1)
        mistakes = {
            "there is a ReLU after the head, too: logits may be negative": logits.relu(),
            "the images pass a ReLU before the first layer; it comes after each hidden layer": reference(images.relu()),
            "you give probabilities, but logits are expected: the loss takes the softmax itself": logits.softmax(1),
            "you give log-probabilities, but logits are expected": logits.log_softmax(1),
            "there is no ReLU between the layers: without one, all of them together are one linear layer": (
                without_relu(reference, images, layers)
            ),
        } | {f"hidden layer {number} has no ReLU": without_relu(reference, images, [number]) for number in layers}
        compare(given, logits, "a tensor of logits", mistakes)
        check_gradients(given, logits, list(model.parameters()), list(reference.parameters()))
    return Verdict(True, "the same logits as labutils' MLP with the same weights, for each size tried")


def without_relu(net: MLP, images: torch.Tensor, numbers: Iterable[int]) -> torch.Tensor:
    """A plain network's logits when hidden layers, counted from 1, have no ReLU."""
    x = images.flatten(1)
    for number, layer in enumerate(net.layers, start=1):
        x = layer.linear(x) if number in numbers else layer(x)
    return net.head(x)


@torch.no_grad()
def take_parameters(reference: nn.Module, model: nn.Module, where: str) -> None:
    """Give a network the parameters of a student's, in their order.

    Raises:
        Rejected: their number or their shapes are not the same, or a weight's numbers are all equal.
    """
    given, expected = call(lambda: list(model.parameters())), list(reference.parameters())
    call(lambda: [parameter.shape for parameter in given])  # a lazy layer's have none
    if len(given) != len(expected):
        lost = (
            ". Layers in a plain list are not found (nn.Sequential or nn.ModuleList holds them), and one used twice "
            "counts once"
        ) * (len(given) < len(expected))
        raise Rejected(
            f"{where}: parameters() finds {len(given)} tensors, not {len(expected)}, which are two for each of "
            f"{len(expected) // 2} linear layers, the head among them{lost}"
        )
    for number, (tensor, wanted) in enumerate(zip(given, expected, strict=True), start=1):
        if tensor.shape != wanted.shape:
            shapes = f"{tuple(wanted.shape)}, as nn.Linear makes it, not {tuple(tensor.shape)}"
            raise Rejected(
                f"{where}: parameter {number} should have the shape {shapes}. Create the layers in the order in which "
                "the images pass them"
            )
        call(wanted.copy_, tensor)
        head = 2 < len(given) == number + 1  # which may begin at 0: its units get different gradients
        if wanted.dim() > 1 and not head and wanted.min() == wanted.max():
            raise Rejected(f"{where}: parameter {number} begins with equal numbers; units that begin alike stay alike")


@check
def check_cross_entropy(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None) -> Verdict:
    """Notebook 01, to build: the mean cross-entropy from logits, for logits of any size.

    Args:
        answer: of logits (N, classes) and labels (N,); gives a scalar tensor. Compared with PyTorch's.
    """
    for draw in cases():
        count, classes = draw.randint(6, 9), draw.randint(3, 5)
        logits = (3 * torch.randn(count, classes)).requires_grad_()
        labels = torch.randint(classes, (count,))
        loss = call(answer, logits, labels)
        compare(loss, F.cross_entropy(logits, labels), "the loss", wrong_losses(logits.detach(), labels))
        right = torch.autograd.grad(F.cross_entropy(logits, labels), logits)[0]
        check_gradient(loss, logits, right)
        for shift in (HUGE, -HUGE):
            shifted = (50 * torch.randn(count, classes) + shift).requires_grad_()
            given = read_number(call(answer, shifted, labels))
            expected = F.cross_entropy(shifted, labels).item()
            if not math.isclose(given, expected, rel_tol=1e-3):
                raise Rejected(
                    f"with logits around {shift:,} the loss is {expected:.1f}, yours {given:.1f}: no float holds the "
                    "exp of these. Take each row's largest logit away before exp, and simplify log(exp(...)) by hand"
                )
    return Verdict(True, "PyTorch's loss and gradient, and no logit is too large for it")


def wrong_losses(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a cross-entropy is that makes a known mistake."""
    each = F.cross_entropy(logits, labels, reduction="none")
    over_images = -logits.log_softmax(0).gather(1, labels[:, None]).mean()
    log_sums, theirs = logits.logsumexp(1), logits.gather(1, labels[:, None])
    return {
        "the softmax runs over the images (dim=0); it belongs over the classes (dim=1)": over_images,
        "the sign is wrong: the loss is minus the logarithm of the label's probability": -each.mean(),
        "that is the sum over the images; the mean is expected": each.sum(),
        "that is one loss for each image; their mean is expected": each,
        "you divide by the number of images and of classes; only the label's term counts, so divide by the images": (
            each.mean() / logits.shape[1]
        ),
        "the softmax is taken twice: once is enough": F.cross_entropy(logits.softmax(1), labels),
        "you take the largest logit away before exp, but not from the label's logit: take it away from both": (
            (log_sums - logits.amax(1)).mean() - theirs.mean()
        ),
        "logits[:, labels] gives each image the labels of all; logits[torch.arange(N), labels] gives it its own": (
            log_sums.mean() - logits[:, labels].mean()
        ),
        "the sum of the exponentials runs over all images; each image has its own": logits.logsumexp((0, 1))
        - theirs.mean(),
        "the logarithm is missing": -logits.softmax(1).gather(1, labels[:, None]).mean(),
    }


@check
def check_layer_backward(answer: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None) -> Verdict:
    """Notebook 01, to build: the backward pass of one hidden layer y = relu(x W^T + b).

    Args:
        answer: of x (N, I), W (O, I), b (O,) and the loss's gradient with respect to y (N, O); gives those with respect
            to x, W and b. Compared with autograd.
    """
    for draw in cases():
        count, inputs, outputs = draw.randint(10, 12), draw.randint(6, 9), draw.randint(3, 5)
        x, weight, bias = torch.randn(count, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        gradient = torch.randn(count, outputs)
        answered = call(answer, x, weight, bias, gradient)
        parts = call(lambda given=answered: list(itertools.islice(given, 4)))
        if len(parts) != 3:
            raise Rejected("three tensors are expected: the gradients with respect to x, W and b")
        z = x @ weight.T + bias
        masked = gradient * (z > 0)
        relu_forgotten = "forgets the ReLU: where its input is negative, no gradient passes"
        swapped = "the order is x, W, b: yours is another"
        wrong = (
            {
                f"the gradient with respect to x {relu_forgotten}": gradient @ weight,
                "the mask leaves out the bias: z = x W^T + b": (gradient * (x @ weight.T > 0)) @ weight,
                "the mask asks where z is positive, not where the gradient is": gradient.relu() @ weight,
                "multiply by the ReLU's derivative, which is 0 or 1, not by its output": (gradient * z.relu()) @ weight,
                swapped: masked.T @ x,
            },
            {
                swapped: masked.sum(0),
                f"the gradient with respect to W {relu_forgotten}": gradient.T @ x,
                "the gradient with respect to W is transposed: it has W's own shape (O, I)": x.T @ masked,
                "the gradient with respect to W is a sum over the images; yours is their mean": masked.T @ x / count,
            },
            {
                f"the gradient with respect to b {relu_forgotten}": gradient.sum(0),
                "the gradient with respect to b is a sum over the images; yours is their mean": masked.mean(0),
                "the gradient with respect to b is a sum over the images, of which each has added b": masked,
            },
        )
        expected = ours.layer_backward(x, weight, bias, gradient)
        for name, given, right, mistakes in zip("xWb", parts, expected, wrong, strict=True):
            compare(given, right, f"the gradient with respect to {name}", mistakes)
    return Verdict(True, "autograd finds the same three gradients, for each shape tried")


@check
def check_train_epoch(answer: Callable[..., float] | None) -> Verdict:
    """Notebook 01, to build: the training loop, one epoch of it.

    Args:
        answer: of a network, batches (images and labels, one pair after the other) and one of PyTorch's optimizers over
            its parameters; trains it by the cross-entropy, and gives the mean loss over the images.
    """
    for draw in cases():
        inputs, classes, last = draw.randint(4, 7), draw.randint(3, 5), draw.randint(3, 5)
        batches = [(torch.randn(size, inputs), torch.randint(classes, (size,))) for size in (8, 8, last)]
        net = nn.Sequential(nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes)).eval()
        trained = copy.deepcopy(net)
        given = call(answer, trained, iter(batches), make_optimizer(trained))
        losses, expected = reference_epoch(net, batches)
        mistakes = {
            "the network has not changed: does optimizer.step() run? The batches can be gone through only once": (
                numbers_of(net)
            ),
            "gradients of earlier batches are still there: optimizer.zero_grad() belongs into each step": (
                reference_epoch(net, batches, order="backward step")[1]
            ),
            "the gradients are set to zero between backward() and step(): nothing is left to step by": (
                reference_epoch(net, batches, order="backward clear step")[1]
            ),
            "the network was in evaluation mode: call model.train() before the first batch": (
                reference_epoch(net, batches, mode=False)[1]
            ),
            "only the first batch was trained on: does a return stand inside the loop?": (
                reference_epoch(net, batches[:1])[1]
            ),
            "the last batch is left out": reference_epoch(net, batches[:-1])[1],
            "your loss is a sum over a batch's images; their mean is expected": (
                reference_epoch(net, batches, loss=partial(F.cross_entropy, reduction="sum"))[1]
            ),
            "the softmax is taken twice: the loss takes it itself, so give it the logits": (
                reference_epoch(net, batches, loss=lambda logits, labels: F.cross_entropy(logits.softmax(1), labels))[1]
            ),
        }
        compare(call(numbers_of, trained), expected, "the trained network", mistakes)
        sizes = torch.tensor([len(labels) for _, labels in batches])
        mean = (losses * sizes).sum() / sizes.sum()
        mistakes = {
            "you give the mean over the batches, but the last batch is smaller: weigh each loss by its images": (
                losses.mean()
            ),
            "you divide the sum of the batches' losses by the number of images: weigh each loss by its images": (
                losses.sum() / sizes.sum()
            ),
            "you give the sum of the losses; the mean over the images is expected": losses.sum(),
            "you give the sum of the losses over all images; divide it by their number": (losses * sizes).sum(),
            "you give the last batch's loss; the mean over the images is expected": losses[-1],
        }
        compare(torch.tensor(read_number(given)), mean, "the mean loss", mistakes)
        check_plain(given)
    return Verdict(True, "the same weights and the same mean loss as the course's own loop finds")


def make_optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.3)


def reference_epoch(
    net: nn.Module,
    batches: list,
    *,
    order: str = "clear backward step",
    mode: bool = True,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each batch's loss and the numbers of a copy of a network that an epoch has trained, with a mistake if asked."""
    net = copy.deepcopy(net).train(mode)
    optimizer, losses = make_optimizer(net), []
    for images, labels in batches:
        found = loss(net(images), labels)
        actions = {"clear": optimizer.zero_grad, "backward": found.backward, "step": optimizer.step}
        for action in order.split():
            actions[action]()
        losses.append(found.detach())
    return torch.stack(losses), numbers_of(net)


def numbers_of(net: nn.Module) -> torch.Tensor:
    """All numbers that a network holds, one after the other."""
    return torch.cat([tensor.detach().double().flatten() for tensor in net.state_dict().values()])


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
            raise Rejected(f"{name}: the commonest class has {floor:g} of the labels, you say {given:.4g}")
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
