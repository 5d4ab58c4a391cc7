"""fit and evaluate: one training loop, short enough to read on one screen.

On two cores (AMD EPYC, torch 2.15) an epoch of `fit` takes as long as the same forward and backward passes and steps
on tensors that are already there: 0.98 of it for an MLP of depth 5 and width 64 (n = 15), 1.20 for the smallest, of
depth 1 and width 32. `make bench` measures it.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from labutils.augmentation import AUGMENTATIONS
from labutils.checkpoints import Checkpoint, shapes
from labutils.data import ImageData, Split, batches, numbered_batches
from labutils.errors import SettingError, check_choice, check_number, check_whole
from labutils.memory import keep_freed_memory
from labutils.models import whiten_stem
from labutils.muon import Muon

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

OPTIMIZERS = ("adam", "adamw", "sgd", "muon")
SCHEDULERS = (None, "cosine", "plateau", "onecycle", "triangular")
CYCLES = {"onecycle": "cos", "triangular": "linear"}  # how the schedules of one cycle rise and fall, step by step
PRECISIONS = ("auto", "fp32", "bf16")
VIEWS = (1, 2, 6)  # of an image that predictions can be averaged over
EVALUATION_BATCH = 250  # a stop is heeded between two; of 2,000 an evaluation is 1.07 times as fast, on two cores
WHITENING_IMAGES = 5_000  # whose patches the first filters are made from
WARM_UP = 0.1  # share of one cycle's steps in which the learning rate rises
LOSS_CHECK_STEPS = 100  # how often the losses so far are looked at; each look waits for a GPU


class Diverged(ArithmeticError):
    """The training loss became NaN or infinite.

    Attributes:
        epoch, step: where it did, both counted from 1.
        history: the epochs before.
    """

    def __init__(self, epoch: int, step: int, loss: float, history: "History"):
        super().__init__(
            f"the training loss became {loss} in epoch {epoch}, step {step}. Try a lower learning rate, "
            "normalization, another initialisation, or precision='fp32'"
        )
        self.epoch, self.step, self.history = epoch, step, history


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Args:
        epochs: passes over the training images, from 1.
        batch_size: images a step, from 1.
        optimizer: adam (Kingma & Ba 2015), adamw (Loshchilov & Hutter 2019), sgd or muon (Jordan et al. 2024).
        lr: learning rate, above 0; with onecycle and triangular the highest one.
        momentum: of sgd and muon, from 0 to below 1.
        weight_decay: from 0. Added to the gradient by adam and sgd, decoupled from it by adamw and muon.
        scheduler: None keeps the learning rate; cosine lowers it towards 0 epoch by epoch; plateau halves it
            whenever the validation loss has not improved for more than 2 epochs; onecycle raises and lowers it
            step by step (Smith & Topin 2018), along a cosine; triangular does so along straight lines.
        patience: stop after so many epochs without a better validation accuracy; None never stops early.
        label_smoothing: share of each label spread over all classes, from 0 to below 1.
        augment: None, basic (random crops from a margin of 4 pixels, and flips), slight (a margin of 2, and flips every
            other epoch) or strong (basic, jitter of colour and shape, and cutout).
        whitening: whether a CNN's first filters start as the directions in which the training images' patches
            differ most (see labutils.models.whiten_stem), instead of at random.
        averaging: share of the averaged weights that each step keeps, from 0 to below 1: an exponential moving average
            over about 1 / (1 - averaging) steps, which is what is validated and kept (Polyak & Juditsky 1992). 0: none.
        stage_lr: factor on a CNN's learning rate from each stage to the one before it, above 0 to 1; the head learns at
            lr (Howard & Ruder 2018, "Universal language model fine-tuning", discriminative rates).
        precision: fp32, bf16 (autocast), or auto: bf16 where the hardware multiplies it natively and it pays.
        seed: of the order of the batches, augmentation and dropout; `run` also draws the initial weights from it.

    Raises:
        SettingError: an argument that is not allowed.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    scheduler: str | None = None
    patience: int | None = None
    label_smoothing: float = 0.0
    augment: str | None = None
    whitening: bool = False
    averaging: float = 0.0
    stage_lr: float = 1.0
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        check_whole("epochs", self.epochs, 1)
        check_whole("batch_size", self.batch_size, 1)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_number("lr", self.lr, 0, open_ends="low")
        check_number("momentum", self.momentum, 0, 1, open_ends="high")
        check_number("weight_decay", self.weight_decay, 0)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
        check_number("label_smoothing", self.label_smoothing, 0, 1, open_ends="high")
        check_choice("augment", self.augment, AUGMENTATIONS)
        check_choice("whitening", self.whitening, (True, False))
        check_number("averaging", self.averaging, 0, 1, open_ends="high")
        check_number("stage_lr", self.stage_lr, 0, 1, open_ends="low")
        if self.optimizer == "muon" and self.stage_lr != 1:
            raise SettingError("stage_lr", self.stage_lr, "1 with muon, whose steps are shares of the weights' lengths")
        check_choice("precision", self.precision, PRECISIONS)
        check_whole("seed", self.seed, 0)


class History:
    """What happened in each epoch.

    Attributes:
        frame: a row an epoch: epoch, train_loss, train_accuracy (both running, over the epoch),
            validation_loss, validation_accuracy (NaN without a validation split), lr, seconds.
        best_epoch: the epoch with the highest validation accuracy (of equals the one with the lowest validation
            loss); without a validation split the last one. 0 before the first has ended.
        stopped_early: whether patience ran out.
        interrupted: whether the learner stopped it.
        probes: what the probe of `fit` returned after each epoch, with a column `epoch`; None without a probe.
    """

    def __init__(self, rows: list[dict] | None = None):
        self.rows = rows or []
        self.stopped_early = False
        self.interrupted = False
        self.probed: list[pd.DataFrame] = []

    @property
    def frame(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(self.rows)

    @property
    def probes(self) -> "pd.DataFrame | None":
        import pandas as pd

        return pd.concat(self.probed, ignore_index=True) if self.probed else None

    @property
    def best_epoch(self) -> int:
        return self.best["epoch"] if self.rows else 0

    @property
    def best(self) -> dict:
        """The best epoch's row; there is none before the first epoch has ended."""
        ranked = [row for row in self.rows if row["validation_accuracy"] == row["validation_accuracy"]]
        if not ranked:
            return self.rows[-1]
        return max(ranked, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))

    def followed_by(self, later: "History") -> "History":
        """Both, the later one's epochs counted on from this one's; it ended as the later one did."""
        done = len(self.rows)
        joined = History(self.rows + [row | {"epoch": done + row["epoch"]} for row in later.rows])
        joined.probed = self.probed + [table.assign(epoch=done + table["epoch"]) for table in later.probed]
        joined.stopped_early, joined.interrupted = later.stopped_early, later.interrupted
        return joined

    def state_dict(self) -> dict[str, object]:
        """All that a checkpoint keeps of it."""
        probed = [table.to_dict("list") for table in self.probed]
        return {"rows": self.rows, "probed": probed, "stopped_early": self.stopped_early}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Become the history whose state this is."""
        self.rows, self.stopped_early = state["rows"], state["stopped_early"]
        if state["probed"]:
            import pandas as pd

            self.probed = [pd.DataFrame(table) for table in state["probed"]]

    def __repr__(self) -> str:
        ending = " (interrupted)" if self.interrupted else " (stopped early)" if self.stopped_early else ""
        if not self.rows:
            return f"History(no epoch{ending})"
        return (
            f"History({len(self.rows)} epochs{ending}; best epoch {self.best_epoch}: training accuracy "
            f"{self.best['train_accuracy']:.2%}, validation accuracy {self.best['validation_accuracy']:.2%})"
        )


def fit(
    model: nn.Module,
    data: ImageData,
    training: Training,
    *,
    loss: Callable[..., torch.Tensor] | None = None,
    teacher: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    probe: "Callable[[nn.Module], pd.DataFrame] | None" = None,
    on_epoch: Callable[[History], None] | None = None,
    on_step: Callable[[float, torch.Tensor], None] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train a model on a data set's training split, and leave the best epoch's weights in it.

    An interrupt of the kernel ends the training, not the program: the epochs so far and the best weights remain.
    The same seed on the same machine with the same number of threads gives the same history to the bit.

    Args:
        model: what to train, in place; moved to the data's device.
        data: with a validation split, the weights of the best epoch are loaded at the end.
        training: the settings.
        loss: of logits (B, classes) and labels (B,), and of what a teacher says; cross-entropy without it.
        teacher: what it says of a batch, from the images (B, C, H, W) as the model sees them and their places in the
            training split (B,); see labutils.distillation.
        probe: measures the model after each epoch; its tables end up in the history.
        on_epoch: called after each epoch with the history so far; may raise KeyboardInterrupt to stop.
        on_step: called after each step with the epochs so far, such as 1.25, and the step's loss; may raise likewise.
        checkpoint: a file that is written after each epoch. Where it is there already, the training goes on after the
            epoch it was written in, and ends as if it had never been stopped.
        progress: whether to show a progress bar.

    Returns:
        The history.

    Raises:
        SettingError: the model gives another number of classes than the data have, or has no stem to be whitened.
        CheckpointError: the checkpoint is damaged, or of another model, data set or training.
        Diverged: the loss became NaN or infinite.
    """
    check_classes(model, data)
    prepare(model, data.device)
    if training.whitening:
        whiten_stem(model, data.normalise(data.train.images[:WHITENING_IMAGES]))
    average = moving_average(model, training.averaging)
    judged = model if average is None else average.module  # what is validated, and whose best epoch is kept
    loss = loss or nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
    precision = autocast(model, data.device, training.precision)
    order = torch.Generator().manual_seed(training.seed)
    optimizer = make_optimizer(model, training)
    steps = -(-len(data.train) // training.batch_size)
    scheduler = make_scheduler(optimizer, training, steps)
    history = History()
    parts = {
        "model": model,
        "average": average,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "history": history,
    }
    about = {"model": shapes(model), "data set": repr(data), "training": asdict(training)}
    state = Checkpoint(checkpoint and Path(checkpoint), parts, order, data.device, about)

    bar = progress_bar(training.epochs * steps, unit="step", visible=progress)

    with bar, seeded(training.seed, data.device):
        best = state.resume() or copy.deepcopy(judged.state_dict())
        bar.update(len(history.rows) * steps)
        try:
            for epoch in range(len(history.rows) + 1, training.epochs + 1):
                if history.stopped_early:
                    break
                start = time.perf_counter()
                model.train()
                losses, outputs, targets = [], [], []
                for images, labels, places in numbered_batches(
                    data.train, data, training.batch_size, generator=order, augment=training.augment, epoch=epoch
                ):
                    taught = () if teacher is None else (teacher(images, places),)
                    with precision:
                        logits = model(images)
                        step_loss = loss(logits, labels, *taught)
                    step_loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if average is not None:
                        average.update_parameters(model)
                    lr = optimizer.param_groups[0]["lr"]
                    if training.scheduler in CYCLES:
                        scheduler.step()
                    # Kept, and summed up once an epoch: one operation then for hundreds here.
                    losses.append(step_loss.detach())
                    outputs.append(logits.detach())
                    targets.append(labels)
                    bar.update()
                    if on_step is not None:
                        on_step(epoch - 1 + len(losses) / steps, losses[-1])
                    if len(losses) % LOSS_CHECK_STEPS == 0 or len(losses) == steps:
                        check_losses(losses, epoch, history)

                row = {"epoch": epoch, "train_loss": torch.stack(losses).mean().item()}
                row["train_accuracy"] = accuracy(torch.cat(outputs), torch.cat(targets))
                row |= validate(judged, data, training.precision)
                row |= {"lr": lr, "seconds": time.perf_counter() - start}
                history.rows.append(row)
                bar.set_postfix_str(f"validation accuracy {row['validation_accuracy']:.2%}")

                if history.best_epoch == epoch:
                    best = copy.deepcopy(judged.state_dict())
                if probe is not None:
                    history.probed.append(probe(model).assign(epoch=epoch))
                if training.patience is not None and epoch - history.best_epoch >= training.patience:
                    history.stopped_early = True
                if training.scheduler == "cosine":
                    scheduler.step()
                elif training.scheduler == "plateau":
                    scheduler.step(row["train_loss"] if data.validation is None else row["validation_loss"])
                state.save(best)
                if on_epoch is not None:
                    on_epoch(history)
        except KeyboardInterrupt:
            history.interrupted = True
        finally:
            model.load_state_dict(best)
    return history


def prepare(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, its convolutions laid out as they are fastest: a pixel's channels side by side."""
    keep_freed_memory()
    model.to(device, memory_format=torch.channels_last if is_convolutional(model) else torch.preserve_format)


def is_convolutional(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def check_classes(model: nn.Module, data: ImageData) -> None:
    """Raise SettingError where a model's head does not give one number for each of a data set's classes."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear) and head.out_features != len(data.classes):
        raise SettingError("classes", head.out_features, f"{len(data.classes)}, which {data.title} has")


def check_losses(losses: list[torch.Tensor], epoch: int, history: History) -> None:
    """Raise Diverged if one of an epoch's latest losses is not finite."""
    first = (len(losses) - 1) // LOSS_CHECK_STEPS * LOSS_CHECK_STEPS
    latest = torch.stack(losses[first:])
    wrong = (~torch.isfinite(latest)).nonzero()
    if len(wrong):
        index = wrong[0].item()
        raise Diverged(epoch, first + index + 1, latest[index].item(), history)


def evaluate(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto", views: int = 1
) -> dict[str, float]:
    """Measure a model on a split, in eval mode; the model is left in the mode it was in.

    Args:
        model: gives logits (N, classes).
        split: one of the data's splits, or its name.
        data: the data set, for its normalisation.
        precision: as in Training.
        views: over how many views of an image its logits are averaged: 1 (as it is), 2 (with its mirror image) or 6
            (with both moved by a pixel, to either of two corners, at half the weight; Jordan 2024).

    Returns:
        loss (cross-entropy, in nats), top1 and top5 (fractions from 0 to 1; top5 of fewer than five classes is 1).

    Raises:
        SettingError: another number of views.
    """
    logits, labels = predict(model, split, data, precision=precision, views=views)
    return {"loss": F.cross_entropy(logits, labels).item(), **accuracies(logits, labels)}


def predict(
    model: nn.Module, split: Split | str, data: ImageData, *, precision: str = "auto", views: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) float32 of a split's images in their own order, and their labels (N,); as in `evaluate`."""
    split = data.split(split)
    return outputs(model, model, split, data, precision=precision, views=views), split.labels


@torch.no_grad()
def outputs(
    model: nn.Module,
    function: Callable[[torch.Tensor], torch.Tensor],
    split: Split,
    data: ImageData,
    *,
    precision: str,
    views: int = 1,
) -> torch.Tensor:
    """What a function of a model, such as its features, gives for a split's images; as in `evaluate`."""
    check_choice("views", views, VIEWS)
    prepare(model, data.device)
    was_training = model.training
    model.eval()
    try:
        with autocast(model, data.device, precision):
            found = []
            for images, _ in batches(split, data, EVALUATION_BATCH):
                found.append(sum(weight * function(view).float() for weight, view in weighted_views(images, views)))
    finally:
        model.train(was_training)
    return torch.cat(found)


def weighted_views(images: torch.Tensor, views: int) -> list[tuple[float, torch.Tensor]]:
    """So many views of images (B, C, H, W), as in `evaluate`, and what each counts for; the weights add up to 1."""
    shown = [(1.0, images)]
    if views == 6:
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shown = [(0.5, images), (0.25, padded[..., :-2, :-2]), (0.25, padded[..., 2:, 2:])]
    if views == 1:
        return shown
    return [(weight / 2, side) for weight, view in shown for side in (view, view.flip(-1))]


def validate(model: nn.Module, data: ImageData, precision: str) -> dict[str, float]:
    """An epoch's validation columns of the history."""
    if data.validation is None:
        return {"validation_loss": float("nan"), "validation_accuracy": float("nan")}
    measured = evaluate(model, data.validation, data, precision=precision)
    return {"validation_loss": measured["loss"], "validation_accuracy": measured["top1"]}


def accuracies(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """top1 and top5 of logits (N, classes), fractions from 0 to 1; top5 of fewer than five classes is 1."""
    highest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return {
        "top1": accuracy(logits, labels),
        "top5": (highest == labels[:, None]).any(dim=1).double().mean().item(),
    }


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows of logits (N, classes) whose highest is the label's, from 0 to 1."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def moving_average(model: nn.Module, averaging: float) -> AveragedModel | None:
    """What keeps the exponential moving average of a model's weights and buffers; None where none is wanted."""
    if not averaging:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(averaging), use_buffers=True)


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of a training, where there is one in its fused form: one call a step for all parameters."""
    if training.optimizer == "muon":
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        head = set(model.head.parameters())
        hidden = [parameter for parameter in parameters if parameter.ndim > 1 and parameter not in head]
        others = [parameter for parameter in parameters if parameter.ndim < 2 or parameter in head]
        return Muon(hidden, others, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)
    groups = parameter_groups(model, training)
    settings = {"lr": training.lr, "weight_decay": training.weight_decay, "fused": True}
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=training.momentum, **settings)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return optimizer(groups, **settings)


def parameter_groups(model: nn.Module, training: Training) -> list[dict]:
    """A model's parameters that learn, with their learning rates: one group, or one for each part from the head on."""
    if training.stage_lr != 1 and not is_convolutional(model):
        raise SettingError("stage_lr", training.stage_lr, f"1 for {model}, which has no stages")
    parts = [model] if training.stage_lr == 1 else [model.head, *reversed([model.stem, *model.stages])]
    return [
        {"params": learning, "lr": training.lr * training.stage_lr**distance}
        for distance, part in enumerate(parts)
        if (learning := [parameter for parameter in part.parameters() if parameter.requires_grad])
    ]


def make_scheduler(
    optimizer: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The scheduler of a training of so many steps an epoch."""
    schedulers = torch.optim.lr_scheduler
    match training.scheduler:
        case "cosine":
            return schedulers.CosineAnnealingLR(optimizer, T_max=training.epochs)
        case "plateau":
            return schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        case "onecycle" | "triangular":
            return schedulers.OneCycleLR(
                optimizer,
                [group["lr"] for group in optimizer.param_groups],
                total_steps=training.epochs * steps,
                pct_start=WARM_UP,
                anneal_strategy=CYCLES[training.scheduler],
                cycle_momentum=False,  # it stays what it was set to
            )


def autocast(model: nn.Module, device: torch.device, precision: str) -> torch.autocast | nullcontext:
    """The context in which a model's forward pass runs in a given precision.

    auto chooses bf16 only where it was measured to pay: for convolutions, on hardware that multiplies bf16
    natively. The course's MLPs are too small: casting their weights each step costs more than it saves.
    """
    check_choice("precision", precision, PRECISIONS)
    native = has_native_bf16(device)
    if precision == "bf16" and device.type == "mps":
        raise SettingError("precision", precision, "auto or fp32, on an Apple GPU")
    if precision == "bf16" or (precision == "auto" and native and is_convolutional(model)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def has_native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return False


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random state inside, and put it back as it was afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def progress_bar(total: int, *, unit: str, visible: bool, bar_format: str | None = None) -> "tqdm":
    """A bar of so many units of work; $TQDM_DISABLE hides it, also in notebooks, where tqdm itself does not heed it."""
    from tqdm.auto import tqdm

    hidden = not visible or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, unit=unit, leave=False, disable=hidden, bar_format=bar_format)
