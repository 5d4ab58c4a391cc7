"""The kinds of predictions: what each asks for, how an answer is read, put into words, compared and drawn.

A kind has `fields`, a control each for the browser; the answer to all of them together is the prediction's value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import fmean
from typing import Protocol

from labutils.errors import SettingError

STEPS = 100  # of a slider


class Kind(Protocol):
    """What all kinds have in common. A value is what JSON can hold, as the methods' arguments say."""

    @property
    def fields(self) -> list[dict[str, object]]:
        """The browser's controls, in order: "control" (number, choice or slider), "label", and what that one needs."""

    @property
    def asked(self) -> str:
        """What is asked for, in words."""

    def check(self, name: str, value: object) -> None:
        """Raise SettingError where a value, called by this name, is none that can be predicted or measured."""

    def words(self, value: object) -> str:
        """A value in words, with its unit."""

    def difference(self, value: object, measured: object) -> str:
        """How far a prediction is from what was measured, in words."""


@dataclass(frozen=True)
class Number:
    """One number from `low` to `high`."""

    low: float
    high: float
    unit: str = ""

    @property
    def fields(self) -> list[dict[str, object]]:
        return [{"control": "number", "label": "your prediction", "low": self.low, "high": self.high}]

    @property
    def asked(self) -> str:
        return f"a number from {self.low:g} to {with_unit(self.high, self.unit)}"

    def check(self, name: str, value: object) -> None:
        check_finite(name, value)

    def words(self, value: float) -> str:
        return with_unit(value, self.unit)

    def difference(self, value: float, measured: float) -> str:
        return f"off by {with_unit(abs(value - measured), points(self.unit))}"


@dataclass(frozen=True)
class Choice:
    """One of several answers, each a text."""

    options: Sequence[str]

    @property
    def fields(self) -> list[dict[str, object]]:
        return [{"control": "choice", "label": "your prediction", "options": list(self.options)}]

    @property
    def asked(self) -> str:
        return f"one of: {'; '.join(self.options)}"

    def check(self, name: str, value: object) -> None:
        if value not in self.options:
            raise SettingError(name, value, ", ".join(map(repr, self.options)))

    def words(self, value: str) -> str:
        return value

    def difference(self, value: str, measured: str) -> str:
        return "right" if value == measured else "another"


@dataclass(frozen=True)
class Curve:
    """A number from `low` to `high` at each of several places, such as depths.

    Attributes:
        across: what the places are, such as "depth".
        places: the numbers, in order.
        logarithmic: whether the sliders, and the comparison, are.
    """

    across: str
    places: Sequence[float]
    low: float
    high: float
    unit: str = ""
    logarithmic: bool = False

    @property
    def fields(self) -> list[dict[str, object]]:
        low, high = (math.log10(end) if self.logarithmic else end for end in (self.low, self.high))
        slider = {"control": "slider", "low": low, "high": high, "step": (high - low) / STEPS}
        slider["logarithmic"] = self.logarithmic
        return [slider | {"label": f"{self.across} {place:g}"} for place in self.places]

    @property
    def asked(self) -> str:
        places = ", ".join(f"{place:g}" for place in self.places)
        return f"a number from {self.low:g} to {with_unit(self.high, self.unit)} at {self.across} {places}"

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(self.places):
            raise SettingError(name, value, f"{len(self.places)} numbers, at {self.across} {list(self.places)}")
        for place, number in zip(self.places, value, strict=True):
            check_finite(f"{name}, {self.across} {place:g}", number)

    def words(self, value: Sequence[float]) -> str:
        pairs = zip(self.places, value, strict=True)
        return ", ".join(f"{with_unit(number, self.unit)} at {place:g}" for place, number in pairs)

    def difference(self, value: Sequence[float], measured: Sequence[float]) -> str:
        pairs = list(zip(value, measured, strict=True))
        if self.logarithmic:
            if not all(number > 0 for pair in pairs for number in pair):
                return "off by more than any factor"
            return f"off by a factor of {math.exp(fmean(abs(math.log(one / other)) for one, other in pairs)):.3g}"
        mean = fmean(abs(one - other) for one, other in pairs)
        return f"off by {with_unit(mean, points(self.unit))} on average"


def check_finite(name: str, value: object) -> None:
    """Accept any finite number.

    Raises:
        SettingError: another value.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise SettingError(name, value, "a finite number")


def with_unit(number: float, unit: str) -> str:
    """A number of at most four digits, with its unit."""
    return f"{number:.4g} {unit}".strip()


def points(unit: str) -> str:
    """The unit of a difference: between percentages it is points."""
    return "points" if unit == "%" else unit
