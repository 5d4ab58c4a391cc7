"""Linear classifiers of frozen features: support vector machines and the linear probe, found by L-BFGS."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.errors import SettingError, check_number
from labutils.methods.features import Features, check_features, score

FIRST_C = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # the values of C that are tried first
SMALLEST_C, LARGEST_C = 1e-8, 1e8
TURNS = 300  # of L-BFGS at most
TOLERANCE = 1e-5  # of the objective's gradient


def linear_svm(train: Features, test: Features, *, C: float = 1.0) -> dict[str, float]:  # noqa: N803  the field's name
    """How well linear support vectors, one class against the rest, tell a test feature's class; see `svm_head`."""
    return score(svm_head(train, C=C), test)


def linear_probe(train: Features, test: Features, *, C: float = 1.0) -> dict[str, float]:  # noqa: N803
    """How well logistic regression tells a test feature's class; see `probe_head`."""
    return score(probe_head(train, C=C), test)


def svm_head(train: Features, *, C: float = 1.0) -> nn.Linear:  # noqa: N803
    """Support vectors for each class against the rest: half the squared weights plus C times the squared hinge losses.

    The objective is that of scikit-learn's LinearSVC. Its liblinear solves it a class at a time; here all classes
    share each product of matrices, and L-BFGS comes to the same weights in a fraction of the time.

    Args:
        train: features (N, F), which are standardised first, and labels (N,).
        C: weight of the losses, above 0.

    Returns:
        A layer that gives each class's score for features as they were given.

    Raises:
        SettingError: C is not above 0, features that are not finite, or a class without a feature.
    """

    def hinge(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        signs = torch.full_like(scores, -1).scatter_(1, labels[:, None], 1)
        return F.relu(1 - signs * scores).square().sum()

    return linear_head(train, hinge, C)


def probe_head(train: Features, *, C: float = 1.0) -> nn.Linear:  # noqa: N803
    """Logistic regression: half the squared weights plus C times the cross-entropies (Alain & Bengio 2016, "probes").

    Args, Returns, Raises: as in `svm_head`.
    """
    return linear_head(train, lambda scores, labels: F.cross_entropy(scores, labels, reduction="sum"), C)


def linear_head(
    train: Features,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    C: float,  # noqa: N803
) -> nn.Linear:
    """The linear layer with the least half squared weights plus C times a convex loss, found by L-BFGS."""
    features, labels = train
    check_features(features, labels)
    check_number("C", C, 0, open_ends="low")
    if len(features) < 2:
        raise SettingError("features", tuple(features.shape), "two rows or more")
    counts = labels.bincount()
    if not counts.all():
        raise SettingError("labels", f"none of class {counts.argmin().item()}", "training features of each class")
    constant = (features == features[0]).all(dim=0)  # says nothing, and its mean is not exact
    mean, std = features.mean(dim=0), features.std(dim=0).masked_fill(constant, 1)
    standard = ((features - mean) / std).masked_fill(constant, 0)
    # The bias is the weight of one more feature, so that it is kept small like the others.
    inputs = torch.cat([standard, torch.ones_like(features[:, :1])], dim=1)
    weight = torch.zeros(len(counts), inputs.shape[1], device=inputs.device, requires_grad=True)
    scale = 1 / (C * len(inputs))
    solver = torch.optim.LBFGS(
        [weight], max_iter=TURNS, tolerance_grad=TOLERANCE, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        value = scale * (weight.square().sum() / 2 + C * loss(inputs @ weight.T, labels))
        value.backward()
        return value

    solver.step(objective)
    head = nn.utils.skip_init(nn.Linear, features.shape[1], len(counts), device=inputs.device)  # draws no weights
    with torch.no_grad():
        head.weight.copy_(weight[:, :-1] / std)
        head.bias.copy_(weight[:, -1] - head.weight @ mean)
    return head


def best_c(fit_head: Callable[..., nn.Linear], train: Features, validation: Features | None) -> float:
    """The C whose head classifies most validation features correctly; of several such, the smallest.

    FIRST_C are tried first. While the smallest or the largest of all that were tried is better than every other, the
    next power of ten is tried too: the best of a grid may lie beyond its edge.

    Raises:
        SettingError: there is no validation split.
    """
    if validation is None:
        raise SettingError("C", None, "a number above 0, because there is no validation split to choose it by")
    found: dict[float, float] = {}
    wanted = list(FIRST_C)
    while wanted:
        found |= {C: score(fit_head(train, C=C), validation)["top1"] for C in wanted}
        best = max(sorted(found), key=found.get)
        alone = list(found.values()).count(found[best]) == 1
        step = {min(found): -1, max(found): 1}.get(best, 0)
        beyond = 10.0 ** (round(math.log10(best)) + step)
        wanted = [beyond] if alone and step and SMALLEST_C <= beyond <= LARGEST_C else []
    return best
