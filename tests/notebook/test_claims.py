"""Tables of claims, the means in them, and source code that is shown."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

import labutils as lab
from labutils.experiments import results
from labutils.notebook.claims import Claims, Comparison, difference, holm, percent, read_comparisons
from labutils.notebook.claims.comparison import FOLDER
from labutils.notebook.finished import check_finished
from labutils.notebook.showing import show_source


def test_source_is_that_of_the_installed_code():
    shown = show_source(lab.MLP.features)
    assert "def features(self, images: torch.Tensor)" in shown.data
    assert "highlight" in shown._repr_html_()


def test_percent_gives_mean_spread_and_number():
    assert percent(pd.Series([0.96, 0.97, 0.98])) == "97.00 ± 1.00 % (n = 3)"
    assert percent(pd.Series([0.96])) == "96.00 % (n = 1)"


def test_a_claim_without_chance_holds_as_it_says():
    claims = Claims()
    claims.add("Two is more than one", "2 > 1", 2 > 1)
    claims.add("One is <more> than two", "1 > 2", 1 > 2)
    assert repr(claims).splitlines() == [
        "1. [holds] Two is more than one: 2 > 1",
        "2. [DOES NOT HOLD] One is <more> than two: 1 > 2",
    ]
    page = claims._repr_html_()
    assert page.count("<tr>") == 3
    assert "DOES NOT HOLD" in page
    assert "&lt;more&gt;" in page


# What a difference is worth

SPREAD = st.lists(st.floats(0, 1, width=16), min_size=2, max_size=6).filter(lambda values: np.ptp(values) > 1e-3)


@given(SPREAD, SPREAD, st.floats(-0.5, 0.5), st.floats(0.01, 0.5))
def test_differences_are_those_of_statsmodels(first, second, by, within):
    means = CompareMeans(DescrStatsW(first), DescrStatsW(second))
    found = difference(first, second, by=by)
    assert found.effect == pytest.approx(np.mean(first) - np.mean(second))
    assert (found.low, found.high) == pytest.approx(means.tconfint_diff(usevar="unequal"))
    assert found.p == pytest.approx(means.ttest_ind("larger", usevar="unequal", value=by)[1], abs=1e-9)
    assert found.counts == (len(first), len(second))
    equal = difference(first, second, within=within)
    assert equal.p == pytest.approx(means.ttost_ind(-within, within, usevar="unequal")[0], abs=1e-9)


@given(SPREAD, st.floats(0, 1))
def test_a_sample_can_be_compared_with_a_number(first, number):
    found = difference(first, number)
    sample = DescrStatsW(first)
    assert found.p == pytest.approx(sample.ttest_mean(number, "larger")[1], abs=1e-9)
    assert (found.low + number, found.high + number) == pytest.approx(sample.tconfint_mean())
    assert found.counts == (len(first),)


def test_samples_without_spread_differ_for_certain_or_not_at_all():
    assert difference([0.5, 0.5], [0.25, 0.25]).p == 0
    assert difference([0.5, 0.5], [0.25, 0.25], by=0.25).p == 1
    assert difference([0.5, 0.5], 0.5).p == 1
    assert difference([0.5, 0.5], [0.25, 0.25], within=0.3).p == 0


@pytest.mark.parametrize("values", [[0.5], [], [0.5, math.nan], [0.5, math.inf]])
def test_too_few_or_missing_values_are_named(values):
    with pytest.raises(lab.SettingError, match=r"first: .* allowed: two values or more"):
        difference(values, [0.1, 0.2])


def test_p_values_are_adjusted_for_how_many_there_are():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_a_difference_that_would_hold_alone_need_not_hold_among_many():
    first, second = [0.90, 0.91, 0.92], [0.87, 0.88, 0.90]
    alone, many = Claims(), Claims()
    alone.compare("A beats B", first, second)
    for number in range(5):
        many.compare(f"A beats B, {number}", first, second)
    assert alone.judged()["holds"].tolist() == [True]
    assert many.judged()["holds"].tolist() == [False] * 5
    assert many.judged()["p"].tolist() == pytest.approx([5 * alone.judged()["p"].item()] * 5)


def test_a_difference_in_the_other_direction_or_too_small_does_not_hold():
    claims = Claims()
    claims.compare("down", [0.1, 0.11, 0.12], [0.9, 0.91, 0.92])
    claims.compare("by a point", [0.90, 0.91, 0.92], [0.895, 0.905, 0.916], by=0.01)
    claims.compare("up", [0.9, 0.91, 0.92], [0.1, 0.11, 0.12])
    assert claims.judged()["holds"].tolist() == [False, False, True]


# Comparisons of banked runs


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """A bank with one table: two depths at two widths, three seeds, and one depth with another rate."""
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    rows = [
        {"run": f"{depth}-{width}-{seed}-{lr}", "kind": "mlp", "depth": depth, "width": width, "lr": lr, "seed": seed}
        | {"test_top1": 0.9 + 0.02 * (depth == 2) * (width == 8) + 0.001 * seed}
        for depth, width, lr in ((1, 8, 0.1), (2, 8, 0.1), (1, 4, 0.1), (2, 4, 0.1), (3, 4, 0.2))
        for seed in range(3)
    ]
    results.save_results("some", pd.DataFrame(rows))
    return tmp_path


TWO_BEAT_ONE = {"claim": "two beat one", "bank": ("some",), "first": {"depth": 2}, "second": {"depth": 1}}


def test_a_comparison_takes_the_runs_of_either_side(bank):
    (found,) = Comparison(**TWO_BEAT_ONE, where={"width": 8}).compare()
    assert found.effect == pytest.approx(0.02)
    assert found.counts == (3, 3)
    (above,) = Comparison("above .91", ("some",), {"depth": 2, "width": 8}, 0.91).compare()
    assert above.effect == pytest.approx(0.011)


def test_a_run_that_two_banks_have_counts_once(bank):
    results.save_results("other", results.load_results("some"))
    (found,) = Comparison(**TWO_BEAT_ONE | {"bank": ("some", "other")}, where={"width": 8}).compare()
    assert found.counts == (3, 3)


def test_a_claim_over_several_settings_holds_if_it_does_in_each(bank):
    everywhere = Comparison(**TWO_BEAT_ONE, over={"width": [4, 8]})
    assert [round(each.effect, 6) for each in everywhere.compare()] == [0, 0.02]
    claims = Claims()
    claims.add_comparison(everywhere)
    claims.add_comparison(Comparison(**TWO_BEAT_ONE, over={"width": [8]}))
    assert claims.judged()["holds"].tolist() == [False, True]
    assert "in the least certain of 2 cases +0.00 points" in repr(claims)


def test_a_claim_about_several_kinds_of_runs_is_tested_for_each(bank):
    both_widths = TWO_BEAT_ONE | {"first": [{"depth": 2, "width": 8}, {"depth": 2, "width": 4}]}
    found = Comparison(**both_widths | {"second": {"depth": 1, "width": 4}}).compare()
    assert [round(each.effect, 6) for each in found] == [0.02, 0]
    one_is_confounded = both_widths | {"first": [{"depth": 2}, {"depth": 3}], "where": {"width": 4}}
    with pytest.raises(lab.SettingError, match="its sides differ in lr as well"):
        Comparison(**one_is_confounded).compare()


def test_sides_that_differ_in_what_the_claim_does_not_name_are_refused(bank):
    three_beat_one = TWO_BEAT_ONE | {"first": {"depth": 3}, "where": {"width": 4}}
    with pytest.raises(lab.SettingError, match="two beat one: its sides differ in lr as well"):
        Comparison(**three_beat_one).compare()
    assert Comparison(**three_beat_one, differ=("lr",)).compare()


def test_a_side_that_mixes_settings_or_has_no_runs_is_refused(bank):
    with pytest.raises(lab.SettingError, match="differ in width as well"):
        Comparison(**TWO_BEAT_ONE).compare()
    with pytest.raises(lab.SettingError, match="no run of some with"):
        Comparison(**TWO_BEAT_ONE, where={"width": 16}).compare()


def test_runs_on_different_data_are_not_compared(bank):
    table = results.load_results("some").assign(data="MNIST")
    for changed in (table["seed"] == 0, table["depth"] == 2):
        results.save_results("some", table.assign(data=table["data"].where(~changed, "stand-ins")))
        with pytest.raises(lab.SettingError, match="differ in data as well"):
            Comparison(**TWO_BEAT_ONE, where={"width": 8}).compare()


def test_settings_that_a_table_does_not_know_have_their_defaults(bank):
    table = results.load_results("some")
    newer = table[table["depth"] == 2].assign(run="new " + table["run"], depth=5, head_lr=2.0, averaging=0.0)
    results.save_results("newer", newer)
    comparison = {"claim": "five beat one", "bank": ("some", "newer"), "where": {"width": 8}}
    with pytest.raises(lab.SettingError, match="its sides differ in head_lr as well"):
        Comparison(**comparison, first={"depth": 5}, second={"depth": 1}).compare()


NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_courses_comparisons_differ_in_one_factor(notebook):
    for comparison in read_comparisons(notebook):
        assert comparison.compare(), comparison.claim


def test_unknown_notebooks_and_parts_of_claims_are_named(monkeypatch, tmp_path):
    with pytest.raises(lab.SettingError, match="09: no such name"):
        read_comparisons("09")
    monkeypatch.setattr("labutils.notebook.claims.comparison.FOLDER", tmp_path)
    (tmp_path / "01.yaml").write_text("claims:\n- {claim: a, bank: b, first: {}, second: 1, above: 2}\n")
    with pytest.raises(lab.SettingError, match="above: no such"):
        read_comparisons("01")


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
