"""Training in the background: one training a kernel, and whoever shows it can change while it goes on."""

import html
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import torch

from labutils.experiments.running import Busy, run
from labutils.experiments.settings import Experiment
from labutils.experiments.store import Run
from labutils.training.callbacks import Callback, State
from labutils.training.stop_button import Stopped, stoppable

if TYPE_CHECKING:
    from labutils.notebook.explorers.training import TrainingExplorer

BUSY_POLL_S = 0.5  # how often a run is looked for that another process is training
REDRAW_S = 0.5  # between two reports, at least
HISTORY_COLUMNS = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
CHANGING = threading.Lock()  # held while the number of cores that new threads get is another


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
        self.due = time.perf_counter() + REDRAW_S  # the loss of a step or two would be a point far from the curve

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


class Job:
    """An experiment in training, in a thread of its own.

    Args:
        experiment: what is trained.
        label: what it is called.
        watcher: the explorer that shows it at first; it is called in the training's thread, one call at a time.

    Attributes:
        watcher: the explorer that shows it now; to be changed with the lock held.
    """

    current: ClassVar["Job | None"] = None

    def __init__(self, experiment: Experiment, label: str, watcher: "TrainingExplorer"):
        self.experiment, self.label, self.watcher = experiment, label, watcher
        self.growth = Growth(experiment.training.epochs, self.grow)
        self.stopping = threading.Event()
        self.lock = threading.RLock()  # held while a watcher is called, and while it changes
        self.thread = threading.Thread(target=self.work, daemon=True)

    @classmethod
    def running(cls) -> "Job | None":
        """The job in training, if there is one."""
        job = cls.current  # read once: a thread that ends sets it to None
        return job if job is not None and job.thread.is_alive() else None

    def start(self) -> None:
        """Begin to train; only where no other job is running."""
        Job.current = self
        self.thread.start()

    def work(self) -> None:
        """The thread's work."""
        try:
            if self.experiment.model["kind"] == "mlp":
                # Outside the main thread OpenMP wakes its threads anew for each operation. For as small ones as an
                # MLP's two are five times slower than one; for those of a CNN they are faster.
                use_one_core()
            self.show_progress("getting ready", 0)
            with stoppable(self.stopping, self.show_phase):
                outcome = self.run_or_wait()
        except Exception as error:
            outcome = error
        with self.lock:
            Job.current = None
            self.watcher.finish(self, outcome)

    def run_or_wait(self) -> Run:
        """Run the experiment; where another process is training it, say so, and wait until its run is there.

        Raises:
            Stopped: Stop was pressed while waiting, or while something else than epochs was computed.
        """
        said = None
        while True:
            try:
                return run(self.experiment, progress=False, callbacks=[self.growth], wait=False)
            except Busy as busy:
                if str(busy) != said:  # said once, so that it does not hide what a move has to say
                    said = str(busy)
                    with self.lock:
                        message = f"{html.escape(said)}. Its run is shown when it is there; Stop ends the wait."
                        self.watcher.status = message
                if self.stopping.wait(BUSY_POLL_S):
                    raise Stopped from busy

    def grow(self, growth: Growth) -> None:
        """Show how far the training is; once it is to stop, that would only hold it up."""
        if self.stopping.is_set():
            return
        with self.lock:
            self.show_progress(growth.time_left, growth.epochs / growth.total)
            self.watcher.grow(self, growth)

    def show_phase(self, name: str, done: float) -> None:
        self.show_progress(f"{name} {done:.0%}", done)

    def show_progress(self, words: str, share: float) -> None:
        with self.lock:
            self.watcher.show_progress(self, words, share)


def use_one_core() -> None:
    """Let this thread compute on one core; all other threads, those that start later among them, keep theirs.

    torch.set_num_threads sets two numbers: that of the thread which calls it, and that with which later threads start.
    So another new thread notes the second one first, and puts it back.
    """
    torch.get_num_threads()  # a thread's first call gives it the common number, and must not come later
    with CHANGING, ThreadPoolExecutor(1) as other:
        common = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(1)
        other.submit(torch.set_num_threads, common).result()
