"""Tables of claims, the means in them, and source code that is shown."""

import math

import pandas as pd
import pytest

import labutils as lab
from labutils.notebook.claims import Claims, percent
from labutils.notebook.finished import check_finished, check_whole
from labutils.notebook.source import show_source


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


def test_the_courses_names_are_these():
    assert (lab.Claims, lab.percent, lab.show_source) == (Claims, percent, show_source)


def test_a_mean_of_an_unfinished_run_is_refused():
    with pytest.raises(lab.SettingError, match="accuracies: 'missing: row 7'"):
        percent(pd.Series([0.9, math.nan], index=[3, 7]))


def test_unfinished_runs_are_named():
    runs = pd.DataFrame({"run": ["ab", "cd", None], "test_top1": [0.5, math.nan, math.nan]})
    with pytest.raises(lab.SettingError, match="test_top1: 'missing: cd, row 2'"):
        check_finished(runs, "test_top1")
    check_finished(runs.head(1), "test_top1")


def test_runs_with_too_few_epochs_are_named_unless_their_patience_may_have_ended_them():
    epochs = pd.DataFrame({"run": ["ab", "ab", "cd"], "epoch": [1, 2, 1], "epochs": 2})
    for table in (epochs, epochs.assign(patience="none")):
        with pytest.raises(lab.SettingError, match="epochs: 'missing: cd'"):
            check_whole(table)
        check_whole(table.head(2))
    check_whole(epochs.assign(patience=3))
