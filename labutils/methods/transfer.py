"""What a trained network is good for on other data: its features for a new head, or its weights as a start."""

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from labutils.data.loading import ImageData
from labutils.errors import LARGEST, SettingError, check_choice, check_flag, check_number, check_text, check_whole
from labutils.methods.features import extract_features, score, timed_outputs
from labutils.methods.linear import best_c, probe_head, svm_head
from labutils.methods.neighbours import METRICS, NeighbourHead
from labutils.methods.pretrained import load_pretrained
from labutils.models.building import build_model
from labutils.models.resnet import CNN
from labutils.training.callbacks import Callback, Continues
from labutils.training.history import Diverged, History, Interrupted
from labutils.training.loop import fit
from labutils.training.settings import Training

METHODS = ("fine_tuning", "knn", "svm", "probe")
FITTED_HEADS = {"svm": svm_head, "probe": probe_head}  # which have biases, whatever the backbone's head has


@dataclass(frozen=True)
class Transfer:
    """From which trained network an experiment starts, and how that is taken over to new classes.

    Args:
        backbone: a trained network of the course, such as cnn_backbone; None starts from random weights.
        method: fine_tuning trains a new head and the last stages by gradient descent; knn, svm and probe leave the
            network as it is and find a head for its features (nearest neighbours, linear support vectors, logistic
            regression).
        stages: of fine_tuning: how many of the last stages learn beside the head, from 0; -1 for all and the stem.
        progressive: of fine_tuning: whether it goes in phases of about as many epochs each: the head alone, then the
            last `stages` with it, then all; two phases where `stages` is 0 or -1 (after Howard & Ruder 2018, "Universal
            language model fine-tuning").
        reinitialized: of fine_tuning: how many of the last stages start from random weights instead of the backbone's,
            from 0 to `stages` (Yosinski et al. 2014, "How transferable are features in deep neural networks?").
        k: of knn: neighbours that vote, from 1.
        metric: of knn: cosine or euclidean.
        weighted: of knn: whether a vote counts by one over its distance.
        C: of svm and probe: weight of the losses against that of small weights, above 0; None takes the best by
            validation (see `best_c`).

    Raises:
        SettingError: an argument that is not allowed, or a method that needs a backbone without one.
    """

    backbone: str | None = None
    method: str = "fine_tuning"
    stages: int = -1
    progressive: bool = False
    reinitialized: int = 0
    k: int = 10
    metric: str = "cosine"
    weighted: bool = True
    C: float | None = None

    def __post_init__(self):
        check_text("backbone", self.backbone, optional=True)
        check_choice("method", self.method, METHODS)
        check_whole("stages", self.stages, -1)
        check_flag("progressive", self.progressive)
        check_whole("reinitialized", self.reinitialized, 0, LARGEST if self.stages == -1 else self.stages)
        check_whole("k", self.k, 1)
        check_choice("metric", self.metric, METRICS)
        check_flag("weighted", self.weighted)
        if self.reinitialized and self.method != "fine_tuning":
            raise SettingError("reinitialized", self.reinitialized, f"0 for {self.method}, which trains no stage")
        if self.C is not None:
            check_number("C", self.C, 0, open_ends="low")
        if self.backbone is None and (self.method != "fine_tuning" or self.stages != -1 or self.reinitialized):
            raise SettingError("backbone", None, f"a trained network, for {self.method} of some of its stages")


def pretrained_model(
    transfer: Transfer, settings: dict, data: ImageData, *, precision: str = "auto", cache: Path | None = None
) -> CNN:
    """The network that a transfer starts from: its backbone with a head for the data's classes, frozen as it says.

    Args:
        transfer: with a backbone.
        settings: of the model, which must be those that the backbone was built with.
        data: the new data set.
        precision, cache: of the training features that knn compares with, as in `extract_features`.

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
    model = transferred(backbone, len(data.classes), bias=True if fitted else None)
    if transfer.reinitialized:
        reinitialize(model, build_model(**settings, image_shape=data.image_shape, classes=1), transfer.reinitialized)
    model = model.to(data.device)
    if transfer.method == "knn":
        train = extract_features(model, "train", data, precision=precision, cache=cache)
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
            history = earlier.followed_by(interrupt.history)
            if earlier.rows and history.best_epoch <= len(earlier.rows):
                model.load_state_dict(best)
            raise Interrupted(history) from None
        except Diverged as error:
            joined = earlier.followed_by(error.history)
            raise Diverged(len(earlier.rows) + error.epoch, error.step, error.loss, joined) from None
        history = earlier.followed_by(latest)
        if history.best_epoch <= len(earlier.rows):
            model.load_state_dict(best)
        if latest.interrupted:
            break
    return history


def find_head(
    model: CNN, data: ImageData, transfer: Transfer, *, precision: str = "auto", cache: Path | None = None
) -> History:
    """Give a network the head that a transfer's method finds for its features, and say so as a history of one epoch.

    Its seconds are those of extracting the training features, finding the head, and validation.

    Args:
        model: changed in place.
        data: the new data set.
        transfer: its method is knn, svm or probe.
        precision, cache: as in `extract_features`.
    """
    wanted = {"precision": precision, "cache": cache}
    features, extraction = timed_outputs(model, "features", data.train, data, **wanted)
    train, validation = (features, data.train.labels), None
    if data.validation is not None:
        validation = extract_features(model, "validation", data, **wanted)
    row = {"epoch": 1, "train_loss": math.nan, "train_accuracy": math.nan}
    start = time.perf_counter()
    if transfer.method != "knn":
        fit_head = FITTED_HEADS[transfer.method]
        row["C"] = best_c(fit_head, train, validation) if transfer.C is None else transfer.C
        model.head = fit_head(train, C=row["C"])
        row["train_accuracy"] = score(model.head, train)["top1"]
    row |= {"validation_loss": math.nan, "validation_accuracy": math.nan, "lr": math.nan}
    if validation is not None:
        row["validation_accuracy"] = score(model.head, validation)["top1"]
    row["seconds"] = extraction + time.perf_counter() - start
    return History([row])


def reinitialize(model: CNN, untrained: CNN, stages: int) -> None:
    """Put an untrained network's last stages, so many of them, in the place of a model's own."""
    count = len(model.stages)
    if stages > count:
        raise SettingError("reinitialized", stages, f"a whole number from 0 to {count}, the stages of {model}")
    for number in range(count - stages, count):
        model.stages[number] = untrained.stages[number]


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
