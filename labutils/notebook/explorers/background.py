"""Training in the background: one training a kernel, and whoever shows it can change while it goes on."""

import html
import threading
from typing import ClassVar, Protocol

from labutils.experiments.running import Busy, run
from labutils.experiments.settings import Experiment
from labutils.experiments.store import Run
from labutils.notebook.explorers.cores import use_one_core
from labutils.notebook.explorers.growth import Growth
from labutils.training.stopping import Stopped, stoppable

BUSY_POLL_S = 0.5  # how often a run is looked for that another process is training


class Watcher(Protocol):
    """Who shows a training; called in the training's thread, one call at a time."""

    def tell(self, job: "Job", message: str) -> None:
        """There is something to say, as HTML."""

    def show_progress(self, job: "Job", words: str, share: float) -> None:
        """So far is the training: in words, and the share that is done, from 0 to 1."""

    def grow(self, job: "Job", growth: Growth) -> None:
        """There is a new piece of the curve."""

    def finish(self, job: "Job", outcome: "Run | Exception") -> None:
        """The training has ended, with a run or with an error."""

    def release(self) -> None:
        """Another watcher shows the training from now on."""


class Job:
    """An experiment in training, in a thread of its own.

    Args:
        experiment: what is trained.
        label: what it is called.
        watcher: who shows it at first.

    Attributes:
        watcher: who shows it now; to be changed with the lock held.
    """

    current: ClassVar["Job | None"] = None

    def __init__(self, experiment: Experiment, label: str, watcher: Watcher):
        self.experiment, self.label, self.watcher = experiment, label, watcher
        self.growth = Growth(experiment.training.epochs, self.grow)
        self.stopping = threading.Event()
        self.lock = threading.RLock()  # held while a watcher is called, and while it changes
        self.thread = threading.Thread(target=self.work, daemon=True)

    @classmethod
    def running(cls) -> "Job | None":
        """The job in training, if there is one."""
        return cls.current if cls.current is not None and cls.current.thread.is_alive() else None

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
                        self.watcher.tell(self, message)
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
