"""Sliders and live figures for JupyterLab."""

import base64
import functools
import html
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import ipywidgets
import pandas as pd
import torch

from labutils import plots
from labutils.data import ImageData, batches
from labutils.distillation import mean_entropy
from labutils.errors import SettingError, check_number
from labutils.experiment import Experiment
from labutils.models import MLP
from labutils.probes import activation_gradients, mean_field_rate, rate_per_layer
from labutils.runs import Run, kept_run, run
from labutils.stopping import stoppable
from labutils.training import History, seeded
from labutils.transfer import Features, knn, linear_probe, linear_svm

INVITATION = "Choose, predict, and train."
REMEMBERED = 5  # earlier choices that stay in the figure
EXPLORED_IMAGES = 128
EXPLORED_FEATURES = 20_000  # of which a probe is found within two seconds
HEADS = {"knn": knn, "svm": linear_svm, "probe": linear_probe}
METHOD_SETTINGS = {"knn": ("k", "metric"), "svm": ("C",), "probe": ("C",), "fine_tuning": ("stages",)}
HISTORY_COLUMNS = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
LABEL_STYLE = {"description_width": "9em"}
REDRAW_S = 0.5  # between two pictures of what is in training, at least
WORDS = {None: "none", True: "yes", False: "no"}


class Explorer(ipywidgets.VBox):
    """What all explorers have in common: settings to choose, buttons, a status line, a figure, and the code for it.

    A move is answered as soon as it is made. An error shows in the status line, and the figure stays as it was. Of
    several moves in a row, JupyterLab holds back all but the newest until the one before is answered.

    Args:
        choices: the values each setting offers, by its name, such as {"depth": [1, 2, 5]}. Ordered numbers and lists
            of numbers become a slider, anything else a row of buttons.
        start: the values to start from, by the setting's name; without one a setting starts from its first value.
        buttons: to go beside Reset.
        gauges: what stands between the buttons and the status line.

    Attributes:
        controls: the sliders and buttons, by the settings' names.
        status: what there is to say of the choice.
        figure: the picture, which also stands where widgets can't run.
        code: a cell that does the same without widgets.
        milliseconds: how long the last move took, from the choice to the finished picture.

    Raises:
        SettingError: no choices, or a setting without values.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence],
        start: Mapping[str, object],
        *,
        buttons: Sequence[ipywidgets.Button] = (),
        gauges: Sequence[ipywidgets.Widget] = (),
    ):
        if not choices:
            raise SettingError("choices", choices, "one setting or more, with the values it offers")
        self.controls = {name: control(name, values, start.get(name)) for name, values in choices.items()}
        self.status = ipywidgets.HTML()
        self.figure = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", width="850px"))
        self.code = ipywidgets.HTML()
        self.milliseconds = 0.0
        self.reset_button = ipywidgets.Button(description="Reset", icon="refresh", tooltip="Forget earlier choices")
        self.reset_button.on_click(lambda _: self.reset())
        for widget in self.controls.values():
            widget.observe(lambda _: self.move(), names="value")
        row = ipywidgets.HBox([*buttons, self.reset_button])
        controls = [labelled(name, widget) for name, widget in self.controls.items()]
        super().__init__([*controls, row, *gauges, self.status, self.figure, self.code])
        self.move()

    def choice(self) -> dict[str, object]:
        """The settings as they are chosen now."""
        return {name: widget.value for name, widget in self.controls.items()}

    def label(self, choice: Mapping[str, object]) -> str:
        """What a choice is called in the figure and in the status line."""
        return describe(choice)

    def move(self) -> None:
        """Answer the choice as it is now."""
        start = time.perf_counter()
        try:
            self.code.value = code_link(self.as_code())
            self.answer()
        except Exception as error:
            self.complain(error)
        self.milliseconds = 1_000 * (time.perf_counter() - start)

    def answer(self) -> None:
        """Find out what the choice leads to, say it and draw it."""
        raise NotImplementedError

    def as_code(self) -> str:
        """The code of a cell that gives the choice's answer."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the earlier choices."""
        raise NotImplementedError

    def complain(self, error: Exception) -> None:
        """Show an error where the learner looks."""
        self.status.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        # Where no widget can run (a printed page, a web view of the file), the figure stands in for it.
        picture = base64.b64encode(self.figure.value).decode()
        return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}


class TrainingExplorer(Explorer):
    """Choose settings, press Train, and watch the curves grow beside those of earlier choices.

    Training runs in a thread of its own, so the notebook goes on working; Stop ends it between two batches, and keeps
    the epochs so far. What is in the bank or in the store of runs is drawn as soon as it is chosen, and a run that was
    stopped goes on where it was.

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
        self.experiment, self.banked = experiment.override(**{"tracking.gradients": False}), banked
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
        for finished in earlier:
            settings = finished.experiment.bare_settings()
            self.add_run(self.label({name: settings.get(name) for name in choices}), finished)
        super().__init__(
            choices,
            experiment.bare_settings(),
            buttons=[self.train_button, self.stop_button],
            gauges=[ipywidgets.HBox([self.progress, self.time_left])],
        )

    def answer(self) -> None:
        """Draw the choice where it is in the bank or in the store."""
        choice, label = self.choice(), self.label(self.choice())
        epochs = self.in_bank(choice)
        finished = None
        if epochs.empty:
            finished = self.runs.get(label) or kept_run(self.experiment.override(**choice))
        with self.drawing:
            if not epochs.empty:
                self.show_banked(f"{label} (bank, n = {epochs['seed'].nunique()})", epochs)
            elif finished is not None:
                self.show_run(label, finished)
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

    def show_banked(self, label: str, epochs: pd.DataFrame) -> None:
        """Add a choice from the bank to what is drawn."""
        means = epochs.groupby("epoch", as_index=False).mean(numeric_only=True)
        remember(self.curves, label, (means, plots.origin(epochs)))
        final = epochs[epochs["epoch"] == epochs["epoch"].max()]
        accuracy, minutes = final["validation_accuracy"], epochs.groupby("run")["seconds"].sum().mean() / 60
        self.status.value = (
            f"<b>{label}</b>: validation accuracy {mean_and_spread(accuracy)} after the last epoch; "
            f"a run took {minutes:.1f} minutes"
        )

    def show_run(self, label: str, finished: Run) -> None:
        """Add a run to what is drawn."""
        epochs, metrics = len(finished.history.rows), finished.metrics
        stopped = ", stopped early by you" if finished.history.interrupted else ""
        if not epochs:
            self.status.value = f"<b>{label}</b>{stopped}, before its first epoch ended"
            return
        self.add_run(label, finished)
        self.status.value = (
            f"<b>{label}</b>{stopped}: validation accuracy {metrics.get('validation_top1', math.nan):.2%} "
            f"after {epochs} epochs, {metrics['parameters']:,} parameters"
        )

    def add_run(self, label: str, finished: Run) -> None:
        """Keep a run, and its curve as the newest."""
        self.runs[label] = finished
        remember(self.curves, label, (finished.history.frame, "{data} ({source})".format(**finished.metrics)))

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
        try:
            experiment = self.experiment.override(**choice)
            if experiment.model["kind"] == "mlp":
                # Outside the main thread OpenMP wakes its threads anew for each operation. For as small ones as an
                # MLP's two are five times slower than one; for those of a CNN they are faster.
                torch.set_num_threads(1)
            self.progress.value, self.progress.max = 0, experiment.training.epochs
            growth = Growth(experiment.training.epochs, functools.partial(self.grow, label))
            with stoppable(self.stopping):
                finished = run(experiment, progress=False, on_epoch=growth.after_epoch, on_step=growth.after_step)
            self.progress.value = len(finished.history.rows)
            with self.drawing:
                self.growing = {}
                self.show_run(label, finished)
                self.draw()
        except KeyboardInterrupt:
            self.status.value = f"<b>{label}</b>, stopped early by you, before its first step"
        except Exception as error:
            self.complain(error)
        finally:
            self.growing, self.time_left.value = {}, ""
            self.switch_buttons(training=False)

    def switch_buttons(self, *, training: bool) -> None:
        """Enable the buttons that can be pressed."""
        self.train_button.disabled, self.stop_button.disabled, self.reset_button.disabled = (
            training,
            not training,
            training,
        )

    def grow(self, label: str, growth: "Growth") -> None:
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


class Growth:
    """How far a training is, told now and then: after its first step, and then so rarely that telling costs little.

    Args:
        total: the epochs there will be.
        tell: called with this object.

    Attributes:
        epochs: how many there have been, such as 1.25.
        frame: a row an epoch as in History.frame, and since the last epoch a row of epoch and train_loss for each time
            that it was told.
    """

    def __init__(self, total: int, tell: "Callable[[Growth], None]"):
        self.total, self.tell = total, tell
        self.epochs = 0.0
        self.rows: list[dict] = []
        self.points: list[dict] = []
        self.losses: list[torch.Tensor] = []
        self.first: tuple[float, float] | None = None  # when the first step ended, and the epochs then
        self.due = 0.0

    def after_step(self, epochs: float, loss: torch.Tensor) -> None:
        """As `fit` calls its on_step."""
        now = time.perf_counter()
        self.first = self.first or (now, epochs)
        self.epochs = epochs
        self.losses.append(loss)
        if now >= self.due:
            self.points.append({"epoch": epochs, "train_loss": torch.stack(self.losses).mean().item()})
            self.losses.clear()
            self.tell(self)
            self.due = time.perf_counter() + max(REDRAW_S, 4 * (time.perf_counter() - now))

    def after_epoch(self, history: History) -> None:
        """As `fit` calls its on_epoch."""
        self.rows = list(history.rows)
        self.points.clear()
        self.losses.clear()
        self.tell(self)

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


class GradientExplorer(Explorer):
    """Choose an untrained network and see at once how the gradient fares on its way back through the layers.

    Each move costs one forward and one backward pass; nothing is trained.

    Args:
        data: whose first training images are shown to the networks.
        choices: the values each setting of MLP offers, as of Explorer.
        start: as of Explorer.
        seed: of the initial weights.

    Attributes:
        profile: the gradient norms drawn last, a row a layer.
    """

    def __init__(
        self,
        data: ImageData,
        choices: Mapping[str, Sequence],
        *,
        start: Mapping[str, object] = MappingProxyType({}),
        seed: int = 0,
    ):
        self.data, self.seed = data, seed
        self.images, self.labels = next(batches(data.train, data, EXPLORED_IMAGES))
        self.earlier: list[pd.DataFrame] = []
        self.profile: pd.DataFrame | None = None
        self.live = plots.LiveProfile()
        super().__init__(choices, start)

    def answer(self) -> None:
        """Measure the network chosen now, and redraw."""
        with seeded(self.seed, self.data.device):
            model = MLP(
                **self.choice(), in_features=math.prod(self.data.image_shape), classes=len(self.data.classes)
            ).to(self.data.device)
        profile = activation_gradients(model, self.images, self.labels)
        if self.profile is not None:
            self.earlier = [*self.earlier, self.profile][-plots.EARLIER_PROFILES :]
        self.profile = profile
        rate, theory = predict_rate(model)
        self.figure.value = self.live.png(
            profile, label=self.label(self.choice()), residual=model.residual, rate=rate, earlier=self.earlier
        )
        self.status.value = f"The gradient changes by <b>{measure_rate(profile)}</b>. Theory: {theory}."

    def as_code(self) -> str:
        settings = self.choice()
        sizes = {"in_features": math.prod(self.data.image_shape), "classes": len(self.data.classes)}
        return (
            f"torch.manual_seed({self.seed})\n"
            f"model = lab.MLP({in_code(settings | sizes)}).to(data.device)\n"
            f"images, labels = next(lab.batches(data.train, data, {EXPLORED_IMAGES}))\n"
            "profile = lab.activation_gradients(model, images, labels)\n"
            f"lab.plots.gradient_profiles({{{self.label(settings)!r}: profile}})"
        )

    def reset(self) -> None:
        self.earlier.clear()
        self.profile = None
        self.move()


class TemperatureExplorer(Explorer):
    """Move the temperature, and see at once how soft a network's answers become.

    Args:
        images: (N, C, H, W) uint8, up to five.
        labels: (N,) their classes.
        logits: (N, classes) what the network says of them.
        classes: their names.
        temperatures: what the slider offers, each above 0.
        caption: what the data are.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        logits: torch.Tensor,
        classes: Sequence[str],
        temperatures: Sequence[float],
        *,
        caption: str = "",
    ):
        for temperature in temperatures:
            check_number("temperatures", temperature, 0, open_ends="low")
        self.logits = logits
        self.live = plots.LiveAnswers(images, labels, classes, caption=caption)
        super().__init__({"temperature": list(temperatures)}, {"temperature": 1})
        self.start = self.controls["temperature"].index

    def answer(self) -> None:
        """Soften the answers by the temperature chosen now, and redraw."""
        temperature = self.choice()["temperature"]
        probabilities = (self.logits / temperature).softmax(dim=1)
        self.figure.value = self.live.png(probabilities)
        self.status.value = (
            f"The likeliest class has <b>{probabilities.amax(dim=1).mean():.1%}</b> on average; the answers' entropy "
            f"is <b>{mean_entropy(self.logits, temperature):.2f} nats</b> "
            f"of {math.log(self.logits.shape[1]):.2f} at most."
        )

    def as_code(self) -> str:
        return f"(logits / {self.choice()['temperature']}).softmax(dim=1)"

    def reset(self) -> None:
        """Go back to where the explorer started; there are no earlier choices to forget."""
        self.controls["temperature"].index = self.start


class TransferExplorer(TrainingExplorer):
    """Choose how features are used for new classes, and see how many validation images that gets right.

    Heads for frozen features are found while you wait, from some of the training features; what training the last
    stages brings is in the bank, or in the store once it has been trained here.

    Args:
        experiment: of the transfer; what is trained here starts from its settings.
        train: the backbone's features (N, F) of the training images, and their labels.
        validation: the same of the validation images.
        banked: results of fine-tuning, a row a run with its stages.
        choices: the values each setting offers: method, and those of its settings k, metric, C and stages that are to
            be chosen.
        caption: what the data are.

    Attributes:
        found: validation accuracies, fractions from 0 to 1, by the choice's label.
    """

    def __init__(
        self,
        experiment: Experiment,
        train: Features,
        validation: Features,
        banked: pd.DataFrame,
        choices: Mapping[str, Sequence],
        *,
        caption: str = "",
    ):
        unknown = [name for name in choices if name not in {"method"}.union(*METHOD_SETTINGS.values())]
        if "method" not in choices or unknown:
            raise SettingError("choices", sorted(choices), "method, and any of k, metric, C and stages")
        self.features = tuple(part[:EXPLORED_FEATURES] for part in train)
        self.validation, self.caption = validation, caption
        self.found: dict[str, float] = {}
        first = {name: values[0] for name, values in choices.items() if values}
        super().__init__(experiment.override(**first), choices, banked=banked)

    def choice(self) -> dict[str, object]:
        """The method, and those of its settings that are offered."""
        chosen = super().choice()
        wanted = ("method", *METHOD_SETTINGS[chosen["method"]])
        return {name: value for name, value in chosen.items() if name in wanted}

    def settings(self) -> dict[str, object]:
        """The method's settings, without its name."""
        return {name: value for name, value in self.choice().items() if name != "method"}

    def label(self, choice: Mapping[str, object]) -> str:
        method, settings = choice["method"], {name: choice[name] for name in choice if name != "method"}
        return ", ".join([method.replace("_", "-"), *([describe(settings)] if settings else [])])

    def answer(self) -> None:
        """Find the chosen head, or look up what fine-tuning brought, and redraw."""
        choice = self.choice()
        for name, widget in self.controls.items():
            widget.disabled = name not in choice
        self.switch_buttons(training=self.busy)
        if choice["method"] == "fine_tuning":
            super().answer()
            return
        start = time.perf_counter()
        accuracy = HEADS[choice["method"]](self.features, self.validation, **self.settings())["top1"]
        seconds = time.perf_counter() - start
        self.status.value = (
            f"<b>{self.label(choice)}</b>: {accuracy:.2%} of the validation images, "
            f"with {len(self.features[1]):,} training images, in {seconds:.1f} s"
        )
        with self.drawing:
            remember(self.found, self.label(choice), accuracy)
            self.draw()

    def show_banked(self, label: str, runs: pd.DataFrame) -> None:
        accuracies = runs["validation_top1"]
        remember(self.found, label, accuracies.mean())
        self.status.value = f"<b>{label}</b>: {mean_and_spread(accuracies)} of the validation images"

    def show_run(self, label: str, finished: Run) -> None:
        super().show_run(label, finished)
        if label in self.runs:
            remember(self.found, label, finished.metrics["validation_top1"])

    def as_code(self) -> str:
        choice = self.choice()
        if choice["method"] == "fine_tuning":
            return super().as_code()
        function = HEADS[choice["method"]].__name__
        return (
            f"some = tuple(part[:{EXPLORED_FEATURES}] for part in train)\n"
            f"lab.{function}(some, validation, {in_code(self.settings())})"
        )

    def switch_buttons(self, *, training: bool) -> None:
        super().switch_buttons(training=training)
        self.train_button.disabled = training or self.choice()["method"] != "fine_tuning"

    def reset(self) -> None:
        self.found.clear()
        self.runs.clear()
        self.move()

    def draw(self) -> None:
        """Redraw the figure: the newest choice and the ones before; while one is in training, its curve."""
        if self.growing:
            super().draw()
            return
        self.figure.value = plots.scores(self.found, caption=self.caption).png()


def remember(kept: dict[str, object], label: str, what: object) -> None:
    """Make it the newest of what is kept, and forget the oldest."""
    kept.pop(label, None)
    kept[label] = what
    if len(kept) > REMEMBERED:
        del kept[next(iter(kept))]


def predict_rate(model: MLP) -> tuple[float | None, str]:
    """The rate that theory predicts, if it does, and what to say of it."""
    try:
        rate = mean_field_rate(model)
    except NotImplementedError as error:
        return None, html.escape(str(error))
    return rate, f"{rate:.4f}"


def measure_rate(profile: pd.DataFrame) -> str:
    """The rate measured, or why there is none."""
    try:
        return str(rate_per_layer(profile))
    except SettingError:
        return "no rate: one layer alone, or a gradient too small for a number"


def mean_and_spread(accuracies: pd.Series) -> str:
    """The mean of accuracies in per cent, and where there are several their standard deviation."""
    spread = f" ± {accuracies.std():.2%}" if len(accuracies) > 1 else ""
    return f"{accuracies.mean():.2%}{spread}"


def describe(choice: Mapping[str, object]) -> str:
    """A choice's label in the figure."""
    return ", ".join(f"{name.replace('_', ' ')} {in_words(value)}" for name, value in choice.items())


def in_words(value: object) -> str:
    """A setting's value as a label shows it."""
    if isinstance(value, list):
        return "-".join(map(str, value))
    return WORDS[value] if value is None or isinstance(value, bool) else str(value).replace("_", " ")


def in_code(settings: Mapping[str, object]) -> str:
    """Settings as a call's arguments."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def code_link(code: str) -> str:
    """A folded piece of code, and a link that copies it."""
    copy = (
        "const code = this.previousElementSibling; code.open = true; "
        "getSelection().selectAllChildren(code.querySelector('pre')); document.execCommand('copy'); "
        "this.textContent = 'Copied'; return false"
    )
    return (
        f"<details><summary>The same in code</summary><pre>{html.escape(code)}</pre></details>"
        f'<a href="#" style="text-decoration: underline" onclick="{copy}">Copy the code</a>'
    )


def control(name: str, values: Sequence, start: object) -> ipywidgets.Widget:
    """A labelled slider for numbers, buttons for anything else, at `start` where that is one of the values."""
    if not values:
        raise SettingError(f"choices.{name}", values, "one value or more")
    index = values.index(start) if start in values else 0
    label = name.replace("_", " ")
    options = [(in_words(value), value) for value in values]
    if all(isinstance(value, int | float | list) and not isinstance(value, bool) for value in values):
        layout = ipywidgets.Layout(width="30em")
        return ipywidgets.SelectionSlider(
            options=options, index=index, description=label, style=LABEL_STYLE, layout=layout
        )
    return ipywidgets.ToggleButtons(options=options, index=index, style={"button_width": "8em"}, tooltip=label)


def labelled(name: str, widget: ipywidgets.Widget) -> ipywidgets.Widget:
    """A control with its label to the left; a slider has one, beside buttons JupyterLab would put it on top."""
    if widget.description:
        return widget
    label = f'<div style="width: {LABEL_STYLE["description_width"]}; text-align: right">{name.replace("_", " ")}</div>'
    return ipywidgets.HBox([ipywidgets.HTML(label), widget])
