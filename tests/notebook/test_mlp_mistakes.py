"""The checks of notebooks 01 and 02: further mistakes that students make, each with what it is told."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from labutils.notebook import exercises
from labutils.notebook.exercises import ours


class MLP(nn.Module):
    """A right answer whose options make mistakes."""

    def __init__(self, depth, width, in_features=784, classes=10, bare=None, first=nn.Identity, head_first=False):
        super().__init__()
        if head_first:
            self.head = nn.Linear(width, classes)
        sizes = [in_features] + [width] * depth
        layers = []
        for number, pair in enumerate(itertools.pairwise(sizes), start=1):
            bare_one = bare is not None and number == (depth if bare == "last" else bare)
            layers += [nn.Linear(*pair), nn.Identity() if bare_one else nn.ReLU()]
        self.layers = nn.Sequential(first(), *layers)
        self.head = self.head if head_first else nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.layers(images.flatten(1)))


class AtLeastTwo(MLP):
    """Has two hidden layers where one is asked for."""

    def __init__(self, depth, width, in_features=784, classes=10):
        super().__init__(max(depth, 2), width, in_features, classes)


class FirstChannel(MLP):
    def forward(self, images):
        return super().forward(images[:, :1])


class Zeros(MLP):
    def __init__(self, *sizes, **more_sizes):
        super().__init__(*sizes, **more_sizes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Listed(MLP):
    def forward(self, images):
        return super().forward(images).tolist()


class Detached(MLP):
    def forward(self, images):
        with torch.no_grad():
            return super().forward(images)


def with_options(**options):
    return lambda **sizes: MLP(**sizes, **options)


def residual(wire, zeros=False):
    class Layer(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)
            if zeros:
                nn.init.zeros_(self.linear.weight)

        def forward(self, x):
            return wire(x, self.linear)

    return Layer


def cross_entropy(log_sums, theirs):
    """A cross-entropy of two parts, each a function of logits and labels."""
    return lambda logits, labels: (log_sums(logits) - theirs(logits, labels)).mean()


def own(logits, labels):
    return logits[torch.arange(len(labels)), labels]


def backward(mask=lambda z, x, weight, gradient: z > 0, order=(0, 1, 2)):
    def answer(x, weight, bias, gradient):
        masked = gradient * mask(x @ weight.T + bias, x, weight, gradient)
        parts = masked @ weight, masked.T @ x, masked.sum(0)
        return [parts[place] for place in order]

    return answer


def train_epoch(loss=F.cross_entropy, clear_late=False, batches_used=None, mean=lambda total, images: total / images):
    def answer(model, batches, optimizer):
        model.train()
        total, count = 0.0, 0
        for images, labels in list(batches)[:batches_used]:
            found = loss(model(images), labels)
            optimizer.zero_grad()
            found.backward()
            if clear_late:
                optimizer.zero_grad()
            optimizer.step()
            total, count = total + found.item(), count + len(labels)
        return mean(total, count)

    return answer


def before_relu(model, images, labels):
    found = []
    hooks = [layer.linear.register_forward_hook(lambda _, inputs, out: found.append(out)) for layer in model.layers]
    loss = F.cross_entropy(model(images), labels)
    for hook in hooks:
        hook.remove()
    return [gradient.norm() for gradient in torch.autograd.grad(loss, found)]


def he(draw):
    return lambda outputs, inputs: draw(outputs, inputs) * math.sqrt(2 / inputs)


def signs(outputs, inputs):
    return torch.randint(2, (outputs, inputs)) * 2.0 - 1


def lesion_in_training(model, number, images):
    return ours.lesion(copy.deepcopy(model).train(), number, images)


def lesion_that_leaves_training(model, number, images):
    logits = ours.lesion(model, number, images)
    model.train()
    return logits


def growth(cross, own_square=1 / 6):
    def answer(mean, square):
        added = math.sqrt(square / (6 * math.pi))
        return mean + added, square * (1 + own_square) + cross * mean * added

    return answer


RIGHT = [
    ("check_mlp", MLP),
    ("check_cross_entropy", cross_entropy(lambda logits: logits.logsumexp(1), own)),
    ("check_layer_backward", backward()),
    ("check_residual_layer", residual(lambda x, linear: x + linear(x).relu())),
    ("check_he_weights", he(torch.randn)),
    ("check_he_weights", he(signs)),
    ("check_plain_rate", lambda a: a / math.sqrt(6)),
    ("check_growth", growth(2)),
]
WRONG = [  # check, answer, what the verdict has to say
    ("check_mlp", with_options(bare=1), "hidden layer 1 has no ReLU"),
    ("check_mlp", with_options(bare="last"), "hidden layer 3 has no ReLU"),
    ("check_mlp", with_options(first=nn.ReLU), "before the first layer"),
    ("check_mlp", with_options(head_first=True), "in the order in which the images pass them"),
    ("check_mlp", AtLeastTwo, "depth 1, width"),
    ("check_mlp", FirstChannel, "stopped with RuntimeError"),
    ("check_mlp", Zeros, "begins with equal numbers"),
    ("check_mlp", Detached, "not the gradient"),
    ("check_mlp", Listed, "not the gradient"),
    (
        "check_cross_entropy",
        cross_entropy(lambda logits: (logits - logits.amax(1, keepdim=True)).logsumexp(1), own),
        "take it away from both",
    ),
    (
        "check_cross_entropy",
        cross_entropy(lambda logits: logits.logsumexp(1), lambda logits, labels: logits[:, labels]),
        "the labels of all",
    ),
    ("check_cross_entropy", cross_entropy(lambda logits: logits.logsumexp((0, 1)), own), "over all images"),
    ("check_layer_backward", backward(lambda z, x, weight, gradient: x @ weight.T > 0), "leaves out the bias"),
    ("check_layer_backward", backward(lambda z, x, weight, gradient: gradient > 0), "where the gradient is"),
    ("check_layer_backward", backward(lambda z, x, weight, gradient: z.relu()), "not by its output"),
    ("check_layer_backward", backward(order=(1, 2, 0)), "the order is x, W, b"),
    ("check_layer_backward", backward(order=(0, 2, 1)), "the order is x, W, b"),
    ("check_train_epoch", train_epoch(clear_late=True), "between backward() and step()"),
    ("check_train_epoch", train_epoch(batches_used=2), "the last batch is left out"),
    (
        "check_train_epoch",
        train_epoch(lambda logits, labels: F.cross_entropy(logits.softmax(1), labels)),
        "softmax is taken twice",
    ),
    (
        "check_train_epoch",
        train_epoch(lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum")),
        "their mean is expected",
    ),
    ("check_train_epoch", train_epoch(), "divide the sum of the batches' losses"),
    ("check_floor", lambda labels: 100 * labels.bincount().max() / len(labels), "0.1 of the labels, you say 10"),
    ("check_residual_layer", residual(lambda x, linear: x + linear(x.relu())), "before the linear layer"),
    ("check_residual_layer", residual(lambda x, linear: x + linear(x).relu().detach()), "not the gradient"),
    ("check_residual_layer", residual(lambda x, linear: x.detach() + linear(x).relu()), "not the gradient"),
    ("check_residual_layer", residual(lambda x, linear: x + linear(x), zeros=True), "begins with equal numbers"),
    ("check_gradient_norms", before_relu, "before the ReLU"),
    ("check_he_weights", he(lambda *sizes: (torch.arange(math.prod(sizes)) % 2 * 2 - 1).view(sizes)), "each call"),
    ("check_lesion", lambda model, number, images: ours.lesion(model, number - 1, images), "counted from 1"),
    ("check_lesion", lambda *given: ours.lesion(*given).softmax(1), "you give probabilities"),
    ("check_lesion", lesion_in_training, "the network is in training mode"),
    ("check_lesion", lesion_that_leaves_training, "the network has changed"),
    ("check_plain_rate", lambda a: a / math.sqrt(3), "the ReLU takes half"),
    ("check_plain_rate", lambda a: a**2 / 6, "its root"),
    ("check_growth", growth(0), "as if their product were 0"),
    ("check_growth", growth(1), "has the product twice"),
]
NAMES = [f"{name}: {telling}" for name, _, telling in WRONG]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_without_the_mistake_the_same_answer_is_right(name, answer):
    assert getattr(exercises, name)(answer)


@pytest.mark.parametrize(("name", "answer", "telling"), WRONG, ids=NAMES)
def test_a_mistake_is_told(name, answer, telling):
    verdict = getattr(exercises, name)(answer)
    assert not verdict
    assert telling in verdict.message


def test_weights_that_repeat_are_refused():
    def repeated(outputs, inputs):  # +1 and -1 equally often, so that the variance is that of independent ones
        column = torch.ones(outputs, 1)
        column[torch.randperm(outputs)[: outputs // 2]] = -1
        return column.expand(outputs, inputs) * math.sqrt(2 / inputs)

    assert "rows or columns repeat" in exercises.check_he_weights(repeated).message
