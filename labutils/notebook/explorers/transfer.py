"""Choose how a trained network's features are used for new classes."""

import time
from collections.abc import Mapping, Sequence

import pandas as pd

from labutils.errors import SettingError
from labutils.experiments.settings import Experiment
from labutils.experiments.store import Run
from labutils.methods.features import Features
from labutils.methods.linear import linear_probe, linear_svm
from labutils.methods.neighbours import knn
from labutils.notebook import plots
from labutils.notebook.explorers.base import choice_label, in_code, remember
from labutils.notebook.explorers.training import TrainingExplorer, in_percent
from labutils.notebook.finished import check_finished

EXPLORED_FEATURES = 20_000  # of which a probe is found within two seconds
HEADS = {"knn": knn, "svm": linear_svm, "probe": linear_probe}
METHOD_SETTINGS = {"knn": ("k", "metric"), "svm": ("C",), "probe": ("C",), "fine_tuning": ("stages",)}


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

    def head_settings(self) -> dict[str, object]:
        """The method's settings, without its name."""
        return {name: value for name, value in self.choice().items() if name != "method"}

    def label(self, choice: Mapping[str, object]) -> str:
        method, settings = choice["method"], {name: choice[name] for name in choice if name != "method"}
        return ", ".join([method.replace("_", "-"), *([choice_label(settings)] if settings else [])])

    def answer(self) -> None:
        """Find the chosen head, or look up what fine-tuning brought, and redraw."""
        choice = self.choice()
        self.unused = [name for name in self.choices if name not in choice]
        self.enable()
        if choice["method"] == "fine_tuning":
            super().answer()
            return
        start = time.perf_counter()
        accuracy = HEADS[choice["method"]](self.features, self.validation, **self.head_settings())["top1"]
        seconds = time.perf_counter() - start
        self.status = (
            f"<b>{self.label(choice)}</b>: {accuracy:.2%} of the validation images, "
            f"with {len(self.features[1]):,} training images, in {seconds:.1f} s"
        )
        with self.drawing:
            remember(self.found, self.label(choice), accuracy)
            self.draw()

    def show_banked(self, label: str, rows: pd.DataFrame) -> None:
        check_finished(rows, "validation_top1")
        accuracies = rows["validation_top1"]
        remember(self.found, label, accuracies.mean())
        self.status = f"<b>{label}</b>: {in_percent(accuracies)} of the validation images"

    def show_run(self, label: str, trained: Run) -> None:
        super().show_run(label, trained)
        if label in self.runs:
            stopped = "" if trained.finished else " (stopped)"
            remember(self.found, f"{label}{stopped}", trained.metrics["validation_top1"])

    def as_code(self) -> str:
        choice = self.choice()
        if choice["method"] == "fine_tuning":
            return super().as_code()
        function = HEADS[choice["method"]].__name__
        return (
            f"some = tuple(part[:{EXPLORED_FEATURES}] for part in train)\n"
            f"lab.{function}(some, validation, {in_code(self.head_settings())})"
        )

    def can_train(self) -> bool:
        return self.choice()["method"] == "fine_tuning"

    def forget(self) -> None:
        super().forget()
        self.found.clear()

    def reset(self) -> None:
        self.forget()
        self.move()

    def draw(self) -> None:
        """Redraw the figure: the newest choice and the ones before; while one is in training, its curve."""
        if self.growing:
            super().draw()
            return
        chart = plots.scores(self.found, caption=self.caption)
        self.show(chart.png(), chart.alt)
