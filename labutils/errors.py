"""One way to say that a setting can't be used: its name, what was given, what is allowed."""

import difflib
import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGEST = 2**63 - 1  # of a whole number; torch and NumPy hold no larger one
LONGEST_SHOWN = 200  # characters of a value in an error
MOST_NAMES = 12  # that an error lists


class SettingError(ValueError):
    """A setting that can't be used.

    Attributes:
        setting: the name of the argument or of the configuration key, such as "training.epochs".
        given: the value that was given.
        allowed: in words, what would have been accepted.
    """

    def __init__(self, setting: str, given: object, allowed: str):
        shown = repr(given)
        if len(shown) > LONGEST_SHOWN:
            shown = f"{shown[:LONGEST_SHOWN]}…"
        super().__init__(f"{setting}: {shown} was given; allowed: {allowed}")
        self.setting, self.given, self.allowed = setting, given, allowed


class UnknownSetting(SettingError):
    """A name that does not exist; the message offers the three nearest names that do."""

    def __init__(self, setting: str, known: Iterable[str]):
        known = sorted(known)
        # A name without its section is compared with names without theirs.
        comparable = {name if "." in setting else name.rpartition(".")[2]: name for name in known}
        nearest = [comparable[name] for name in difflib.get_close_matches(setting, comparable, n=3, cutoff=0.5)]
        more = ", …" if len(known) > MOST_NAMES else ""
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        hint = hint or f" (there are {', '.join(known[:MOST_NAMES])}{more})"
        ValueError.__init__(self, f"{setting[:LONGEST_SHOWN]}: no such name{hint}")
        self.setting, self.given, self.allowed = setting, setting, ", ".join(known)


def check_whole(setting: str, value: object, low: int, high: int = LARGEST) -> None:
    """Accept whole numbers from `low` to `high`, NumPy's among them."""
    if not is_whole(value, low, high):
        upwards = is_whole(value, low, math.inf) or high != LARGEST  # the upper end matters
        raise SettingError(setting, value, f"a whole number from {low}" + (f" to {high}" if upwards else ""))


def check_counts(setting: str, values: object, length: int, high: int) -> None:
    """Accept lists of `length` whole numbers from 1 to `high`."""
    if (
        not isinstance(values, list | tuple)
        or len(values) != length
        or not all(is_whole(value, 1, high) for value in values)
    ):
        raise SettingError(setting, values, f"{length} whole numbers from 1 to {high}, such as {[2] * length}")


def is_whole(value: object, low: int, high: float) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high


def check_number(
    setting: str, value: object, low: float = -math.inf, high: float = math.inf, *, open_ends: str = ""
) -> None:
    """Accept finite numbers from `low` to `high`; `open_ends` names the ends left out: "low", "high" or "both"."""
    above = f"above {low:g}" if open_ends in ("low", "both") else f"from {low:g}"
    below = "" if high == math.inf else f" to below {high:g}" if open_ends in ("high", "both") else f" to {high:g}"
    inside = (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and (abs(value) <= LARGEST if isinstance(value, Integral) else math.isfinite(value))
        and (value > low if open_ends in ("low", "both") else value >= low)
        and (value < high if open_ends in ("high", "both") else value <= high)
    )
    if not inside:
        raise SettingError(setting, value, "a finite number" if low == -math.inf else f"a number {above}{below}")


def check_finite(setting: str, rows: "torch.Tensor") -> None:
    """Accept rows (N, F) of finite numbers."""
    if not rows.isfinite().all():
        row = (~rows.isfinite()).any(dim=1).nonzero()[0].item()
        raise SettingError(setting, f"not finite in row {row}", "finite numbers")


def check_choice(setting: str, value: object, allowed: Collection[object]) -> None:
    """Accept one of a few values."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
        raise SettingError(setting, value, ", ".join(repr(choice) for choice in allowed))


def check_flag(setting: str, value: object) -> None:
    """Accept True or False."""
    check_choice(setting, value, (True, False))


def check_text(setting: str, value: object, *, optional: bool = False) -> None:
    """Accept text that is not empty, and None where the setting is optional."""
    if not (isinstance(value, str) and value) and not (optional and value is None):
        raise SettingError(setting, value, "text of at least one character" + (", or null" if optional else ""))
