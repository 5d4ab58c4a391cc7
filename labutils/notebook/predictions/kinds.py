"""The kinds of predictions: what each asks for, how an answer is read, put into words and compared.

A kind has `fields`, the browser's controls in order: "control" (number, choice or slider), "label", and what that one
needs. The answer to all of them together is the prediction's value, which JSON can hold. `asked` says in words what can
be answered; `check` raises SettingError for a value that can be neither predicted nor measured; `words` are a value's
with its unit; `difference` says how far a prediction is from what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from labutils.errors import SettingError, check_number

STEPS = 100  # of a slider


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
        check_number(name, value)

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
        return "right" if value == measured else "wrong"


@dataclass(frozen=True)
class Curve:
    """A number from `low` to `high` at each of several places, such as depths.

    Attributes:
        across: what the places are, such as "depth".
        places: the numbers, in order.
    """

    across: str
    places: Sequence[float]
    low: float
    high: float
    unit: str = ""

    @property
    def fields(self) -> list[dict[str, object]]:
        step = (self.high - self.low) / STEPS
        slider = {"control": "slider", "low": self.low, "high": self.high, "step": step}
        return [slider | {"label": f"{self.across} {place:g}"} for place in self.places]

    @property
    def asked(self) -> str:
        places = ", ".join(f"{place:g}" for place in self.places)
        return f"a number from {self.low:g} to {with_unit(self.high, self.unit)} at {self.across} {places}"

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(self.places):
            raise SettingError(name, value, f"{len(self.places)} numbers, at {self.across} {list(self.places)}")
        for place, number in zip(self.places, value, strict=True):
            check_number(f"{name}, {self.across} {place:g}", number)

    def words(self, value: Sequence[float]) -> str:
        pairs = zip(self.places, value, strict=True)
        return ", ".join(f"{with_unit(number, self.unit)} at {place:g}" for place, number in pairs)

    def difference(self, value: Sequence[float], measured: Sequence[float]) -> str:
        mean = fmean(abs(one - other) for one, other in zip(value, measured, strict=True))
        return f"off by {with_unit(mean, points(self.unit))} on average"


Kind = Number | Choice | Curve


def with_unit(number: float, unit: str) -> str:
    """A number of at most four digits, with its unit."""
    return f"{number:.4g} {unit}".strip()


def points(unit: str) -> str:
    """The unit of a difference: between percentages it is points."""
    return "points" if unit == "%" else unit
