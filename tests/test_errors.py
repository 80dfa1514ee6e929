"""An error is one line that can be read and that no terminal obeys, whatever a file put into it."""

from __future__ import annotations

import pickle

import pytest

from gemelo.errors import FileFormatError, GemeloError, SessionBusyError, one_line


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\n", r"\n"),
        ("\x1b", r"\x1b"),
        ("\x00", r"\x00"),
        ("\x7f", r"\x7f"),
        ("\x9b", r"\x9b"),  # one character that begins an escape sequence
        ("\u2028", r"\u2028"),
        ("\u202e", r"\u202e"),  # turns what follows round
        ("\u200b", r"\u200b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(character: str, shown: str) -> None:
    assert str(GemeloError(f"a{character}b")) == f"a{shown}b"


def test_letters_of_any_script_stay() -> None:
    assert str(GemeloError("naïve 模型 🦙 قط")) == "naïve 模型 🦙 قط"


@pytest.mark.parametrize("filler", ["x", "\x1b", "é", "\u202e"])
def test_a_long_error_keeps_its_beginning_and_its_cure(filler: str) -> None:
    said = str(FileFormatError("config has name = " + filler * 1_000_000 + "; expected 1 to 7"))
    assert len(said) <= 500
    assert said.startswith("config has name = ") and said.endswith("; expected 1 to 7")
    assert " ... " in said


def test_a_text_at_the_limit_is_left_alone() -> None:
    assert one_line("x" * 500) == "x" * 500


def test_an_error_is_the_same_after_a_trip_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SessionBusyError("busy\nnow")))
    assert type(error) is SessionBusyError and str(error) == r"busy\nnow"
