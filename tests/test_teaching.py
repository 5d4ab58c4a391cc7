import pandas as pd

import labutils as lab
from labutils.teaching import Claims, percent, show_source


def test_source_is_that_of_the_installed_code():
    shown = show_source(lab.MLP.features)
    assert "def features(self, images: torch.Tensor)" in shown.data
    assert "highlight" in shown._repr_html_()


def test_percent_gives_mean_spread_and_number():
    assert percent(pd.Series([0.96, 0.97, 0.98])) == "97.00 ± 1.00 % (n = 3)"


def test_a_claim_that_does_not_hold_says_so():
    claims = Claims()
    claims.add("Two is more than one", "2 > 1", 2 > 1)
    claims.add("One is <more> than two", "1 > 2", 1 > 2)
    assert repr(claims).splitlines() == [
        "[holds] Two is more than one: 2 > 1",
        "[DOES NOT HOLD] One is <more> than two: 1 > 2",
    ]
    page = claims._repr_html_()
    assert page.count("<tr>") == 3
    assert "<b>DOES NOT HOLD</b>" in page
    assert "&lt;more&gt;" in page
