"""How clear a difference between two samples is: Welch's t-test, its interval, and Holm's adjustment."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labutils.errors import SettingError, check_number

LEVEL = 0.95  # of intervals
SIGNIFICANCE = 1 - LEVEL  # a claim holds where its adjusted p is below this


@dataclass(frozen=True)
class Difference:
    """The difference between two samples' means.

    Attributes:
        effect: the first mean minus the second, or minus a number.
        low, high: its 95 % interval.
        p: how likely a difference this clear would be by chance, if there were none of the kind that is claimed.
        counts: how many values either sample has; one number where the second is a number.
    """

    effect: float
    low: float
    high: float
    p: float
    counts: tuple[int, ...]

    def in_unit(self, name: str = "points", factor: float = 100.0) -> str:
        """The effect and its interval, such as "+0.89 points [+0.65, +1.13]", both multiplied by the factor."""
        effect, low, high = (factor * value for value in (self.effect, self.low, self.high))
        return f"{effect:+.2f} {name} [{low:+.2f}, {high:+.2f}]"

    def sizes(self) -> str:
        """How many values either sample has, such as "n = 10 and 5"."""
        return f"n = {' and '.join(map(str, self.counts))}"


def difference(
    first: Sequence[float], second: Sequence[float] | float, *, by: float = 0.0, within: float | None = None
) -> Difference:
    """Compare the means of two samples, which may spread differently (Welch 1947), or of one with a number.

    Args:
        first: a value for each seed, from 2.
        second: such values, or a number.
        by: the claim is that the first mean is larger by more than this; p is one-sided.
        within: the claim is that the means differ by less than this, above 0, instead; p is the larger of the two
            one-sided tests' (Schuirmann 1987).

    Raises:
        SettingError: a sample with fewer than two values or one that is not finite, or a margin that is not allowed.
    """
    from scipy import stats

    check_number("by", by)
    if within is not None:
        check_number("within", within, 0, open_ends="low")
    values = sample("first", first)
    others = [] if np.ndim(second) == 0 else [sample("second", second)]
    centre = others[0].mean() if others else float(second)
    effect, counts = float(values.mean() - centre), tuple(len(side) for side in (values, *others))
    if all(np.ptp(side) == 0 for side in (values, *others)):  # all seeds agree to the last digit
        holds = effect > by if within is None else abs(effect) < within
        return Difference(effect, effect, effect, 0.0 if holds else 1.0, counts)

    def test(margin: float, alternative: str) -> object:
        with warnings.catch_warnings():  # scipy warns where the seeds of one side agree, which Welch's test allows
            warnings.simplefilter("ignore", RuntimeWarning)
            if others:
                return stats.ttest_ind(values - margin, others[0], equal_var=False, alternative=alternative)
            return stats.ttest_1samp(values - margin, centre, alternative=alternative)

    interval = test(0.0, "two-sided").confidence_interval(LEVEL)
    shift = 0.0 if others else centre  # scipy gives the interval of the mean itself
    p = test(by, "greater").pvalue
    if within is not None:
        p = max(test(-within, "greater").pvalue, test(within, "less").pvalue)
    return Difference(effect, float(interval.low - shift), float(interval.high - shift), float(p), counts)


def sample(name: str, values: Sequence[float]) -> np.ndarray:
    """Values as an array of two or more finite numbers."""
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise SettingError(name, values, "two values or more, all finite")
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted for how many there are, so that all of them together err as often as one (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [] if len(ps) == 0 else multipletests(ps, method="holm")[1].tolist()
