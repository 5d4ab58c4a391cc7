import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labutils.errors import SettingError, UnknownSetting, check_choice, check_number, check_whole


@given(value=st.integers(-5, 5), low=st.integers(-5, 5))
def test_whole_numbers_are_taken_from_the_lowest_up(value, low):
    if value >= low:
        check_whole("depth", value, low)
    else:
        with pytest.raises(SettingError, match=f"depth: {value} was given; allowed: a whole number from {low}"):
            check_whole("depth", value, low)


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
    assert "did you mean model.width?" in str(UnknownSetting("wdith", known))
    assert "did you mean training.epochs?" in str(UnknownSetting("training.epoch", known))
    assert "did you mean" not in str(UnknownSetting("zzz", known))
