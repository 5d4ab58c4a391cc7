"""Sliders and live figures for JupyterLab."""

import base64
import html
import math
import threading
import time
from collections.abc import Mapping, Sequence
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
from labutils.runs import Run, run
from labutils.training import History, seeded
from labutils.transfer import Features, knn, linear_probe, linear_svm

INVITATION = "Choose, predict, and press Train."
REMEMBERED = 5  # earlier choices that stay in the figure
EXPLORED_IMAGES = 128
EXPLORED_FEATURES = 20_000  # of which a probe is found within two seconds
HEADS = {"knn": knn, "svm": linear_svm, "probe": linear_probe}
METHOD_SETTINGS = {"knn": ("k", "metric"), "svm": ("C",), "probe": ("C",), "fine_tuning": ("stages",)}
WORDS = {None: "none", True: "yes", False: "no"}


class Explorer(ipywidgets.VBox):
    """What all explorers have in common: controls by the names of the settings, a status line, a figure."""

    controls: dict[str, ipywidgets.Widget]
    status: ipywidgets.HTML
    figure: ipywidgets.Image

    def choice(self) -> dict[str, object]:
        """The settings as they are chosen now."""
        return {name: widget.value for name, widget in self.controls.items()}

    def complain(self, error: Exception) -> None:
        """Show an error where the learner looks."""
        self.status.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        # Where no widget can run (a printed page, a web view of the file), the figure stands in for it.
        picture = base64.b64encode(self.figure.value).decode()
        return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}


class TrainingExplorer(Explorer):
    """Choose settings, press Train, and watch the curves grow beside those of earlier choices.

    Training runs in a thread of its own, so the notebook goes on working; Stop ends it after the epoch it is in.
    Every choice goes through the store of runs: one that was trained before is drawn at once.

    Args:
        experiment: where the settings start from.
        choices: the values each setting offers, by its name, such as {"depth": [1, 2, 5]}. Ordered numbers and lists
            of numbers become a slider, anything else a row of buttons.
        earlier: finished runs to compare with from the start.
        banked: results, a row an epoch of each run, from which a choice is drawn as soon as it is made: the mean over
            the seeds.

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
        if not choices:
            raise SettingError("choices", choices, "one setting or more, with the values it offers")
        self.experiment = experiment
        self.banked = banked
        self.shown: dict[str, pd.DataFrame] = {}  # curves from the bank
        self.runs: dict[str, Run] = {}
        self.worker: threading.Thread | None = None
        self.stopping = threading.Event()
        settings = experiment.bare_settings()
        self.controls = {name: control(name, values, settings.get(name)) for name, values in choices.items()}
        for name, values in choices.items():
            for value in values:
                experiment.override(**{name: value})  # one that can't be is found here, not when Train is pressed
        train = "Train" if banked is None else "Train this now"
        self.train_button = ipywidgets.Button(description=train, icon="play", button_style="primary")
        self.stop_button = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.reset_button = ipywidgets.Button(description="Reset", icon="refresh")
        self.progress = ipywidgets.IntProgress(min=0, max=experiment.training.epochs, description="Epoch")
        self.status = ipywidgets.HTML(value=INVITATION)
        self.figure = figure_widget()
        self.train_button.on_click(lambda _: self.train())
        self.stop_button.on_click(lambda _: self.stopping.set())
        self.reset_button.on_click(lambda _: self.reset())
        buttons = ipywidgets.HBox([self.train_button, self.stop_button, self.reset_button])
        for finished in earlier:
            settings = finished.experiment.bare_settings()
            self.runs[describe({name: settings.get(name) for name in choices})] = finished
        super().__init__([*self.controls.values(), buttons, self.progress, self.status, self.figure])
        if banked is None:
            self.draw({})
        else:
            for widget in self.controls.values():
                widget.observe(lambda _: self.show_banked(), names="value")
            self.show_banked()

    def show_banked(self) -> None:
        """Draw the choice from the bank, if it is there."""
        chosen = {name: str(value) if isinstance(value, list) else value for name, value in self.choice().items()}
        epochs = plots.matching(self.banked, chosen)
        if epochs.empty:
            self.status.value = f"<b>{describe(self.choice())}</b> is not in the bank. You can train it here."
            return
        label = f"{describe(self.choice())} (bank, n = {epochs['seed'].nunique()})"
        self.shown.pop(label, None)
        self.shown[label] = epochs.groupby("epoch", as_index=False).mean(numeric_only=True)
        final = epochs[epochs["epoch"] == epochs["epoch"].max()]
        accuracy, minutes = final["validation_accuracy"], epochs.groupby("run")["seconds"].sum().mean() / 60
        self.status.value = (
            f"<b>{label}</b>: validation accuracy {mean_and_spread(accuracy)} after the last epoch; "
            f"a run took {minutes:.1f} minutes"
        )
        self.draw({})

    def train(self) -> None:
        """Train the choice in the background; does nothing while another is in training."""
        if self.worker is not None and self.worker.is_alive():
            return
        choice = self.choice()
        self.stopping.clear()
        self.train_button.disabled, self.stop_button.disabled, self.reset_button.disabled = True, False, True
        self.worker = threading.Thread(target=self.work, args=(choice,), daemon=True)
        self.worker.start()

    def work(self, choice: Mapping[str, object]) -> None:
        """The thread's work: train, drawing after each epoch."""
        label = describe(choice)
        # Outside the main thread OpenMP wakes its threads anew for each operation: two are five times slower than one.
        torch.set_num_threads(1)
        self.progress.value = 0
        self.status.value = f"Training {label} …"

        def after_epoch(history: History) -> None:
            self.progress.value = len(history.rows)
            self.draw({label: history.frame})
            if self.stopping.is_set():
                raise KeyboardInterrupt

        try:
            finished = run(self.experiment.override(**choice), progress=False, on_epoch=after_epoch)
        except Exception as error:
            self.complain(error)
        else:
            self.runs.pop(label, None)
            self.runs[label] = finished
            self.progress.value = len(finished.history.rows)
            stopped = ", stopped early by you" if finished.history.interrupted else ""
            accuracy = finished.metrics.get("validation_top1", float("nan"))
            self.status.value = (
                f"<b>{label}</b>{stopped}: validation accuracy {accuracy:.2%} "
                f"after {len(finished.history.rows)} epochs, {finished.metrics['parameters']:,} parameters"
            )
            self.draw({})
        finally:
            self.train_button.disabled, self.stop_button.disabled, self.reset_button.disabled = False, True, False

    def reset(self) -> None:
        """Forget the earlier choices."""
        self.runs.clear()
        self.shown.clear()
        self.progress.value = 0
        self.status.value = INVITATION
        self.draw({})

    def draw(self, growing: Mapping[str, pd.DataFrame]) -> None:
        """Redraw the figure: the finished choices, and one that is growing."""
        frames = {label: finished.history.frame for label, finished in self.runs.items() if label not in growing}
        frames = dict(list((self.shown | frames).items())[-REMEMBERED:]) | growing
        sources = {"{data} ({source})".format(**finished.metrics) for finished in self.runs.values()}
        if self.shown:
            sources.add(plots.origin(self.banked))
        caption = ", ".join(sorted(sources))
        self.figure.value = plots.history(frames, caption=caption).png()


class GradientExplorer(Explorer):
    """Choose an untrained network and see at once how the gradient fares on its way back through the layers.

    Each move costs one forward and one backward pass; nothing is trained.

    Args:
        data: whose first training images are shown to the networks.
        choices: the values each setting of MLP offers, by its name, as in TrainingExplorer.
        start: the values to start from, by the setting's name; without one a setting starts from its first value.
        seed: of the initial weights.

    Attributes:
        profile: the gradient norms drawn last, a row a layer.
        milliseconds: how long the last move took, from the choice to the finished picture.
    """

    def __init__(
        self,
        data: ImageData,
        choices: Mapping[str, Sequence],
        *,
        start: Mapping[str, object] = MappingProxyType({}),
        seed: int = 0,
    ):
        if not choices:
            raise SettingError("choices", choices, "one setting or more, with the values it offers")
        self.data, self.seed = data, seed
        self.images, self.labels = next(batches(data.train, data, EXPLORED_IMAGES))
        self.controls = {name: control(name, values, start.get(name)) for name, values in choices.items()}
        self.earlier: list[pd.DataFrame] = []
        self.profile: pd.DataFrame | None = None
        self.milliseconds = 0.0
        self.live = plots.LiveProfile()
        self.status = ipywidgets.HTML()
        self.figure = figure_widget()
        self.reset_button = ipywidgets.Button(description="Reset", icon="refresh")
        self.reset_button.on_click(lambda _: self.reset())
        for widget in self.controls.values():
            widget.observe(lambda _: self.draw(), names="value")
        super().__init__([*self.controls.values(), self.reset_button, self.status, self.figure])
        self.draw()

    def reset(self) -> None:
        """Forget the earlier choices."""
        self.earlier.clear()
        self.profile = None
        self.draw()

    def draw(self) -> None:
        """Measure the network chosen now, and redraw."""
        start = time.perf_counter()
        try:
            with seeded(self.seed, self.data.device):
                model = MLP(
                    **self.choice(),
                    in_features=math.prod(self.data.image_shape),
                    classes=len(self.data.classes),
                ).to(self.data.device)
            profile = activation_gradients(model, self.images, self.labels)
        except Exception as error:
            self.complain(error)
            return
        if self.profile is not None:
            self.earlier = [*self.earlier, self.profile][-plots.EARLIER_PROFILES :]
        self.profile = profile
        rate, theory = predict_rate(model)
        self.figure.value = self.live.png(
            profile, label=describe(self.choice()), residual=model.residual, rate=rate, earlier=self.earlier
        )
        self.milliseconds = 1_000 * (time.perf_counter() - start)
        self.status.value = f"The gradient changes by <b>{measure_rate(profile)}</b>. Theory: {theory}."


class TemperatureExplorer(Explorer):
    """Move the temperature, and see at once how soft a network's answers become.

    Args:
        images: (N, C, H, W) uint8, up to five.
        labels: (N,) their classes.
        logits: (N, classes) what the network says of them.
        classes: their names.
        temperatures: what the slider offers, each above 0.
        caption: what the data are.

    Attributes:
        milliseconds: how long the last move took, from the choice to the finished picture.
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
        self.controls = {"temperature": control("temperature", list(temperatures), 1)}
        self.live = plots.LiveAnswers(images, labels, classes, caption=caption)
        self.milliseconds = 0.0
        self.status = ipywidgets.HTML()
        self.figure = figure_widget()
        self.controls["temperature"].observe(lambda _: self.draw(), names="value")
        super().__init__([*self.controls.values(), self.status, self.figure])
        self.draw()

    def draw(self) -> None:
        """Soften the answers by the temperature chosen now, and redraw."""
        start = time.perf_counter()
        probabilities = (self.logits / self.controls["temperature"].value).softmax(dim=1)
        self.figure.value = self.live.png(probabilities)
        self.milliseconds = 1_000 * (time.perf_counter() - start)
        likeliest = probabilities.amax(dim=1).mean()
        nats = mean_entropy(self.logits, self.controls["temperature"].value)
        self.status.value = (
            f"The likeliest class has <b>{likeliest:.1%}</b> on average; the answers' entropy is "
            f"<b>{nats:.2f} nats</b> of {math.log(self.logits.shape[1]):.2f} at most."
        )


class TransferExplorer(Explorer):
    """Choose how features are used for new classes, and see how many validation images that gets right.

    Heads for frozen features are found while you wait, from some of the training features; what training the last
    stages brings is in the bank.

    Args:
        train: the backbone's features (N, F) of the training images, and their labels.
        validation: the same of the validation images.
        banked: results of fine-tuning, a row a run with its stages.
        choices: the values each setting offers: method, and those of its settings k, metric, C and stages that are to
            be chosen.
        caption: what the data are.

    Attributes:
        found: validation accuracies, fractions from 0 to 1, by the choice's label.
        seconds: how long the last answer took.
    """

    def __init__(
        self,
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
        self.train = tuple(part[:EXPLORED_FEATURES] for part in train)
        self.validation, self.banked, self.caption = validation, banked, caption
        self.controls = {name: control(name, values, values[0]) for name, values in choices.items()}
        self.found: dict[str, float] = {}
        self.seconds = 0.0
        self.status = ipywidgets.HTML()
        self.figure = figure_widget()
        self.reset_button = ipywidgets.Button(description="Reset", icon="refresh")
        self.reset_button.on_click(lambda _: self.reset())
        for widget in self.controls.values():
            widget.observe(lambda _: self.answer(), names="value")
        super().__init__([*self.controls.values(), self.reset_button, self.status, self.figure])
        self.answer()

    def settings(self) -> dict[str, object]:
        """Those of the chosen method's settings that are offered."""
        wanted = METHOD_SETTINGS[self.controls["method"].value]
        return {name: value for name, value in self.choice().items() if name in wanted}

    def answer(self) -> None:
        """Find the chosen head, or look its accuracy up, and redraw."""
        method, settings = self.controls["method"].value, self.settings()
        for name, widget in self.controls.items():
            widget.disabled = name != "method" and name not in settings
        label = ", ".join([method.replace("_", "-"), *([describe(settings)] if settings else [])])
        start = time.perf_counter()
        try:
            if method == "fine_tuning":
                runs = plots.matching(self.banked, settings)["validation_top1"]
                accuracy, found = runs.mean(), mean_and_spread(runs)
                basis = f"from the bank, n = {len(runs)}"
            else:
                accuracy = HEADS[method](self.train, self.validation, **settings)["top1"]
                self.seconds = time.perf_counter() - start
                found = f"{accuracy:.2%}"
                basis = f"with {len(self.train[1]):,} training images, in {self.seconds:.1f} s"
        except Exception as error:
            self.complain(error)
            return
        self.found.pop(label, None)
        self.found[label] = accuracy
        self.status.value = f"<b>{html.escape(label)}</b>: {found} of the validation images, {basis}"
        self.draw()

    def reset(self) -> None:
        """Forget the earlier choices."""
        self.found.clear()
        self.answer()

    def draw(self) -> None:
        """Redraw the figure: the newest choice and the ones before."""
        found = dict(list(self.found.items())[-REMEMBERED:])
        self.figure.value = plots.scores(found, caption=self.caption).png()


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
    return WORDS[value] if value is None or isinstance(value, bool) else str(value)


def figure_widget() -> ipywidgets.Image:
    """Where an explorer shows its figure."""
    return ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", width="850px"))


def control(name: str, values: Sequence, start: object) -> ipywidgets.Widget:
    """A labelled slider for numbers, buttons for anything else, at `start` where that is one of the values."""
    if not values:
        raise SettingError(f"choices.{name}", values, "one value or more")
    index = values.index(start) if start in values else 0
    label, style = name.replace("_", " "), {"description_width": "9em"}
    options = [(in_words(value), value) for value in values]
    if all(isinstance(value, int | float | list) and not isinstance(value, bool) for value in values):
        layout = ipywidgets.Layout(width="30em")
        return ipywidgets.SelectionSlider(options=options, index=index, description=label, style=style, layout=layout)
    style["button_width"] = "7em"
    return ipywidgets.ToggleButtons(options=options, index=index, description=label, style=style)
