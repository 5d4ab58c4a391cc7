"""fit: the training loop, short enough to read on one screen.

What is not in every textbook's loop (progress, checkpoints, schedules, early stopping) hangs on as callbacks.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from labutils.data.loading import ImageData
from labutils.errors import SettingError
from labutils.training.callbacks import (
    Callback,
    DivergenceCheck,
    EarlyStopping,
    FirstWeights,
    ProgressBar,
    Schedule,
    State,
    StopWhenAsked,
    WeightAveraging,
    Whitening,
)
from labutils.training.checkpoints import Checkpoint
from labutils.training.evaluation import accuracy, check_classes, check_inputs, evaluate
from labutils.training.history import History, Interrupted
from labutils.training.numerics import autocast, memory_errors, prepare, seeded
from labutils.training.settings import Training
from labutils.training.stop_button import Stopped

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits (B, classes) and labels (B,)


def fit(
    model: nn.Module,
    data: ImageData,
    training: Training,
    *,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train a model on a data set's training split, and leave the best epoch's weights in it.

    The same seed on the same machine with the same number of threads gives the same history to the bit.

    Args:
        model: what to train, in place; moved to the data's device.
        data: with a validation split, the weights of the best epoch are loaded at the end.
        training: the settings.
        loss: of logits (B, classes) and labels (B,); cross-entropy without it.
        callbacks: what else is to act during the training (see labutils.training.callbacks).
        checkpoint: a file that is written after each epoch. Where it is there already, the training goes on after the
            epoch it was written in, and ends as if it had never been stopped. The loss and the callbacks must be the
            same; all else is checked.
        progress: whether to show a progress bar.

    Returns:
        The history; also after a stop that `stoppable` allowed, with `interrupted` set.

    Raises:
        SettingError: a model that does not fit the data, no stem to be whitened, patience without a validation split,
            or label smoothing beside a loss.
        CheckpointError: the checkpoint is damaged, or of another model, data set or training.
        Diverged: the loss became NaN or infinite.
        OutOfMemory: the model and a batch do not fit into memory; the message says what to lower.
        Interrupted: a KeyboardInterrupt that carries the history so far; the best weights are in the model.
    """
    check_fit(model, data, training, loss)
    prepare(model, data.device)
    loss = loss or nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
    precision = autocast(model, data.device, training.precision)
    state = State(model, data, training, in_order(training, callbacks, checkpoint, progress))
    optimizer, history, notify = state.optimizer, state.history, state.notify
    optimizer.zero_grad()  # of whatever was computed with the model before
    tried = memory_errors(model, min(training.batch_size, len(data.train)), lower="batch_size")
    with tried, seeded(training.seed, data.device), best_weights_at_the_end(state):
        notify("before_training")
        while len(history.rows) < training.epochs and not history.stopped_early:
            start, done = time.perf_counter(), []
            model.train()
            for images, labels, indices in state.batches():
                notify("before_step", images=images, indices=indices, step=len(done))
                with precision:
                    logits = model(images)
                    batch_loss = loss(logits, labels)
                batch_loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                done.append((logits.detach(), labels, batch_loss.detach()))
                notify("after_step", loss=batch_loss.detach(), step=len(done))
            row = {"epoch": len(history.rows) + 1, **training_figures(done), **validation_figures(state)}
            row |= {"lr": optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start}
            history.rows.append(row)
            if history.best_epoch == row["epoch"]:
                state.keep_best()
            notify("after_epoch", step=0)
    return history


@contextmanager
def best_weights_at_the_end(state: State) -> Iterator[None]:
    """However the training inside ends, leave the best epoch's weights in the model; the first ones before any epoch.

    A stop that was asked for is an end like any other; an interrupt goes on, with the history so far.
    """
    try:
        yield
    except Stopped:
        state.history.interrupted = True
    except KeyboardInterrupt as interrupt:
        state.history.interrupted = True
        raise Interrupted(state.history) from interrupt
    finally:
        if state.best is not None:
            state.model.load_state_dict(state.best)
        state.optimizer.zero_grad()  # of a step that was not finished, which the next training would add to its own
        state.notify("after_training")


def in_order(
    training: Training, given: Sequence[Callback], checkpoint: str | Path | None, progress: bool
) -> list[Callback]:
    """All callbacks of a training, in the order in which they act."""
    return [
        *[Whitening()] * training.whitening,
        *([WeightAveraging(training.averaging)] if training.averaging else []),
        DivergenceCheck(),
        *([Schedule()] if training.scheduler else []),
        *([EarlyStopping(training.patience)] if training.patience else []),
        *given,
        *([Checkpoint(Path(checkpoint))] if checkpoint else []),  # holds what those before it have changed
        FirstWeights(),
        *[ProgressBar()] * progress,
        StopWhenAsked(),
    ]


def training_figures(done: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """An epoch's training columns of the history, from the logits, labels and loss of each of its steps.

    Both are means over the images, of what the model answered as it was being trained.
    """
    logits, labels, losses = zip(*done, strict=True)
    sizes = torch.tensor([len(batch) for batch in labels], device=losses[0].device)
    mean_loss = (torch.stack(losses).float() * sizes).sum().item() / sizes.sum().item()
    return {"train_loss": mean_loss, "train_accuracy": accuracy(torch.cat(logits), torch.cat(labels))}


def validation_figures(state: State) -> dict[str, float]:
    """An epoch's validation columns of the history; NaN without a validation split."""
    if state.data.validation is None:
        return {"validation_loss": float("nan"), "validation_accuracy": float("nan")}
    measured = evaluate(state.validated, "validation", state.data, precision=state.training.precision)
    return {"validation_loss": measured["loss"], "validation_accuracy": measured["top1"]}


def check_fit(model: nn.Module, data: ImageData, training: Training, loss: Loss | None) -> None:
    """Raise SettingError where a model can't be trained on a data set as a training says."""
    check_inputs(model, data)
    check_classes(model, data)
    if not isinstance(training, Training):
        raise SettingError("training", training, "settings, such as lab.Training(epochs=3)")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingError("model", model, "a network with weights that learn")
    if loss is not None and training.label_smoothing:
        raise SettingError("label_smoothing", training.label_smoothing, "0 beside a loss of one's own")
    if training.patience is not None and data.validation is None:
        raise SettingError("patience", training.patience, "None without a validation split to judge epochs by")
    normalised = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    if normalised and 1 in (training.batch_size, len(data.train) % training.batch_size):
        raise SettingError(
            "batch_size",
            training.batch_size,
            f"a number of images with which no batch of the {len(data.train):,} holds one alone: batch normalization "
            "has no statistics of one",
        )
