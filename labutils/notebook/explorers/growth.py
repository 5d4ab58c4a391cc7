"""How far a training is, for an explorer that shows it as it goes."""

import math
import time
from collections.abc import Callable

import pandas as pd
import torch

from labutils.training.callbacks import Callback, State

REDRAW_S = 0.5  # between two reports, at least
HISTORY_COLUMNS = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]


class Growth(Callback):
    """Reports how far a training is: after its first step, and then so rarely that reporting costs little.

    Args:
        total: the epochs there will be.
        report: called with this object.

    Attributes:
        epochs: how many there have been, such as 1.25.
        frame: a row an epoch as in History.frame; after those, for each report since the last whole epoch, a row of
            epoch and train_loss.
    """

    def __init__(self, total: int, report: "Callable[[Growth], None]"):
        self.total, self.report = total, report
        self.epochs = 0.0
        self.rows: list[dict] = []
        self.points: list[dict] = []
        self.losses: list[torch.Tensor] = []
        self.first: tuple[float, float] | None = None  # when the first step ended, and the epochs then
        self.due = 0.0

    def after_step(self, state: State) -> None:
        now = time.perf_counter()
        self.epochs = state.epochs
        self.first = self.first or (now, self.epochs)
        self.losses.append(state.loss)
        if now >= self.due:
            self.rows = list(state.whole_history.rows)  # of a training that was resumed, from its first step on
            self.points.append({"epoch": self.epochs, "train_loss": torch.stack(self.losses).mean().item()})
            self.losses.clear()
            self.report(self)
            self.due = time.perf_counter() + max(REDRAW_S, 4 * (time.perf_counter() - now))

    def after_epoch(self, state: State) -> None:
        self.epochs, self.rows = state.epochs, list(state.whole_history.rows)
        self.points.clear()
        self.losses.clear()
        self.report(self)

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows + self.points).reindex(columns=HISTORY_COLUMNS)

    @property
    def time_left(self) -> str:
        """In words, by the pace since the first step."""
        began, before = self.first or (0.0, 0.0)
        epoch = f"epoch {min(math.floor(self.epochs) + 1, self.total)} of {self.total}"
        if self.epochs <= before:
            return epoch
        left = (time.perf_counter() - began) / (self.epochs - before) * (self.total - self.epochs)
        return f"{epoch}, {f'{left:.0f} s' if left < 100 else f'{left / 60:.0f} min'} left"
