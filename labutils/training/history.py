"""What happened in a training, epoch by epoch, and how it can end before its last one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class History:
    """What happened in each epoch.

    Attributes:
        frame: a row an epoch: epoch, train_loss, train_accuracy (both running, over the epoch),
            validation_loss, validation_accuracy (NaN without a validation split), lr (of the optimizer's first group
            of parameters: of Muon the hidden weights', else the head's where it has a rate of its own), seconds.
        best_epoch: the epoch with the highest validation accuracy (of equals the one with the lowest validation
            loss); without a validation split the last one. 0 before the first has ended.
        stopped_early: whether patience ran out.
        interrupted: whether it was stopped before its end, by an interrupt or a button.
        probes: what a Probe measured after each epoch, with a column `epoch`; None without a probe.
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


class Diverged(ArithmeticError):
    """The training loss became NaN or infinite.

    Attributes:
        epoch, step: where it did, both counted from 1.
        loss: what it became.
        history: the epochs before.
    """

    def __init__(self, epoch: int, step: int, loss: float, history: "History"):
        super().__init__(
            f"the training loss became {loss} in epoch {epoch}, step {step}. Try a lower learning rate, "
            "normalization, another initialisation, or precision='fp32'"
        )
        self.epoch, self.step, self.loss, self.history = epoch, step, loss, history


class Interrupted(KeyboardInterrupt):
    """A training was interrupted (Ctrl-C, or Jupyter's stop button).

    The model holds the best weights so far, and the checkpoint the last whole epoch.

    Attributes:
        history: the epochs so far.
    """

    def __init__(self, history: History):
        super().__init__(f"training interrupted after {len(history.rows)} whole epochs")
        self.history = history
