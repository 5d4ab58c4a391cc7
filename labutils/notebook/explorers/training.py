"""Choose settings, train them in the background, and watch the curves grow."""

import math
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from labutils.experiments.running import kept_run
from labutils.experiments.settings import Experiment
from labutils.experiments.store import Run
from labutils.notebook import plots
from labutils.notebook.explorers.background import Growth, Job
from labutils.notebook.explorers.base import Explorer, remember
from labutils.training.stop_button import Stopped

INVITATION = "Choose, predict, and train."


class TrainingExplorer(Explorer):
    """Choose settings, press Train, and watch the curves grow beside those of earlier choices.

    Training runs in a thread of its own, so the notebook goes on working; Stop ends it between two batches, and keeps
    the epochs so far. What is in the bank or in the store of runs is drawn as soon as it is chosen, and a run that was
    stopped goes on where it was. A run that another process is training is waited for. A kernel trains one thing at a
    time: an explorer that is made meanwhile takes over what is in training.

    Args:
        experiment: where the settings start from.
        choices: as of Explorer.
        earlier: finished runs to compare with from the start.
        banked: results, a row an epoch of each run; of a choice that is there, the mean over the seeds is drawn.

    Attributes:
        runs: what was trained, by the label it has in the figure.
        job: what this explorer shows in training, if it does.
    """

    ACTIONS = MappingProxyType({"train": "Train this now", "stop": "Stop", "reset": "Reset"})

    def __init__(
        self,
        experiment: Experiment,
        choices: Mapping[str, Sequence],
        *,
        earlier: Sequence[Run] = (),
        banked: pd.DataFrame | None = None,
    ):
        # Gradients are shown nowhere here, and to measure those of a CNN would hold up a Stop by seconds.
        self.experiment, self.banked = experiment.override(**{"measurement.gradients": False}), banked
        self.curves: dict[str, tuple[pd.DataFrame, str]] = {}  # finished ones, and what they rest on
        self.runs: dict[str, Run] = {}
        self.growing: dict[str, pd.DataFrame] = {}  # the curve of what is in training
        self.job: Job | None = None
        self.drawing = threading.RLock()  # held while what is drawn changes, in whatever thread
        for name, values in choices.items():
            for value in values:
                experiment.override(**{name: value})  # one that can't be is found here, not when Train is pressed
        for trained in earlier:
            settings = trained.experiment.bare_settings()
            self.add_run(self.label({name: settings.get(name) for name in choices}), trained)
        super().__init__(choices, experiment.bare_settings())
        self.enable()
        running = Job.running()
        if running is not None:
            self.take_over(running)

    def answer(self) -> None:
        """Draw the choice where it is in the bank or in the store."""
        choice, label = self.choice(), self.label(self.choice())
        rows = self.in_bank(choice)
        trained = self.find_run(choice) if rows.empty else None
        with self.drawing:
            if not rows.empty:
                self.show_banked(f"{label} (bank, n = {rows['seed'].nunique()})", rows)
            elif trained is not None:
                self.show_run(label, trained)
            elif self.job is not None and self.job.label == label:
                self.status = f"<b>{label}</b> is in training."
            else:
                self.status = f"<b>{label}</b> has not been trained so far. Predict, then train it."
                if self.picture["png"]:
                    return
            if not self.growing:  # which is redrawn anyway: a Stop need not wait for every move before it
                self.draw()

    def in_bank(self, choice: Mapping[str, object]) -> pd.DataFrame:
        """The rows of a choice in the bank."""
        return pd.DataFrame() if self.banked is None else plots.matching(self.banked, choice)

    def find_run(self, choice: Mapping[str, object]) -> Run | None:
        """A choice's run: the finished one if there is one, else what was trained here until it was stopped."""
        here = self.runs.get(self.label(choice))
        if here is not None and here.finished:
            return here
        return kept_run(self.experiment.override(**choice)) or here

    def show_banked(self, label: str, rows: pd.DataFrame) -> None:
        """Add a choice from the bank to what is drawn: the mean over its runs."""
        means = rows.groupby("epoch", as_index=False).mean(numeric_only=True)
        remember(self.curves, label, (means, plots.origin(rows)))
        final = rows[rows["epoch"] == rows["epoch"].max()]
        accuracy, minutes = final["validation_accuracy"], rows.groupby("run")["seconds"].sum().mean() / 60
        self.status = (
            f"<b>{label}</b>: validation accuracy {in_percent(accuracy)} after the last epoch; "
            f"a run took {minutes:.1f} minutes"
        )

    def show_run(self, label: str, trained: Run) -> None:
        """Add a run to what is drawn."""
        epochs, metrics = len(trained.history.rows), trained.metrics
        stopped = "" if trained.finished else ", stopped early by you"
        if not epochs:
            self.status = f"<b>{label}</b>{stopped}, before its first epoch ended"
            return
        self.add_run(label, trained)
        accuracy = metrics.get("validation_top1", math.nan)
        part = "validation" if not math.isnan(accuracy) else "training"  # without a validation split
        if part == "training":
            accuracy = trained.history.rows[-1]["train_accuracy"]
        self.status = (
            f"<b>{label}</b>{stopped}: {part} accuracy {accuracy:.2%} "
            f"after {epochs} epochs, {metrics['parameters']:,} parameters"
        )

    def add_run(self, label: str, trained: Run) -> None:
        """Keep a run, and its curve as the newest."""
        self.runs[label] = trained
        remember(self.curves, label, (trained.history.frame, "{data} ({source})".format(**trained.metrics)))

    def as_code(self) -> str:
        return (
            f"experiment = {self.experiment.override(**self.choice()).to_code()}\n"
            "run = lab.run(experiment)\n"
            f"lab.plots.history({{{self.label(self.choice())!r}: run.history.frame}}, caption=run.caption)"
        )

    def enable(self) -> None:
        """Enable the buttons that can be pressed."""
        idle = ["train", "reset"] if self.can_train() else ["reset"]
        self.enabled = idle if self.job is None else ["stop"]

    def can_train(self) -> bool:
        """Whether the choice is one that can be trained."""
        return True

    def train(self) -> Job:
        """Train the choice in the background; while something is in training, say so and return that."""
        running = Job.running()
        if running is not None:
            self.status = f"<b>{running.label}</b> is in training, and only one thing at a time can be."
            return running
        choice = self.choice()
        label = self.label(choice)
        job = self.job = Job(self.experiment.override(**choice), label, self)
        self.status = f"Training <b>{label}</b>."
        self.enable()
        job.start()
        return job

    def stop(self) -> None:
        """End the training between two batches."""
        job = self.job
        if job is not None:
            self.enabled = []
            job.stopping.set()

    def take_over(self, job: Job) -> None:
        """Show a training that was begun in another explorer, as by an earlier run of the cell."""
        with job.lock:
            if Job.current is not job:  # it has just ended
                return
            job.watcher.release()
            job.watcher = self
            self.job = job
        self.enable()

    def release(self) -> None:
        """Another explorer shows the training from now on."""
        self.job, self.growing, self.progress = None, {}, {}
        self.status = "The training goes on in the explorer that was made last."
        self.enable()

    def show_progress(self, job: Job, words: str, share: float) -> None:
        self.progress = {"words": f"In training: {job.label}: {words}", "share": share}

    def grow(self, job: Job, growth: Growth) -> None:
        """Draw a new piece of the curve."""
        with self.drawing:
            self.growing = {job.label: growth.frame}
            self.draw()

    def finish(self, job: Job, outcome: Run | Exception) -> None:
        """Show what a training came to."""
        with self.drawing:
            self.growing = {}
            if isinstance(outcome, Stopped):  # while something else than its epochs was computed
                done = f"after {job.growth.epochs:g} epochs" if job.growth.epochs else "before its first step"
                self.status = f"<b>{job.label}</b>, stopped early by you, {done}"
            elif isinstance(outcome, Exception):
                self.complain(outcome)
            else:
                self.show_run(job.label, outcome)
            self.draw()
            self.job, self.progress = None, {}
            self.update_stand_in()
            self.enable()

    def forget(self) -> None:
        """Drop what is kept of earlier choices, without drawing."""
        self.runs.clear()
        self.curves.clear()

    def reset(self) -> None:
        self.forget()
        self.status = INVITATION
        self.draw()
        self.update_stand_in()

    def draw(self) -> None:
        """Redraw the figure: the finished choices, and one that is growing."""
        frames = {label: frame for label, (frame, _) in self.curves.items() if label not in self.growing}
        caption = "; ".join(sorted({origin for _, origin in self.curves.values()}))
        chart = plots.history(frames | self.growing, caption=caption)
        self.show(chart.png(), chart.alt)


def in_percent(accuracies: pd.Series) -> str:
    """The mean of accuracies in per cent, and where there are several their standard deviation."""
    spread = f" ± {accuracies.std():.2%}" if len(accuracies) > 1 else ""
    return f"{accuracies.mean():.2%}{spread}"
