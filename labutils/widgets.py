"""Sliders and live figures for JupyterLab."""

import base64
import html
import threading
from collections.abc import Mapping, Sequence

import ipywidgets
import pandas as pd
import torch

from labutils import plots
from labutils.errors import SettingError
from labutils.experiment import Experiment
from labutils.runs import Run, run
from labutils.training import History

INVITATION = "Choose, predict, and press Train."
REMEMBERED = 5  # earlier choices that stay in the figure


class TrainingExplorer(ipywidgets.VBox):
    """Choose settings, press Train, and watch the curves grow beside those of earlier choices.

    Training runs in a thread of its own, so the notebook goes on working; Stop ends it after the epoch it is in.
    Every choice goes through the store of runs: one that was trained before is drawn at once.

    Args:
        experiment: where the settings start from.
        choices: the values each setting offers, by its name, such as {"depth": [1, 2, 5]}. Ordered numbers become
            a slider, anything else a row of buttons.
        earlier: finished runs to compare with from the start.

    Attributes:
        runs: what was trained, by the label it has in the figure.
    """

    def __init__(self, experiment: Experiment, choices: Mapping[str, Sequence], *, earlier: Sequence[Run] = ()):
        if not choices:
            raise SettingError("choices", choices, "one setting or more, with the values it offers")
        self.experiment = experiment
        self.runs: dict[str, Run] = {}
        self.worker: threading.Thread | None = None
        self.stopping = threading.Event()
        settings = experiment.bare_settings()
        self.controls = {name: control(name, values, settings.get(name)) for name, values in choices.items()}
        for name, values in choices.items():
            for value in values:
                experiment.override(**{name: value})  # one that can't be is found here, not when Train is pressed
        self.train_button = ipywidgets.Button(description="Train", icon="play", button_style="primary")
        self.stop_button = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.reset_button = ipywidgets.Button(description="Reset", icon="refresh")
        self.progress = ipywidgets.IntProgress(min=0, max=experiment.training.epochs, description="Epoch")
        self.status = ipywidgets.HTML(value=INVITATION)
        self.figure = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", width="850px"))
        self.train_button.on_click(lambda _: self.train())
        self.stop_button.on_click(lambda _: self.stopping.set())
        self.reset_button.on_click(lambda _: self.reset())
        buttons = ipywidgets.HBox([self.train_button, self.stop_button, self.reset_button])
        for finished in earlier:
            settings = finished.experiment.bare_settings()
            self.runs[describe({name: settings.get(name) for name in choices})] = finished
        super().__init__([*self.controls.values(), buttons, self.progress, self.status, self.figure])
        self.draw({})

    def choice(self) -> dict[str, object]:
        """The settings as they are chosen now."""
        return {name: widget.value for name, widget in self.controls.items()}

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
        except Exception as error:  # shown where the learner looks
            self.status.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"
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
        self.progress.value = 0
        self.status.value = INVITATION
        self.draw({})

    def draw(self, growing: Mapping[str, pd.DataFrame]) -> None:
        """Redraw the figure: the finished choices, and one that is growing."""
        frames = {label: finished.history.frame for label, finished in self.runs.items() if label not in growing}
        frames = dict(list(frames.items())[-REMEMBERED:]) | growing
        caption = ", ".join({"{data} ({source})".format(**finished.metrics) for finished in self.runs.values()})
        self.figure.value = plots.history(frames, caption=caption).png()

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        # Where no widget can run (a printed page, a web view of the file), the figure stands in for it.
        picture = base64.b64encode(self.figure.value).decode()
        return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}


def describe(choice: Mapping[str, object]) -> str:
    """A choice's label in the figure."""
    return ", ".join(f"{name} {'none' if value is None else value}" for name, value in choice.items())


def control(name: str, values: Sequence, start: object) -> ipywidgets.Widget:
    """A labelled slider for numbers, buttons for anything else, at `start` where that is one of the values."""
    if not values:
        raise SettingError(f"choices.{name}", values, "one value or more")
    index = values.index(start) if start in values else 0
    label, style = name.replace("_", " "), {"description_width": "9em"}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        layout = ipywidgets.Layout(width="30em")
        return ipywidgets.SelectionSlider(options=values, index=index, description=label, style=style, layout=layout)
    options = [("none" if value is None else str(value), value) for value in values]
    style["button_width"] = "7em"
    return ipywidgets.ToggleButtons(options=options, index=index, description=label, style=style)
