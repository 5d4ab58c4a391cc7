"""What can act at the named moments of a training, beside the loop itself: objects of a few lines each.

Among them are early stopping, the learning rate's schedule, and the averaging of weights. The order in which they act
is written in `labutils.training.loop.in_order`; checkpoints are in `labutils.training.checkpoints`.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from labutils.data.loading import ImageData, indexed_batches
from labutils.models.shallow import WHITENING_IMAGES, whiten_stem
from labutils.training.history import Diverged, History
from labutils.training.optimizers import CYCLES, make_optimizer, make_scheduler
from labutils.training.settings import Training
from labutils.training.stop_button import check_stop

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

LOSS_CHECK_STEPS = 100  # how often the losses so far are looked at; each look waits for a GPU


@dataclass
class State:
    """Where a training stands, as its callbacks see it.

    Attributes:
        model, data, training, optimizer: what `fit` works with.
        order: the generator that orders and augments the batches.
        history: the whole epochs so far.
        callbacks: all that act, in their order.
        validated: the network that is validated and whose best epoch is kept: the model, or an average of its weights.
        earlier: the epochs of earlier trainings that this one continues, as in progressive unfreezing.
        best: the weights of the best epoch so far.
        steps: of an epoch.
        step: how many of them this epoch has had.
        images, indices: of the batch (B, C, H, W) and its images' places in the training split (B,).
        loss: of the last step, a scalar on the device.
    """

    model: nn.Module
    data: ImageData
    training: Training
    callbacks: "Sequence[Callback]"
    earlier: History = field(default_factory=History)
    step: int = 0
    best: dict[str, torch.Tensor] | None = None
    images: torch.Tensor | None = None
    indices: torch.Tensor | None = None
    loss: torch.Tensor | None = None

    def __post_init__(self):
        self.optimizer = make_optimizer(self.model, self.training)
        self.order = torch.Generator().manual_seed(self.training.seed)
        self.history = History()
        self.validated = self.model
        self.steps = -(-len(self.data.train) // self.training.batch_size)

    def notify(self, moment: str, **news: object) -> None:
        """Let each callback act at a moment, with what is new."""
        vars(self).update(news)
        for callback in self.callbacks:
            getattr(callback, moment)(self)

    def keep_best(self) -> None:
        """Keep the weights as they are now as the best so far."""
        self.best = copy.deepcopy(self.validated.state_dict())

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The next epoch's batches: images, labels and the images' indices in the training split."""
        return indexed_batches(
            self.data.train,
            self.data,
            self.training.batch_size,
            generator=self.order,
            augment=self.training.augment,
            epoch=len(self.history.rows) + 1,
        )

    @property
    def epochs(self) -> float:
        """How many epochs there have been, earlier trainings included, such as 1.25."""
        return len(self.earlier.rows) + len(self.history.rows) + self.step / self.steps

    @property
    def whole_history(self) -> History:
        """All whole epochs, earlier trainings included."""
        return self.earlier.followed_by(self.history) if self.earlier.rows else self.history


class Callback:
    """Acts at the moments it overrides. One with `state_dict` and `load_state_dict` is kept in checkpoints."""

    def before_training(self, state: State) -> None:
        """Before the first epoch, or the first one after resuming."""

    def before_step(self, state: State) -> None:
        """A batch is there: state.images and state.indices."""

    def after_step(self, state: State) -> None:
        """The parameters have changed: state.loss."""

    def after_epoch(self, state: State) -> None:
        """The epoch's row is in state.history."""

    def after_training(self, state: State) -> None:
        """At the end, after an interrupt or an error too."""


class Continues(Callback):
    """Says that a training continues earlier ones."""

    def __init__(self, earlier: History):
        self.earlier = earlier

    def before_training(self, state: State) -> None:
        state.earlier = self.earlier


class StopWhenAsked(Callback):
    """Ends the training between two steps when its thread's work has been asked to stop."""

    def after_step(self, state: State) -> None:
        check_stop()


class FirstWeights(Callback):
    """Keeps the weights before the first step, which are the best so far."""

    def before_training(self, state: State) -> None:
        if state.best is None:
            state.keep_best()


class DivergenceCheck(Callback):
    """Ends the training when its loss has become NaN or infinite; looks every LOSS_CHECK_STEPS steps."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []

    def after_step(self, state: State) -> None:
        self.losses.append(state.loss)
        if state.step % LOSS_CHECK_STEPS and state.step != state.steps:
            return
        losses = torch.stack(self.losses).tolist()
        self.losses.clear()
        for step, loss in enumerate(losses, start=state.step - len(losses) + 1):
            if not -float("inf") < loss < float("inf"):
                raise Diverged(len(state.history.rows) + 1, step, loss, state.history)


class Whitening(Callback):
    """Whitens a CNN's first filters before the first step."""

    def before_training(self, state: State) -> None:
        whiten_stem(state.model, state.data.normalise(state.data.train.images[:WHITENING_IMAGES]))


class WeightAveraging(Callback):
    """Validates and keeps an exponential moving average (EMA) of the weights (after Polyak & Juditsky 1992).

    Args:
        kept: the EMA's decay, the share of the average that each step keeps, above 0 to below 1.
    """

    def __init__(self, kept: float):
        self.move = get_ema_multi_avg_fn(kept)

    def before_training(self, state: State) -> None:
        self.average = AveragedModel(state.model)
        state.validated = self.average.module

    @torch.no_grad()
    def after_step(self, state: State) -> None:
        # Not AveragedModel.update_parameters: it sends its count to the GPU at each step, and waits for that.
        average, latest = ([*net.parameters(), *net.buffers()] for net in (self.average.module, state.model))
        if self.average.n_averaged == 0:
            for kept, tensor in zip(average, latest, strict=True):
                kept.copy_(tensor)
        else:
            for floating in (True, False):  # counts are averaged apart
                pairs = [pair for pair in zip(average, latest, strict=True) if pair[0].is_floating_point() == floating]
                if pairs:
                    self.move(*zip(*pairs, strict=True), None)
        self.average.n_averaged += 1

    def state_dict(self) -> dict:
        return self.average.state_dict()

    def load_state_dict(self, kept: dict) -> None:
        self.average.load_state_dict(kept)


class Schedule(Callback):
    """Changes the learning rate as Training.scheduler says: step by step in one cycle, else epoch by epoch."""

    def before_training(self, state: State) -> None:
        self.scheduler = make_scheduler(state.optimizer, state.training, state.steps)

    def before_step(self, state: State) -> None:
        if state.training.scheduler in CYCLES and (state.step or state.history.rows):  # the first rate is set already
            self.scheduler.step()

    def after_epoch(self, state: State) -> None:
        if state.training.scheduler == "cosine":
            self.scheduler.step()
        elif state.training.scheduler == "plateau":
            watched = "train_loss" if state.data.validation is None else "validation_loss"
            self.scheduler.step(state.history.rows[-1][watched])

    def state_dict(self) -> dict:
        return self.scheduler.state_dict()

    def load_state_dict(self, kept: dict) -> None:
        self.scheduler.load_state_dict(kept)


class EarlyStopping(Callback):
    """Ends the training after so many epochs without a new best one, as `History.best_epoch` judges."""

    def __init__(self, patience: int):
        self.patience = patience

    def after_epoch(self, state: State) -> None:
        state.history.stopped_early = len(state.history.rows) - state.history.best_epoch >= self.patience


class Probe(Callback):
    """Measures the model after each epoch; the tables end up in the history.

    Args:
        measure: gives a table for a model, such as its gradient norms.
    """

    def __init__(self, measure: "Callable[[nn.Module], pd.DataFrame]"):
        self.measure = measure

    def after_epoch(self, state: State) -> None:
        state.history.probed.append(self.measure(state.model).assign(epoch=len(state.history.rows)))


class ProgressBar(Callback):
    """Shows how many steps there have been, and the accuracy of the last epoch."""

    def before_training(self, state: State) -> None:
        self.bar = progress_bar(state.training.epochs * state.steps, unit="step", visible=True)
        self.bar.update(len(state.history.rows) * state.steps)

    def after_step(self, state: State) -> None:
        self.bar.update()

    def after_epoch(self, state: State) -> None:
        part = "train" if state.data.validation is None else "validation"
        name = {"train": "training", "validation": "validation"}[part]
        self.bar.set_postfix_str(f"{name} accuracy {state.history.rows[-1][f'{part}_accuracy']:.2%}")

    def after_training(self, state: State) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def progress_bar(total: int, *, unit: str, visible: bool, bar_format: str | None = None) -> "tqdm":
    """A bar of so many units of work; $TQDM_DISABLE hides it, also in notebooks, where tqdm itself does not heed it."""
    from tqdm.auto import tqdm

    hidden = not visible or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, unit=unit, leave=False, disable=hidden, bar_format=bar_format)
