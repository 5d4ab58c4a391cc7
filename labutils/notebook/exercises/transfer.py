"""The exercises of notebook 04."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from labutils.models.resnet import ResNet
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, read_number, read_tensor, shown
from labutils.notebook.finished import check_finished
from labutils.training.device import seeded

CAUGHT_UP = 0.01  # of an accuracy read off a line


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
    if not isinstance(given, ResNet):
        raise Rejected(f"a network is expected, not {shown(given)}")
    with torch.no_grad():
        read_tensor(call(given, images), (4, 7), "a tensor of logits for 7 classes")
        kept = read_tensor(call(given.features, images), tuple(features.shape), "a tensor of features")
    if not torch.allclose(kept, features.double(), atol=1e-5):
        raise Rejected("the features are not those of the trained network any more")
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
