"""Choose an untrained network, and see how the gradient fares in it."""

import html
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from labutils.data.loading import ImageData, batches
from labutils.errors import SettingError
from labutils.methods.probes import activation_gradients, mean_field_rate, rate_per_layer
from labutils.models.mlp import MLP
from labutils.notebook import plots
from labutils.notebook.explorers.base import Explorer, in_code
from labutils.training.numerics import seeded

EXPLORED_IMAGES = 128
SEED = 0  # of the initial weights


class GradientExplorer(Explorer):
    """Choose an untrained network and see at once how the gradient fares on its way back through the layers.

    Each move costs one forward and one backward pass; nothing is trained.

    Args:
        data: whose first training images are shown to the networks.
        choices: the values each setting of MLP offers, as of Explorer.
        start: as of Explorer.

    Attributes:
        profile: the gradient norms drawn last, a row a layer.
    """

    def __init__(
        self,
        data: ImageData,
        choices: Mapping[str, Sequence],
        *,
        start: Mapping[str, object] = MappingProxyType({}),
    ):
        self.data = data
        self.images, self.labels = next(batches(data.train, data, EXPLORED_IMAGES))
        self.earlier: list[pd.DataFrame] = []
        self.profile: pd.DataFrame | None = None
        self.live = plots.LiveProfile()
        super().__init__(choices, start)

    def model_settings(self) -> dict[str, object]:
        """The network's settings: those chosen, and those that the data decide."""
        sizes = {"in_features": math.prod(self.data.image_shape), "classes": len(self.data.classes)}
        return self.choice() | sizes

    def answer(self) -> None:
        """Measure the network chosen now, and redraw."""
        with seeded(SEED, self.data.device):
            model = MLP(**self.model_settings()).to(self.data.device)
            profile = activation_gradients(model, self.images, self.labels)
        if self.profile is not None:
            self.earlier = [*self.earlier, self.profile][-plots.EARLIER_PROFILES :]
        self.profile = profile
        rate, theory = predict_rate(model)
        label = self.label(self.choice())
        png = self.live.png(profile, label=label, residual=model.residual, rate=rate, earlier=self.earlier)
        self.show(png, self.live.alt)
        self.status = f"The gradient {measure_rate(profile)}. Theory: {theory}."

    def as_code(self) -> str:
        return (
            f"torch.manual_seed({SEED})\n"
            f"model = lab.MLP({in_code(self.model_settings())}).to(data.device)\n"
            f"images, labels = next(lab.batches(data.train, data, {EXPLORED_IMAGES}))\n"
            "profile = lab.probes.activation_gradients(model, images, labels)\n"
            f"lab.plots.gradient_profiles({{{self.label(self.choice())!r}: profile}})"
        )

    def reset(self) -> None:
        self.earlier.clear()
        self.profile = None
        self.move()


def predict_rate(model: MLP) -> tuple[float | None, str]:
    """The rate that theory predicts, if it does, and what to say of it."""
    try:
        rate = mean_field_rate(model)
    except NotImplementedError as error:
        return None, html.escape(str(error))
    return rate, f"{rate:.4f}"


def measure_rate(profile: pd.DataFrame) -> str:
    """What the gradient does by the rate measured, or why it has none."""
    try:
        return f"changes by <b>{rate_per_layer(profile)}</b>"
    except SettingError:
        return "has <b>no rate</b>: one layer alone, or a gradient too small for a number"
