"""Strings: a sequence like any other, over one run of bytes."""

from __future__ import annotations

import numpy as np
import pytest

from gemelo.string_table import Strings

HELD = [b"<pad>", b"", b"a\0b", "▁zwölf".encode()]


@pytest.fixture
def strings() -> Strings:
    ends = np.cumsum([len(string) + 1 for string in HELD]) - 1
    return Strings(b"\0".join(HELD) + b"\0", ends)


def test_they_are_what_they_hold(strings: Strings) -> None:
    assert list(strings) == HELD
    assert [strings[at] for at in range(-4, 4)] == HELD + HELD
    assert strings[1:] == HELD[1:]
    assert strings[::-2] == HELD[::-2]
    assert b"a\0b" in strings
    assert list(reversed(strings)) == HELD[::-1]


def test_beyond_the_end_there_is_nothing(strings: Strings) -> None:
    for place in (4, -5):
        with pytest.raises(IndexError):
            strings[place]


def test_none_at_all() -> None:
    assert not Strings(b"", np.empty(0, np.int64))
