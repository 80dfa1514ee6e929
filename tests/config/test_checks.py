"""What counts as a number from a file, and names in a message."""

from __future__ import annotations

from typing import Any

import pytest

from gemelo.config.checks import check_positive, check_whole, is_number, is_whole
from gemelo.errors import FileFormatError, listed


@pytest.mark.parametrize("value", [0, 1.5, -3, float("inf")])
def test_numbers(value: float) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, None, "1", [1], 1j])
def test_what_is_no_number(value: Any) -> None:
    assert not is_number(value) and not is_whole(value, 0, 9)


def test_whole_numbers_have_limits() -> None:
    assert is_whole(0, 0, 9) and is_whole(9, 0, 9)
    assert not is_whole(-1, 0, 9) and not is_whole(10, 0, 9) and not is_whole(3.0, 0, 9)
    with pytest.raises(FileFormatError, match="config has head_dim = 0; expected 1 to 16777216"):
        check_whole("head_dim", 0)


@pytest.mark.parametrize("value", [0, -1.0, True, "2", float("nan"), 1e30])
def test_what_is_not_positive(value: Any) -> None:
    with pytest.raises(FileFormatError, match="expected a number above 0"):
        check_positive("rms_norm_eps", value)


def test_names_in_a_message() -> None:
    assert listed([]) == "" and listed(["a", "b"]) == "a, b"
    assert listed(["a", "b", "c"], most=1) == "a and 2 more"
    assert listed(["abc", "def"], show=lambda name: name[:1]) == "a, d"
