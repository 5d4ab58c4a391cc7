"""The table of a notebook's claims, each with the figure it rests on and whether it holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from labutils.notebook.claims.comparison import Comparison, read_comparisons
from labutils.notebook.claims.statistics import SIGNIFICANCE, Difference, difference, holm
from labutils.notebook.finished import check_finished
from labutils.notebook.showing import html_table

HEAD = ("", "Claim", "Difference [95 % interval]", "n", "p (Holm)", "")


def percent(accuracies: pd.Series) -> str:
    """Mean ± standard deviation of accuracies (fractions), in per cent, with their number; of one run no deviation.

    Raises:
        SettingError: one is missing, as that of a run which failed.
    """
    check_finished(accuracies.to_frame("accuracies"), "accuracies")
    values = 100 * accuracies
    spread = f" ± {values.std():.2f}" * (len(values) > 1)
    return f"{values.mean():.2f}{spread} % (n = {len(values)})"


@dataclass(frozen=True)
class Row:
    """A claim: its figure in words, and the p of its difference; None where chance has no part in it."""

    claim: str
    figure: str
    counts: str
    holds: bool
    p: float | None = None


class Claims:
    """A notebook's claims as a numbered table.

    A claim about a difference holds if the difference has the sign and the size that the claim says, and if its p,
    adjusted for the number of claims in the table (Holm 1979), is below 5 %.

    Args:
        notebook: such as "01"; the claims of that notebook which compare banked runs come first.

    >>> claims = Claims()
    >>> claims.add("One layer beats chance", "93.1 %", 0.931 > 0.1)
    """

    def __init__(self, notebook: str | None = None) -> None:
        self.rows: list[Row] = []
        for comparison in read_comparisons(notebook) if notebook else ():
            self.add_comparison(comparison)

    def add(self, claim: str, figure: str, holds: bool) -> None:
        """Add a claim in which chance has no part, the figure computed for it, and whether it holds."""
        self.rows.append(Row(claim, figure, "", bool(holds)))

    def compare(
        self,
        claim: str,
        first: Sequence[float],
        second: Sequence[float] | float,
        *,
        unit: tuple[str, float] = ("points", 100.0),
        **margin: float,
    ) -> None:
        """Add the claim that one sample's mean is above another's, or above a number.

        Args:
            claim: the sentence.
            first, second: a value for each seed, or a number.
            unit: what the difference is given in, and by what it is multiplied for that.
            margin: `by` or `within`, as of `difference`.

        Raises:
            SettingError: as in `difference`.
        """
        self.rows.append(row_of(claim, [difference(first, second, **margin)], unit))

    def add_comparison(self, comparison: Comparison, table: pd.DataFrame | None = None) -> None:
        """Add a comparison of runs: those of the bank, or of a table."""
        self.rows.append(row_of(comparison.claim, comparison.compare(table), comparison.unit))

    def judged(self) -> pd.DataFrame:
        """A row a claim: claim, figure, n, p (Holm-adjusted; NaN where chance has no part in it), holds."""
        ps = [row.p for row in self.rows if row.p is not None]
        adjusted = iter(holm(ps))
        table = pd.DataFrame(
            [
                {"claim": row.claim, "figure": row.figure, "n": row.counts, "holds": row.holds}
                | {"p": float("nan") if row.p is None else next(adjusted)}
                for row in self.rows
            ],
            columns=["claim", "figure", "n", "p", "holds"],
        )
        table["holds"] = table["holds"].astype(bool) & ~(table["p"] >= SIGNIFICANCE)
        return table

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text: number, claim, figure, n, p, verdict."""
        return [
            (str(number), row.claim, row.figure, row.n, p_value(row.p), "holds" if row.holds else "DOES NOT HOLD")
            for number, row in enumerate(self.judged().itertuples(), start=1)
        ]

    def _repr_html_(self) -> str:
        return html_table([HEAD, *self.cells()])

    def __repr__(self) -> str:
        return "\n".join(
            f"{number}. [{verdict}] {claim}: {figure}" + f" ({n}; p {p if p.startswith('<') else f'= {p}'})" * bool(n)
            for number, claim, figure, n, p, verdict in self.cells()
        )


def row_of(claim: str, differences: Sequence[Difference], unit: tuple[str, float]) -> Row:
    """A claim about one difference or several, all of which must be as it says: the least certain one is given.

    Its p is the largest of all: that a claim about all of several is wrong is no likelier than for any one of them
    (Berger 1982).
    """
    judged = max(differences, key=lambda each: (each.p, -each.effect))
    figure = judged.in_unit(*unit)
    if len(differences) > 1:
        figure = f"in the least certain of {len(differences)} cases {figure}"
    return Row(claim, figure, judged.sizes(), judged.p < SIGNIFICANCE, judged.p)


def p_value(p: float) -> str:
    """A p value in words: two digits, or below what; nothing for none."""
    return "" if p != p else "< 0.0001" if p < 1e-4 else f"{p:.2g}"
