"""One way to say that a setting can't be used: its name, what was given, what is allowed."""

import difflib
import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class SettingError(ValueError):
    """A setting that can't be used.

    Attributes:
        setting: the name of the argument or of the configuration key, such as "training.epochs".
        given: the value that was given.
        allowed: in words, what would have been accepted.
    """

    def __init__(self, setting: str, given: object, allowed: str):
        super().__init__(f"{setting}: {given!r} was given; allowed: {allowed}")
        self.setting, self.given, self.allowed = setting, given, allowed


class UnknownSetting(SettingError):
    """A name that nothing answers to; the message offers the nearest one that exists."""

    def __init__(self, setting: str, known: Iterable[str]):
        known = sorted(known)
        # A name without its section is compared with names without theirs.
        comparable = {name if "." in setting else name.rpartition(".")[2]: name for name in known}
        nearest = difflib.get_close_matches(setting, comparable, n=1, cutoff=0.5)
        hint = f"; did you mean {comparable[nearest[0]]}?" if nearest else ""
        ValueError.__init__(self, f"{setting}: no such name{hint} (allowed: {', '.join(known)})")
        self.setting, self.given, self.allowed = setting, setting, ", ".join(known)


def check_whole(setting: str, value: object, low: int) -> None:
    """Accept whole numbers from `low` up."""
    if not is_whole(value, low):
        raise SettingError(setting, value, f"a whole number from {low}")


def check_counts(setting: str, values: object, length: int) -> None:
    """Accept lists of so many whole numbers from 1."""
    if not isinstance(values, list | tuple) or len(values) != length or not all(is_whole(value, 1) for value in values):
        raise SettingError(setting, values, f"{length} whole numbers from 1, such as {[2] * length}")


def is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def check_number(setting: str, value: object, low: float, high: float = math.inf, *, open_ends: str = "") -> None:
    """Accept finite numbers from `low` to `high`; `open_ends` names the ends left out: "low", "high" or "both"."""
    above = f"above {low:g}" if open_ends in ("low", "both") else f"from {low:g}"
    below = "" if high == math.inf else f" to below {high:g}" if open_ends in ("high", "both") else f" to {high:g}"
    inside = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (value > low if open_ends in ("low", "both") else value >= low)
        and (value < high if open_ends in ("high", "both") else value <= high)
    )
    if not inside:
        raise SettingError(setting, value, f"a number {above}{below}")


def check_finite(setting: str, rows: "torch.Tensor") -> None:
    """Accept rows (N, F) of finite numbers."""
    if not rows.isfinite().all():
        row = (~rows.isfinite()).any(dim=1).nonzero()[0].item()
        raise SettingError(setting, f"not finite in row {row}", "finite numbers")


def check_choice(setting: str, value: object, allowed: Collection[object]) -> None:
    """Accept one of a few values."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
        raise SettingError(setting, value, ", ".join(repr(choice) for choice in allowed))
