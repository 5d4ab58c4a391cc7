import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labutils.errors import (
    LONGEST_SHOWN,
    SettingError,
    UnknownSetting,
    check_choice,
    check_counts,
    check_finite,
    check_number,
    check_text,
    check_whole,
)


@given(value=st.integers(-5, 5), low=st.integers(-5, 5))
def test_whole_numbers_are_taken_from_the_lowest_up(value, low):
    if value >= low:
        check_whole("depth", value, low)
    else:
        with pytest.raises(SettingError, match=f"depth: {value} was given; allowed: a whole number from {low}"):
            check_whole("depth", value, low)


def test_numpys_whole_numbers_are_whole_and_truth_values_are_not():
    check_whole("depth", np.int64(2), 1)
    for value in (True, 2.0, "2", None, 2**70):
        with pytest.raises(SettingError, match="depth: "):
            check_whole("depth", value, 1)


@given(value=st.floats(allow_nan=True, allow_infinity=True), ends=st.sampled_from(["", "low", "high", "both"]))
def test_numbers_are_taken_between_their_ends(value, ends):
    inside = 0 < value < 1 or (value == 0 and ends in ("", "high")) or (value == 1 and ends in ("", "low"))
    if inside and math.isfinite(value):
        check_number("share", value, 0, 1, open_ends=ends)
    else:
        with pytest.raises(SettingError, match="share: "):
            check_number("share", value, 0, 1, open_ends=ends)


@pytest.mark.parametrize("value", [1, 0, "True", None])
def test_a_choice_is_of_the_very_type(value):
    with pytest.raises(SettingError):
        check_choice("residual", value, (True, False))


def test_an_unknown_name_is_answered_with_the_nearest():
    known = ["model.depth", "model.width", "training.epochs"]
    assert "did you mean model.width" in str(UnknownSetting("wdith", known))
    assert "did you mean training.epochs?" in str(UnknownSetting("training.epoch", known))
    assert "did you mean" not in str(UnknownSetting("zzz", known))


def test_of_many_names_only_the_first_are_listed():
    few, many = UnknownSetting("x", ["aaa", "bbb"]), UnknownSetting("x", [f"name{number}" for number in range(100)])
    assert str(few).endswith("(there are aaa, bbb)")
    assert str(many).endswith(", …)")
    assert len(str(many)) < LONGEST_SHOWN


def test_an_error_carries_its_parts_and_shows_long_values_in_part():
    with pytest.raises(SettingError) as caught:
        check_whole("training.epochs", "9" * 10_000, 1)
    error = caught.value
    assert (error.setting, error.given, error.allowed) == ("training.epochs", "9" * 10_000, "a whole number from 1")
    assert len(str(error)) < LONGEST_SHOWN + 100


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        (lambda value: check_whole("k", value, 1, 5), 6, "a whole number from 1 to 5"),
        (lambda value: check_counts("blocks", value, 2, 9), (1, 10), "2 whole numbers from 1 to 9"),
        (lambda value: check_counts("blocks", value, 2, 9), (1, 2, 3), "2 whole numbers"),
        (lambda value: check_text("name", value), None, "name: None was given; allowed: text"),
        (lambda value: check_text("name", value, optional=True), 3, "name: 3 was given; allowed: text.* or null"),
        (lambda value: check_finite("rows", value), torch.tensor([[1.0], [math.inf]]), "not finite in row 1"),
    ],
)
def test_what_is_not_allowed_is_named(check, value, words):
    with pytest.raises(SettingError, match=words):
        check(value)
