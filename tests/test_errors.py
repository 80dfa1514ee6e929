"""An error is one line that can be read and that no terminal obeys, whatever a file put into it."""

from __future__ import annotations

import pickle

import pytest

from gemelo.config.sampling import Sampling
from gemelo.errors import (
    FileFormatError,
    GemeloError,
    InputError,
    SessionBusyError,
    cut,
    one_line,
    shown,
)


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
    assert "... (1,000,000 characters)" in said


def test_a_long_text_of_words_loses_its_middle() -> None:
    said = str(FileFormatError("config has name = " + "a b " * 1000 + "; expected 1 to 7"))
    assert len(said) == 500 and " ... " in said and said.endswith("; expected 1 to 7")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x" * 80, f"'{'x' * 80}'"),
        ("x" * 100_012, f"'{'x' * 80}'... (100,012 characters)"),
        ("a b " * 100, f"'{'a b ' * 20}'... (400 characters)"),
        (7, "7"),
        ([1] * 1000, f"[{'1, ' * 27}... (3,000 characters)"),
    ],
)
def test_values_are_shown_short(value: object, expected: str) -> None:
    assert shown(value) == expected
    assert cut("x" * 80) == "x" * 80 and cut("y" * 81) == f"{'y' * 80}... (81 characters)"


@pytest.mark.parametrize("value", ["a b " * 1000, "it's " * 1000, 'say "x" ' * 1000, "x" * 4000])
def test_long_values_in_an_error_are_cut_and_counted(value: str) -> None:
    said = str(GemeloError(f"device {value!r} is not one of auto, cpu"))
    assert said.startswith("device ") and said.endswith("characters) is not one of auto, cpu")
    assert len(said) < 150


@pytest.mark.parametrize("name", sorted(set(vars(Sampling())) - {"logit_bias", "n", "stop"}))
def test_a_setting_of_any_kind_is_cut(name: str) -> None:
    for value in ("x" * 100_000, [0] * 100_000, {"x" * 100_000: 1}, b"y" * 100_000):
        with pytest.raises(InputError, match="characters") as caught:
            Sampling.of({name: value})
        assert len(str(caught.value)) < 200 and str(caught.value).startswith(f"{name} = ")


@pytest.mark.parametrize("settings", [{"logit_bias": {"x" * 9999: 1}}, {"x" * 9999: 1}])
def test_names_of_settings_are_cut_too(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"\(9,999 characters\)"):
        Sampling.of(settings)


def test_a_text_at_the_limit_is_left_alone() -> None:
    assert one_line("x" * 500) == "x" * 500


def test_an_error_is_the_same_after_a_trip_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SessionBusyError("busy\nnow")))
    assert type(error) is SessionBusyError and str(error) == r"busy\nnow"
