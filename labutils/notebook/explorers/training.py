"""Choose settings, train them in the background, and watch the curves grow."""

import functools
import html
import math
import threading
from collections.abc import Mapping, Sequence

import ipywidgets
import pandas as pd

from labutils.experiments.running import Busy, kept_run, run
from labutils.experiments.settings import Experiment
from labutils.experiments.store import Run
from labutils.notebook import plots
from labutils.notebook.explorers.base import Explorer, remember
from labutils.notebook.explorers.controls import LABEL_STYLE
from labutils.notebook.explorers.growth import Growth
from labutils.notebook.explorers.threads import use_one_core
from labutils.notebook.finished import check_whole
from labutils.training.stopping import Stopped, stoppable

INVITATION = "Choose, predict, and train."
BUSY_POLL_S = 0.5  # how often a run is looked for that another process is training


class TrainingExplorer(Explorer):
    """Choose settings, press Train, and watch the curves grow beside those of earlier choices.

    Training runs in a thread of its own, so the notebook goes on working; Stop ends it between two batches, and keeps
    the epochs so far. What is in the bank or in the store of runs is drawn as soon as it is chosen, and a run that was
    stopped goes on where it was. A run that another process is training is waited for.

    Args:
        experiment: where the settings start from.
        choices: as of Explorer.
        earlier: finished runs to compare with from the start.
        banked: results, a row an epoch of each run; of a choice that is there, the mean over the seeds is drawn.

    Attributes:
        runs: what was trained, by the label it has in the figure.
    """

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
        self.worker: threading.Thread | None = None
        self.stopping = threading.Event()
        self.drawing = threading.RLock()  # held while what is drawn changes, in whatever thread
        for name, values in choices.items():
            for value in values:
                experiment.override(**{name: value})  # one that can't be is found here, not when Train is pressed
        self.train_button = ipywidgets.Button(description="Train this now", icon="play", button_style="primary")
        self.stop_button = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.train_button.on_click(lambda _: self.train())
        self.stop_button.on_click(lambda _: self.stop())
        self.progress = ipywidgets.FloatProgress(min=0, description="Trained", style=LABEL_STYLE)
        self.time_left = ipywidgets.Label()
        for trained in earlier:
            settings = trained.experiment.bare_settings()
            self.add_run(self.label({name: settings.get(name) for name in choices}), trained)
        super().__init__(
            choices,
            experiment.bare_settings(),
            buttons=[self.train_button, self.stop_button],
            gauges=[ipywidgets.HBox([self.progress, self.time_left])],
        )

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
            else:
                self.status.value = f"<b>{label}</b> has not been trained so far. Predict, then train it."
                if self.figure.value:
                    return
            if not self.growing:  # which is redrawn anyway: a Stop need not wait for every move before it
                self.draw()

    def in_bank(self, choice: Mapping[str, object]) -> pd.DataFrame:
        """The rows of a choice in the bank."""
        if self.banked is None:
            return pd.DataFrame()
        named = {name: str(value) if isinstance(value, list) else value for name, value in choice.items()}
        return plots.matching(self.banked, named)

    def find_run(self, choice: Mapping[str, object]) -> Run | None:
        """A choice's run: the finished one if there is one, else what was trained here until it was stopped."""
        here = self.runs.get(self.label(choice))
        if here is not None and here.finished:
            return here
        return kept_run(self.experiment.override(**choice)) or here

    def show_banked(self, label: str, rows: pd.DataFrame) -> None:
        """Add a choice from the bank to what is drawn: the mean over its runs.

        Raises:
            SettingError: one of the runs was stopped before its last epoch.
        """
        check_whole(rows)
        means = rows.groupby("epoch", as_index=False).mean(numeric_only=True)
        remember(self.curves, label, (means, plots.origin(rows)))
        final = rows[rows["epoch"] == rows["epoch"].max()]
        accuracy, minutes = final["validation_accuracy"], rows.groupby("run")["seconds"].sum().mean() / 60
        self.status.value = (
            f"<b>{label}</b>: validation accuracy {mean_and_spread(accuracy)} after the last epoch; "
            f"a run took {minutes:.1f} minutes"
        )

    def show_run(self, label: str, trained: Run) -> None:
        """Add a run to what is drawn."""
        epochs, metrics = len(trained.history.rows), trained.metrics
        stopped = "" if trained.finished else ", stopped early by you"
        if not epochs:
            self.status.value = f"<b>{label}</b>{stopped}, before its first epoch ended"
            return
        self.add_run(label, trained)
        self.status.value = (
            f"<b>{label}</b>{stopped}: validation accuracy {metrics.get('validation_top1', math.nan):.2%} "
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

    @property
    def busy(self) -> bool:
        """Whether something is in training."""
        return self.worker is not None and self.worker.is_alive()

    def train(self) -> None:
        """Train the choice in the background; does nothing while another is in training."""
        if self.busy:
            return
        self.stopping.clear()
        self.switch_buttons(training=True)
        self.worker = threading.Thread(target=self.work, args=(self.choice(),), daemon=True)
        self.worker.start()

    def stop(self) -> None:
        """End the training between two batches."""
        self.stop_button.disabled = True
        self.stopping.set()

    def work(self, choice: Mapping[str, object]) -> None:
        """The thread's work: train, drawing as it goes."""
        label = self.label(choice)
        self.status.value = f"Training {label} …"
        growth = None
        try:
            experiment = self.experiment.override(**choice)
            if experiment.model["kind"] == "mlp":
                # Outside the main thread OpenMP wakes its threads anew for each operation. For as small ones as an
                # MLP's two are five times slower than one; for those of a CNN they are faster.
                use_one_core()
            self.progress.value, self.progress.max = 0, experiment.training.epochs
            growth = Growth(experiment.training.epochs, functools.partial(self.grow, label))
            with stoppable(self.stopping):
                trained = self.run_or_wait(experiment, growth)
            self.progress.value = len(trained.history.rows)
            with self.drawing:
                self.growing = {}
                self.show_run(label, trained)
                self.draw()
        except Stopped:  # while something else than its epochs was computed
            done = f"after {growth.epochs:g} epochs" if growth.epochs else "before its first step"
            self.status.value = f"<b>{label}</b>, stopped early by you, {done}"
        except Exception as error:
            self.complain(error)
        finally:
            self.growing, self.time_left.value = {}, ""
            self.switch_buttons(training=False)

    def run_or_wait(self, experiment: Experiment, growth: Growth) -> Run:
        """Run an experiment; where another process is training it, say so, and wait until its run is there.

        Raises:
            Stopped: Stop was pressed while waiting, or while something else than epochs was computed.
        """
        said = None
        while True:
            try:
                return run(experiment, progress=False, callbacks=[growth], wait=False)
            except Busy as busy:
                if str(busy) != said:  # said once, so that it does not hide what a move has to say
                    said = str(busy)
                    self.status.value = f"{html.escape(said)}. Its run is shown when it is there; Stop ends the wait."
                if self.stopping.wait(BUSY_POLL_S):
                    raise Stopped from busy

    def switch_buttons(self, *, training: bool) -> None:
        """Enable the buttons that can be pressed."""
        self.train_button.disabled = self.reset_button.disabled = training
        self.stop_button.disabled = not training

    def grow(self, label: str, growth: Growth) -> None:
        """Show how far a training is; once it is to stop, that would only hold it up."""
        if self.stopping.is_set():
            return
        self.progress.value, self.time_left.value = growth.epochs, growth.time_left
        with self.drawing:
            self.growing = {label: growth.frame}
            self.draw()

    def reset(self) -> None:
        self.runs.clear()
        self.curves.clear()
        self.progress.value = 0
        self.status.value = INVITATION
        self.draw()

    def draw(self) -> None:
        """Redraw the figure: the finished choices, and one that is growing."""
        frames = {label: frame for label, (frame, _) in self.curves.items() if label not in self.growing}
        caption = "; ".join(sorted({origin for _, origin in self.curves.values()}))
        self.figure.value = plots.history(frames | self.growing, caption=caption).png()


def mean_and_spread(accuracies: pd.Series) -> str:
    """The mean of accuracies in per cent, and where there are several their standard deviation."""
    spread = f" ± {accuracies.std():.2%}" if len(accuracies) > 1 else ""
    return f"{accuracies.mean():.2%}{spread}"
