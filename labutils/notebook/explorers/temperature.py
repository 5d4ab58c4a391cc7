"""Choose a temperature, and see how soft a network's answers become."""

import math
from collections.abc import Sequence

import torch

from labutils.errors import check_number
from labutils.methods.distillation import mean_entropy
from labutils.notebook import plots
from labutils.notebook.explorers.base import Explorer


class TemperatureExplorer(Explorer):
    """Move the temperature, and see at once how soft a network's answers become.

    Args:
        images: (N, C, H, W) uint8, up to five.
        labels: (N,) their classes.
        logits: (N, classes) the network's answers for them.
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
        self.logits, self.start = logits, 1 if 1 in temperatures else temperatures[0]
        self.live = plots.LiveAnswers(images, labels, classes, caption=caption)
        super().__init__({"temperature": list(temperatures)}, {"temperature": self.start})

    def answer(self) -> None:
        """Soften the answers by the temperature chosen now, and redraw."""
        temperature = self.choice()["temperature"]
        probabilities = (self.logits / temperature).softmax(dim=1)
        self.show(self.live.png(probabilities), self.live.describe(probabilities))
        self.status = (
            f"The likeliest class has <b>{probabilities.amax(dim=1).mean():.1%}</b> on average; the answers' entropy "
            f"is <b>{mean_entropy(self.logits, temperature):.2f} nats</b> "
            f"of {math.log(self.logits.shape[1]):.2f} at most."
        )

    def as_code(self) -> str:
        return f"(logits / {self.choice()['temperature']}).softmax(dim=1)"

    def reset(self) -> None:
        """Go back to where the explorer started; there are no earlier choices to forget."""
        self.choose(temperature=self.start)
