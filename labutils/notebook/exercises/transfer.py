"""What notebook 04 has its readers build, and its exercises."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.models.resnet import ResNet
from labutils.notebook.exercises import ours
from labutils.notebook.exercises.comparing import alike, cases
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, read_number, read_tensor, shown
from labutils.notebook.finished import check_finished
from labutils.training.numerics import seeded

CAUGHT_UP = 0.01  # of an accuracy read off a line
TRAINED = 0.01  # nats above the least objective, at which a probe counts as trained
DOUBLED = 0.05  # relative to the largest weight, to which weights are those of a doubled decay


@check
def check_knn(answer: Callable[..., torch.Tensor] | None) -> Verdict:
    """Notebook 04, to build: the k nearest neighbours, by one product of matrices.

    Args:
        answer: of training features (N, F), their labels (N,), other features (M, F) and k; gives the commonest class
            among each one's nearest neighbours, (M,). Where two classes are level, either is right.
    """
    for draw in cases():
        classes, size, k = draw.randint(4, 6), draw.randint(3, 5), draw.randint(4, 8)
        labels = torch.cat([torch.arange(classes), torch.randint(classes, (80,))])
        centres = 2 * torch.randn(classes, size) + 3  # of different lengths, which a dot product mistakes for nearness
        train = centres[labels] + torch.randn(len(labels), size)
        queries = centres[torch.randint(classes, (50,))] + torch.randn(50, size)
        distances = torch.cdist(queries, train)
        votes = F.one_hot(labels[distances.topk(k, largest=False).indices], classes).sum(dim=1)
        clear = votes.topk(2)[0].diff().squeeze(1) < 0  # one class is ahead of all others
        given = read_tensor(call(answer, train, labels, queries, k), (50,), "a tensor of classes")
        if given[clear].equal(votes.argmax(dim=1)[clear].double()):
            continue
        mistakes = {
            "those are places of neighbours in the training features; their labels are asked for": (
                distances.argmin(dim=1)
            ),
            "those are the votes of the farthest: topk takes the largest unless it is told largest=False": (
                voted(labels, -distances, k)
            ),
            "a dot product is no distance: |q - t|^2 = |q|^2 + |t|^2 - 2 q.t needs |t|^2, too": (
                voted(labels, -queries @ train.T, k)
            ),
            "you compare directions (cosine); the Euclidean distance is asked for": (
                voted(labels, -F.normalize(queries) @ F.normalize(train).T, k)
            ),
            f"only one neighbour votes, not k = {k}": voted(labels, distances, 1),
        }
        for message, wrong in mistakes.items():
            if given[clear].equal(wrong[clear].double()):
                raise Rejected(message)
        wrong = (given != votes.argmax(dim=1))[clear].sum().item()
        raise Rejected(f"k = {k}: {wrong} of {clear.sum().item()} features get another class than most neighbours have")
    return Verdict(True, "the class of most of the k nearest, in the Euclidean sense, for each k tried")


def voted(labels: torch.Tensor, distances: torch.Tensor, k: int) -> torch.Tensor:
    """The commonest label among the k columns of least distance in each row."""
    return F.one_hot(labels[distances.topk(k, largest=False).indices]).sum(dim=1).argmax(dim=1)


class Staged(nn.Module):
    """A network with a stem, stages and a head, which leaves it to others what is frozen."""

    def __init__(self):
        super().__init__()
        net = ResNet((1, 1, 1, 1), width=2, classes=5, zero_init_residual=False)
        self.stem, self.stages, self.head = net.stem, net.stages, net.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))


@check
def check_freeze(answer: Callable[[nn.Module, int], nn.Module] | None) -> Verdict:
    """Notebook 04, to build: freezing and unfreezing, with batch normalizations that keep their statistics.

    Args:
        answer: of a network with stem, stages and head, and a number of stages: 0 lets the head alone learn, n the last
            n stages too, -1 everything. Gives the same network, ready for training.
    """
    for _, order in zip(cases(2), ((1, 0, -1), (3, -1, 2)), strict=True):
        net = Staged()
        stem, parts = net.stem, list(net.stages)
        for stages in order:  # on the same network: what was frozen may have to learn again
            if call(answer, net, stages) is not net:
                raise Rejected("the network that you were given is expected back, changed in place")
            if any("requires_grad" in vars(module) for module in net.modules()):
                raise Rejected("`part.requires_grad = ...` changes nothing in a module: call part.requires_grad_(...)")
            frozen = [stem, *parts[: len(parts) - stages]] if stages >= 0 else []
            check_frozen(net, {id(module) for part in frozen for module in part.modules()}, f"stages = {stages}")
    return Verdict(True, "what is frozen keeps its weights and statistics, and learns again when it is asked to")


def check_frozen(net: nn.Module, frozen: set[int], where: str) -> None:
    """Raise Rejected unless those modules of a network that have these ids stay as they are, and all others learn."""
    for path, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad == (id(module) in frozen):
                change = "be frozen, and still learns" if parameter.requires_grad else "learn, and is frozen"
                raise Rejected(f"{where}: {path}.{name} should {change}")
    norms = {path: module for path, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = call(lambda: {path: norm.running_mean.clone() for path, norm in norms.items()})
    call(net, torch.randn(4, 3, 16, 16))
    for path, norm in norms.items():
        changed = not call(norm.running_mean.equal, before[path])
        if changed and id(norm) in frozen:
            raise Rejected(
                f"{where}: {path} is frozen, but its running mean changed in training: put frozen batch normalizations "
                "into evaluation mode, after train()"
            )
        if not changed and id(norm) not in frozen:
            raise Rejected(
                f"{where}: {path} learns, but its running mean stayed as it was: it belongs in training mode"
            )


@check
def check_probe(answer: Callable[..., nn.Linear] | None) -> Verdict:
    """Notebook 04, to build: a linear probe.

    Args:
        answer: of features (N, F) of mean 0 and standard deviation 1, labels (N,), the number of classes and a decay;
            gives the nn.Linear with the least mean cross-entropy plus decay / 2 times the sum of its squared weights.
    """
    for draw in cases():
        size, classes, decay = draw.randint(6, 9), draw.randint(3, 5), draw.choice([0.02, 0.05])
        features = torch.randn(200, size)
        labels = (features @ torch.randn(size, classes) + torch.randn(200, classes)).argmax(dim=1)
        labels[:classes] = torch.arange(classes)
        features = ((features - features.mean(0)) / features.std(0)).requires_grad_()
        head = call(answer, features, labels, classes, decay)
        if not isinstance(head, nn.Linear) or (head.in_features, head.out_features) != (size, classes):
            raise Rejected(f"a torch.nn.Linear({size}, {classes}) is expected, not {shown(head)}")
        if features.grad is not None:
            raise Rejected("your gradient reaches the features: a probe leaves the network alone, so detach() them")
        best = ours.probe(features, labels, classes, decay)
        with torch.no_grad():
            found = read_number(call(ours.probe_objective, head, features, labels, decay))
            least = ours.probe_objective(best, features, labels, decay).item()
            lengths = [each.weight.square().sum().item() for each in (head, best)]
        if found <= least + TRAINED:
            continue
        reached = f"{found:.3f} nats where {least:.3f} can be had"
        if head.bias is None:
            raise Rejected(f"{reached}: a probe needs a bias, which nn.Linear has unless it is told otherwise")
        if found > 0.95 * math.log(classes) and lengths[0] < lengths[1]:
            raise Rejected(f"{reached}, and guessing has {math.log(classes):.3f}: the probe has not learnt anything")
        if lengths[0] > 1.2 * lengths[1]:
            raise Rejected(f"{reached}: its weights are too long. Does your loss have decay / 2 times their squares?")
        if alike(head.weight, ours.probe(features, labels, classes, 2 * decay).weight, DOUBLED):
            raise Rejected(f"{reached}: you count decay times the squares of the weights, not decay / 2 times")
        raise Rejected(
            f"{reached}: take more steps or longer ones; the cross-entropy is that of logits, without softmax"
        )
    return Verdict(True, "no layer has a lower loss by more than a hundredth of a nat, and the features are untouched")


@check
def check_new_head(answer: Callable[[torch.nn.Module, int], torch.nn.Module] | None) -> Verdict:
    """Notebook 04, exercise 1: a copy of a trained network for other classes, of which only the new head learns.

    Args:
        answer: of a ResNet and a number of classes; gives the new network. Compared with what must not have changed.
    """
    with seeded(0, torch.device("cpu")):
        net = ResNet((1, 1, 1, 1), width=2).eval()
        images = torch.randn(4, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        features = net.features(images)
    given = call(answer, net, 7)
    if not call(is_unchanged, net, before):
        raise Rejected("the network you were given has changed; whoever uses it next would be surprised")
    if not all(parameter.requires_grad for parameter in net.parameters()):
        raise Rejected("the network you were given is frozen now; work on a copy")
    if not isinstance(given, ResNet) or not isinstance(given.head, torch.nn.Linear):
        raise Rejected(f"a ResNet like the given one is expected, with a new nn.Linear as its head, not {shown(given)}")
    with torch.no_grad():
        read_tensor(call(given, images), (4, 7), "a tensor of logits for 7 classes")
        kept = read_tensor(call(given.features, images), tuple(features.shape), "a tensor of features")
    if not torch.allclose(kept, features.double(), atol=1e-5):
        raise Rejected("the features are not those of the trained network any more")
    if given.head.bias is None:
        raise Rejected("the new head has no bias; the old one has")
    learning = [name for name, parameter in given.named_parameters() if parameter.requires_grad]
    if sorted(learning) != ["head.bias", "head.weight"]:
        raise Rejected(f"only the head should learn, not {', '.join(learning[:3]) or 'nothing'}")
    return Verdict(True, "a new head on the old features, and the network it came from is as it was")


def is_unchanged(net: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether a network still has the tensors it had."""
    after = net.state_dict()
    return after.keys() == before.keys() and all(
        before[name].dtype == tensor.dtype and before[name].equal(tensor) for name, tensor in after.items()
    )


@check
def check_nearest_mean(answer: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None) -> Verdict:
    """Notebook 04, exercise 2: each feature gets the class whose mean feature is nearest.

    Args:
        answer: of training features (N, F), their labels (N,) and other features (M, F); gives classes (M,).
    """
    with seeded(0, torch.device("cpu")):
        centres = torch.randn(5, 3) * torch.tensor([3.0, 1.0, 1.0]) + 4
        labels = torch.cat([torch.arange(5), torch.randint(5, (195,))])
        train = centres[labels] + torch.randn(200, 3)
        others = centres[torch.randint(5, (300,))] + torch.randn(300, 3)
    given = read_tensor(call(answer, train, labels, others), (len(others),), "a tensor of classes")
    means = torch.stack([train[labels == number].mean(dim=0) for number in range(5)])
    expected = (others[:, None] - means).square().sum(dim=2).argmin(dim=1)
    mistakes = {
        "that is the class of the nearest training feature; the nearest mean is asked for": (
            labels[torch.cdist(others, train).argmin(dim=1)]
        ),
        "that is the class of the farthest mean": torch.cdist(others, means).argmax(dim=1),
        "you compare directions (cosine); the Euclidean distance is asked for": (
            (F.normalize(others) @ F.normalize(means).T).argmax(dim=1)
        ),
        "a dot product is no distance: |q - m|^2 = |q|^2 + |m|^2 - 2 q.m needs |m|^2, too": (
            (others @ means.T).argmax(dim=1)
        ),
    }
    for message, classes in mistakes.items():
        if given.equal(classes.double()):
            raise Rejected(message)
    wrong = (given != expected).sum().item()
    if wrong:
        raise Rejected(f"{wrong} of {len(others)} features have a nearer mean than that of the class you say")
    return Verdict(True, "each feature gets the class whose mean is nearest, in the Euclidean sense")


@check
def check_labels_saved(answer: float | None, results: pd.DataFrame, *, few: int) -> Verdict:
    """Notebook 04, exercise 3: how many labels a class a training from scratch needs to catch up with a transfer.

    Args:
        answer: images of each class.
        results: rows of runs with backbone ("none" from scratch), per_class and test_top1.
        few: images of each class that the transfer has.

    Raises:
        SettingError: a run of the results is not finished.
    """
    check_finished(results, "test_top1")
    mean = results.groupby([results["backbone"] != "none", "per_class"])["test_top1"].mean()
    target, scratch = mean[True][few], mean[False].sort_index()
    images = read_number(answer)
    if not scratch.index.min() <= images <= scratch.index.max():
        raise Rejected(f"the runs from scratch have {scratch.index.min()} to {scratch.index.max()} images a class")
    reached = np.interp(math.log(images), np.log(scratch.index), scratch)
    if not math.isclose(reached, target, abs_tol=CAUGHT_UP):
        raise Rejected(
            f"with {images:g} images a class a start from scratch reaches {reached:.1%}, the transfer {target:.1%}"
        )
    return Verdict(True, f"with about {images:g} images a class, instead of {few}, scratch reaches {target:.1%}, too")
