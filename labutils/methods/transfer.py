"""What a trained network is good for on other data: its features for a new head, or its weights as a start."""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.data.loading import ImageData
from labutils.errors import SettingError, check_choice, check_finite, check_flag, check_number, check_text, check_whole
from labutils.methods.features import extract_features, timed_outputs
from labutils.methods.pretrained import load_pretrained
from labutils.models.resnet import CNN
from labutils.training.callbacks import Callback, Continues
from labutils.training.evaluation import accuracies
from labutils.training.history import History, Interrupted
from labutils.training.loop import fit
from labutils.training.settings import Training

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
        progressive: of fine_tuning: whether it goes in three phases of about as many epochs each: the head alone, then
            the last `stages` with it, then all (after Howard & Ruder 2018, "Universal language model fine-tuning").
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
        check_text("backbone", self.backbone, optional=True)
        check_choice("method", self.method, METHODS)
        check_whole("stages", self.stages, -1)
        check_flag("progressive", self.progressive)
        check_whole("k", self.k, 1)
        check_choice("metric", self.metric, METRICS)
        check_flag("weighted", self.weighted)
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
    if features.shape[1] != head.in_features:
        raise SettingError("features", tuple(features.shape), f"(N, {head.in_features}), as the training features have")
    if labels.max() >= head.out_features:
        raise SettingError("labels", f"none of class {labels.max().item()}", "training features of each class")
    with torch.no_grad():
        return accuracies(head(features), labels)


class NeighbourHead(nn.Module):
    """Scores (N, classes) by the votes of the k nearest training features; arguments and errors as in `knn`.

    The training features are not part of its state: to compute them again is quicker than to read them.
    """

    def __init__(self, train: Features, *, k: int = 10, metric: str = "cosine", weighted: bool = True):
        features, labels = train
        check_features(features, labels)
        check_whole("k", k, 1)
        check_choice("metric", metric, METRICS)
        check_flag("weighted", weighted)
        if k > len(features):
            raise SettingError("k", k, f"a whole number from 1 to {len(features)}, the number of training features")
        super().__init__()
        self.k, self.metric, self.weighted = k, metric, weighted
        self.in_features, self.out_features = features.shape[1], int(labels.max()) + 1
        self.counts = labels.bincount().tolist()
        by_class = labels.argsort(stable=True)
        self.register_buffer("features", self.projected(features[by_class]), persistent=False)
        self.register_buffer("labels", labels[by_class], persistent=False)

    def projected(self, features: torch.Tensor) -> torch.Tensor:
        """Features as their distances are measured: for cosine on the unit sphere."""
        return F.normalize(features, dim=1) if self.metric == "cosine" else features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self.votes(self.projected(part)) for part in features.float().split(QUERIES)])

    def votes(self, queries: torch.Tensor) -> torch.Tensor:
        # |q - t|^2 = |q|^2 + |t|^2 - 2 qt, of which the first is the same for all neighbours of a query.
        products = torch.addmm(self.features.square().sum(dim=1), queries, self.features.T, alpha=-2)
        nearest, indices = products.topk(self.k, dim=1, largest=False)
        squared = (nearest + queries.square().sum(dim=1, keepdim=True)).clamp_min(0)
        # On the unit sphere half the squared distance is 1 - cosine.
        distance = squared / 2 if self.metric == "cosine" else squared.sqrt()
        votes = 1 / distance.clamp_min(NEAREST) if self.weighted else torch.ones_like(distance)
        scores = votes.new_zeros(len(queries), self.out_features).scatter_add_(1, self.labels[indices], votes)
        # Classes without votes follow, in the order of the distance to their nearest example.
        parts = products.split(self.counts, dim=1)
        closest = torch.stack([part.amin(1) if part.shape[1] else part.sum(1) + math.inf for part in parts], dim=1)
        return torch.where(scores > 0, scores, products.amin() - 1 - closest)


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
    head = nn.utils.skip_init(nn.Linear, features.shape[1], len(counts), device=inputs.device)  # draws no weights
    with torch.no_grad():
        head.weight.copy_(weight[:, :-1] / std)
        head.bias.copy_(weight[:, -1] - head.weight @ mean)
    return head


FITTED_HEADS = {"svm": svm_head, "probe": probe_head}  # which have biases, whatever the backbone's head has


def pretrained_model(transfer: Transfer, settings: dict, data: ImageData, *, cache: Path | None = None) -> CNN:
    """The network that a transfer starts from: its backbone with a head for the data's classes, frozen as it says.

    Args:
        transfer: with a backbone.
        settings: of the model, which must be those that the backbone was built with.
        data: the new data set.
        cache: a folder for the training features that knn compares with, as in `extract_features`.

    Raises:
        SettingError: a backbone that has other settings or sees other images, or has too few stages.
        CheckpointError: the backbone is damaged.
    """
    backbone, record = load_pretrained(transfer.backbone)
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
    fitted = transfer.method in FITTED_HEADS
    model = transferred(backbone, len(data.classes), bias=True if fitted else None).to(data.device)
    if transfer.method == "knn":
        train = extract_features(model, "train", data, cache=cache)
        model.head = NeighbourHead(train, k=transfer.k, metric=transfer.metric, weighted=transfer.weighted)
    return unfreeze(model, transfer.stages if transfer.method == "fine_tuning" else 0)


def transferred(model: CNN, classes: int, *, bias: bool | None = None) -> CNN:
    """A copy of a model with an untrained head for other classes; the model itself is not changed.

    Args:
        model: a trained network.
        classes: outputs of the new head.
        bias: whether the new head has biases; None: as the model's own head.
    """
    check_whole("classes", classes, 1)
    copied = copy.deepcopy(model)
    bias = model.head.bias is not None if bias is None else bias
    copied.head = nn.Linear(model.head.in_features, classes, bias=bias)
    copied.classes = classes
    return copied


def fine_tune(
    model: CNN,
    data: ImageData,
    training: Training,
    transfer: Transfer,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    progress: bool = True,
) -> History:
    """Train the last stages of a pretrained network and its head; a progressive transfer does so in phases.

    Each phase has an optimizer and a checkpoint of its own, and goes on from the best epoch so far.

    Args:
        model: changed in place; the best epoch's weights of all are left in it.
        data, training, callbacks, checkpoint, progress: as of `fit`; the epochs are shared out over the phases.
        transfer: what is to learn.

    Raises:
        SettingError: as in `fit` and `unfreeze`, or fewer epochs than phases.
        CheckpointError, Diverged, Interrupted: as in `fit`.
    """
    phases = list(dict.fromkeys([0, transfer.stages, -1] if transfer.progressive else [transfer.stages]))
    if training.epochs < len(phases):
        raise SettingError("epochs", training.epochs, f"a whole number from {len(phases)}, one for each phase")
    ends = [training.epochs * number // len(phases) for number in range(len(phases) + 1)]
    history = History()
    for number, stages in enumerate(phases):
        best, earlier = copy.deepcopy(model.state_dict()), history
        try:
            latest = fit(
                unfreeze(model, stages),
                data,
                replace(training, epochs=ends[number + 1] - ends[number], seed=training.seed * len(phases) + number),
                callbacks=[Continues(earlier), *callbacks],
                checkpoint=checkpoint and checkpoint.with_suffix(f".{number}{checkpoint.suffix}"),
                progress=progress,
            )
        except Interrupted as interrupt:
            raise Interrupted(earlier.followed_by(interrupt.history)) from None
        history = earlier.followed_by(latest)
        if history.best_epoch <= len(earlier.rows):
            model.load_state_dict(best)
        if latest.interrupted:
            break
    return history


def find_head(model: CNN, data: ImageData, transfer: Transfer, *, cache: Path | None = None) -> History:
    """Give a network the head that a transfer's method finds for its features, and say so as a history of one epoch.

    Its seconds are those of extracting the training features, finding the head, and validation.

    Args:
        model: changed in place.
        data: the new data set.
        transfer: its method is knn, svm or probe.
        cache: as in `extract_features`.
    """
    features, extraction = timed_outputs(model, "features", data.train, data, cache=cache)
    train, validation = (features, data.train.labels), None
    if data.validation is not None:
        validation = extract_features(model, "validation", data, cache=cache)
    row = {"epoch": 1, "train_loss": math.nan, "train_accuracy": math.nan}
    start = time.perf_counter()
    if transfer.method != "knn":
        fit_head = FITTED_HEADS[transfer.method]
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
    """Raise SettingError unless features (N, F) are finite numbers and each row has a label."""
    if features.ndim != 2 or not 0 < len(features) == len(labels):
        raise SettingError("features", tuple(features.shape), f"({len(labels) or 1}, F), a row for each label")
    if not features.is_floating_point():
        raise SettingError("features", features.dtype, "floating-point numbers")
    check_finite("features", features)
    if labels.dtype != torch.int64 or labels.min() < 0:
        raise SettingError("labels", f"{labels.dtype} from {labels.min().item()}", "torch.int64, from 0")
