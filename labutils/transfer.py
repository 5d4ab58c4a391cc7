"""What a trained network is good for on other data: its features for a new head, or its weights as a start."""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.backbones import load_backbone
from labutils.data import ImageData
from labutils.errors import SettingError, check_choice, check_finite, check_number, check_whole
from labutils.extraction import extract_features, kept_outputs
from labutils.models import CNN
from labutils.training import History, Training, accuracies, fit

METHODS = ("fine_tuning", "knn", "svm", "probe")
METRICS = ("cosine", "euclidean")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # the values of C that are tried
QUERIES = 1000  # whose distances to all neighbours are in memory at once
NEAREST = 1e-6  # what a distance of 0 counts as
TURNS = 300  # of L-BFGS at most
TOLERANCE = 1e-5  # of the objective's gradient

Features = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Transfer:
    """From which trained network an experiment starts, and how that is taken over to new classes.

    Args:
        backbone: a trained network of the course, such as cnn_backbone; None starts from random weights.
        method: fine_tuning trains a new head and the last stages by gradient descent; knn, svm and probe leave the
            network as it is and find a head for its features (nearest neighbours, linear support vectors, logistic
            regression).
        stages: of fine_tuning: how many of the last stages learn beside the head, from 0; -1 for all and the stem.
        progressive: of fine_tuning: whether the head learns alone at first, then the last stage with it, and so on
            (Howard & Ruder 2018, "Universal language model fine-tuning"); the epochs are shared out evenly.
        k: of knn: neighbours that vote, from 1.
        metric: of knn: cosine or euclidean.
        weighted: of knn: whether a vote counts by one over its distance.
        C: of svm and probe: weight of the losses against that of small weights, above 0; None takes the best of
            PENALTIES by validation.

    Raises:
        SettingError: an argument that is not allowed, or a method that needs a backbone without one.
    """

    backbone: str | None = None
    method: str = "fine_tuning"
    stages: int = -1
    progressive: bool = False
    k: int = 10
    metric: str = "cosine"
    weighted: bool = True
    C: float | None = None

    def __post_init__(self):
        check_choice("method", self.method, METHODS)
        check_whole("stages", self.stages, -1)
        check_choice("progressive", self.progressive, (True, False))
        check_whole("k", self.k, 1)
        check_choice("metric", self.metric, METRICS)
        check_choice("weighted", self.weighted, (True, False))
        if self.C is not None:
            check_number("C", self.C, 0, open_ends="low")
        if self.backbone is None and (self.method != "fine_tuning" or self.stages != -1):
            raise SettingError("backbone", None, f"a trained network, for {self.method} of some of its stages")


def knn(
    train: Features, test: Features, *, k: int = 10, metric: str = "cosine", weighted: bool = True
) -> dict[str, float]:
    """How well the nearest training features tell a test feature's class; the distances are exact.

    Args:
        train, test: features (N, F) and labels (N,).
        k: neighbours that vote, from 1 to the number of training features.
        metric: cosine or euclidean.
        weighted: whether a vote counts by one over its distance; otherwise all count alike.

    Returns:
        top1 and top5, fractions from 0 to 1.

    Raises:
        SettingError: an argument that is not allowed, or features that are not finite.
    """
    return score(NeighbourHead(train, k=k, metric=metric, weighted=weighted), test)


def linear_svm(train: Features, test: Features, *, C: float = 1.0) -> dict[str, float]:  # noqa: N803  the field's name
    """How well linear support vectors, one class against the rest, tell a test feature's class; see `svm_head`."""
    return score(svm_head(train, C=C), test)


def linear_probe(train: Features, test: Features, *, C: float = 1.0) -> dict[str, float]:  # noqa: N803
    """How well logistic regression tells a test feature's class; see `probe_head`."""
    return score(probe_head(train, C=C), test)


def score(head: nn.Module, test: Features) -> dict[str, float]:
    """top1 and top5 of a head on features (N, F) with their labels (N,)."""
    features, labels = test
    check_features(features, labels)
    if labels.max() >= head.out_features:
        raise SettingError("labels", f"none of class {labels.max().item()}", "training features of each class")
    with torch.no_grad():
        return accuracies(head(features), labels)


class NeighbourHead(nn.Module):
    """Scores (N, classes) by the votes of the k training features that are nearest; arguments and errors as in `knn`.

    The training features are no part of its state: they are found again sooner than they are read.
    """

    def __init__(self, train: Features, *, k: int = 10, metric: str = "cosine", weighted: bool = True):
        features, labels = train
        check_features(features, labels)
        check_whole("k", k, 1)
        check_choice("metric", metric, METRICS)
        check_choice("weighted", weighted, (True, False))
        if k > len(features):
            raise SettingError("k", k, f"a whole number from 1 to {len(features)}, the number of training features")
        super().__init__()
        self.k, self.metric, self.weighted = k, metric, weighted
        self.out_features = int(labels.max()) + 1
        self.register_buffer("features", self.placed(features), persistent=False)
        self.register_buffer("labels", labels, persistent=False)

    def placed(self, features: torch.Tensor) -> torch.Tensor:
        """Features where their distances are measured: for cosine on the unit sphere."""
        return F.normalize(features, dim=1) if self.metric == "cosine" else features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self.votes(self.placed(part)) for part in features.float().split(QUERIES)])

    def votes(self, queries: torch.Tensor) -> torch.Tensor:
        # |q - t|^2 = |q|^2 + |t|^2 - 2 qt, of which the first is the same for all neighbours of a query.
        products = torch.addmm(self.features.square().sum(dim=1), queries, self.features.T, alpha=-2)
        nearest, places = products.topk(self.k, dim=1, largest=False)
        squared = (nearest + queries.square().sum(dim=1, keepdim=True)).clamp_min(0)
        # On the unit sphere half the squared distance is 1 - cosine.
        distance = squared / 2 if self.metric == "cosine" else squared.sqrt()
        votes = 1 / distance.clamp_min(NEAREST) if self.weighted else torch.ones_like(distance)
        return votes.new_zeros(len(queries), self.out_features).scatter_add_(1, self.labels[places], votes)


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
    counts = labels.bincount()
    if not counts.all():
        raise SettingError("labels", f"none of class {counts.argmin().item()}", "training features of each class")
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    # The bias is the weight of one more feature, so that it is kept small like the others.
    inputs = torch.cat([(features - mean) / std, torch.ones_like(features[:, :1])], dim=1)
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
    head = nn.Linear(features.shape[1], len(counts), device=inputs.device)
    with torch.no_grad():
        head.weight.copy_(weight[:, :-1] / std)
        head.bias.copy_(weight[:, -1] - head.weight @ mean)
    return head


def taken_over(transfer: Transfer, settings: dict, data: ImageData) -> CNN:
    """The network that a transfer starts from: its backbone with a head for the data's classes, frozen as it says.

    Args:
        transfer: with a backbone.
        settings: of the model, which must be those that the backbone was built with.
        data: the new data set.

    Raises:
        SettingError: a backbone that has other settings or sees other images, or has too few stages.
        CheckpointError: the backbone is damaged.
    """
    backbone, record = load_backbone(transfer.backbone)
    kept = record["settings"]["model"]
    for name, value in kept.items():
        if json.loads(json.dumps(settings.get(name))) != value:
            raise SettingError(f"model.{name}", settings.get(name), f"{value!r}, which {transfer.backbone} has")
    if record["image_shape"][0] != data.image_shape[0]:
        raise SettingError(
            "backbone",
            transfer.backbone,
            f"a network for images of {data.image_shape[0]} channels, not {record['image_shape'][0]}",
        )
    model = transferred(backbone, len(data.classes)).to(data.device)
    if transfer.method == "knn":
        train = extract_features(model, "train", data)
        model.head = NeighbourHead(train, k=transfer.k, metric=transfer.metric, weighted=transfer.weighted)
    return unfreeze(model, transfer.stages if transfer.method == "fine_tuning" else 0)


def transferred(model: CNN, classes: int) -> CNN:
    """A copy of a model with an untrained head for other classes; the model itself is not changed."""
    check_whole("classes", classes, 1)
    copied = copy.deepcopy(model)
    copied.head = nn.Linear(model.head.in_features, classes, bias=model.head.bias is not None)
    return copied


def adapt(model: CNN, data: ImageData, training: Training, transfer: Transfer, **options) -> History:
    """Learn a network's new task by a transfer's method: as `fine_tune`, whose options it takes, or `find_head`."""
    if transfer.method == "fine_tuning":
        return fine_tune(model, data, training, transfer, **options)
    history = find_head(model, data, transfer)
    if options.get("on_epoch") is not None:
        options["on_epoch"](history)
    return history


def fine_tune(
    model: CNN,
    data: ImageData,
    training: Training,
    transfer: Transfer,
    *,
    on_epoch: Callable[[History], None] | None = None,
    on_step: Callable[[float, torch.Tensor], None] | None = None,
    checkpoint: Path | None = None,
    **options,
) -> History:
    """Train the last stages of a network that was taken over; a progressive transfer does so in phases.

    Each phase has an optimizer and a checkpoint of its own, and goes on from the best epoch so far.

    Args:
        model: changed in place; the best epoch's weights of all are left in it.
        data, training, on_epoch, on_step, checkpoint, options: as of `fit`; the epochs are shared out over the phases.
        transfer: what is to learn.

    Raises:
        SettingError: as in `fit` and `unfreeze`, or fewer epochs than phases.
        CheckpointError, Diverged: as in `fit`.
    """
    phases = list(dict.fromkeys([0, transfer.stages, -1] if transfer.progressive else [transfer.stages]))
    if training.epochs < len(phases):
        raise SettingError("epochs", training.epochs, f"a whole number from {len(phases)}, one for each phase")
    ends = [training.epochs * number // len(phases) for number in range(len(phases) + 1)]
    history = History()
    for number, stages in enumerate(phases):
        best, earlier = copy.deepcopy(model.state_dict()), history
        latest = fit(
            unfreeze(model, stages),
            data,
            replace(training, epochs=ends[number + 1] - ends[number], seed=training.seed * len(phases) + number),
            on_epoch=on_epoch and (lambda latest, earlier=earlier: on_epoch(earlier.followed_by(latest))),
            on_step=on_step and (lambda epochs, loss, earlier=earlier: on_step(len(earlier.rows) + epochs, loss)),
            checkpoint=checkpoint and checkpoint.with_suffix(f".{number}{checkpoint.suffix}"),
            **options,
        )
        history = earlier.followed_by(latest)
        if history.best_epoch <= len(earlier.rows):
            model.load_state_dict(best)
        if latest.interrupted:
            break
    return history


def find_head(model: CNN, data: ImageData, transfer: Transfer) -> History:
    """Give a network the head that a transfer's method finds for its features, and say so as a history of one epoch.

    Its seconds are those of extracting the training features, finding the head, and validation.
    """
    features, extraction = kept_outputs(model, "features", data.train, data)
    train, validation = (features, data.train.labels), None
    if data.validation is not None:
        validation = extract_features(model, "validation", data)
    row = {"epoch": 1, "train_loss": math.nan, "train_accuracy": math.nan}
    start = time.perf_counter()
    if transfer.method != "knn":
        fit_head = {"svm": svm_head, "probe": probe_head}[transfer.method]
        row["C"] = best_penalty(fit_head, train, validation) if transfer.C is None else transfer.C
        model.head = fit_head(train, C=row["C"])
        row["train_accuracy"] = score(model.head, train)["top1"]
    row |= {"validation_loss": math.nan, "validation_accuracy": math.nan, "lr": math.nan}
    if validation is not None:
        row["validation_accuracy"] = score(model.head, validation)["top1"]
    row["seconds"] = extraction + time.perf_counter() - start
    return History([row])


def best_penalty(
    fit_head: Callable[..., nn.Linear], train: Features, validation: Features | None, penalties: tuple = PENALTIES
) -> float:
    """The C whose head tells most validation features' classes.

    Raises:
        SettingError: there is no validation split.
    """
    if validation is None:
        raise SettingError("C", None, "a number above 0, because there is no validation split to choose it by")
    return max(penalties, key=lambda penalty: score(fit_head(train, C=penalty), validation)["top1"])


def unfreeze(model: CNN, stages: int) -> CNN:
    """Let only the last of a model's stages, and its head, go on learning.

    Frozen batch normalizations keep their statistics and normalise by them, in training mode, too.

    Args:
        model: changed in place.
        stages: 0 for the head alone, n for the last n stages too, -1 for all, the stem among them.

    Returns:
        The model.

    Raises:
        SettingError: more stages than the model has.
    """
    check_whole("stages", stages, -1)
    if not isinstance(model, CNN):
        raise SettingError("model", model, "a ResNet or a ShallowCNN, which have stages")
    parts = model.stages
    if stages > len(parts):
        raise SettingError("stages", stages, f"a whole number from -1 to {len(parts)}, the stages of {model}")
    model.requires_grad_(requires_grad=stages == -1)
    for part in (model.head, *parts[len(parts) - max(stages, 0) :]):
        part.requires_grad_()
    return model.train(model.training)


def check_features(features: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise SettingError unless features (N, F) are finite and have as many labels."""
    if features.ndim != 2 or len(features) != len(labels):
        raise SettingError("features", tuple(features.shape), f"({len(labels)}, F), a row for each label")
    check_finite("features", features)
