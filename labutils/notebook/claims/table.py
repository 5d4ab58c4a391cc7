"""Tables of claims, each checked against the figures it rests on."""

import html

import pandas as pd

from labutils.notebook.finished import check_finished


def percent(accuracies: pd.Series) -> str:
    """Mean ± standard deviation of accuracies (fractions), in per cent, with their number.

    Raises:
        SettingError: one is missing, as that of a run which is not finished.
    """
    check_finished(accuracies.to_frame("accuracies"), "accuracies")
    values = 100 * accuracies
    return f"{values.mean():.2f} ± {values.std():.2f} % (n = {len(values)})"


class Claims:
    """A notebook's claims, each with the figure it rests on and whether that figure bears it out.

    >>> claims = Claims()
    >>> claims.add("One layer beats chance", "93.1 %", 0.931 > 0.1)
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, bool]] = []

    def add(self, claim: str, figure: str, holds: bool) -> None:
        """Add a claim, the figure computed for it, and whether it holds."""
        self.rows.append((claim, figure, bool(holds)))

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{html.escape(claim)}</td>'
            f'<td style="text-align:left">{html.escape(figure)}</td>'
            f"<td><b>{'holds' if holds else 'DOES NOT HOLD'}</b></td></tr>"
            for claim, figure, holds in self.rows
        )
        head = '<tr><th style="text-align:left">Claim</th><th style="text-align:left">Figure</th><th></th></tr>'
        return f"<table>{head}{rows}</table>"

    def __repr__(self) -> str:
        return "\n".join(
            f"[{'holds' if holds else 'DOES NOT HOLD'}] {claim}: {figure}" for claim, figure, holds in self.rows
        )
