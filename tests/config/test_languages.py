"""Languages by code and by name, and what is asked of a model in them."""

from __future__ import annotations

import pytest

from gemelo.config.languages import LANGUAGES, OTHER_NAMES, code_of, language_name
from gemelo.config.speech_task import Task
from gemelo.errors import MAX_CHARS, InputError


def test_instructions() -> None:
    assert Task().instruction == "Transcribe this audio:"
    assert Task("es").instruction == "Transcribe this audio into Spanish:"
    assert Task("es", "en").instruction == "Translate this audio from Spanish into English:"
    assert Task(None, "Catalan").instruction == "Translate this audio into Catalan:"
    assert Task("es", "en", True).instruction == (
        "Transcribe the following speech segment in Spanish, then translate it into English:"
    )
    for wrong in (Task("xx"), Task(" "), Task("es", None, True), Task("es", "klingon")):
        with pytest.raises(InputError):
            wrong.instruction  # noqa: B018


def test_the_table() -> None:
    """ISO 639-1, less Serbo-Croatian, which it has withdrawn; names are unique."""
    assert sum(len(code) == 2 for code in LANGUAGES) == 183
    assert len({*LANGUAGES.values()}) == len(LANGUAGES)
    assert not {*OTHER_NAMES} & {*LANGUAGES.values()} and {*OTHER_NAMES.values()} <= {*LANGUAGES}
    for code, name in LANGUAGES.items():
        assert language_name(code) == language_name(name) == name and code_of(name) == code


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("ES", "Spanish"),
        ("spanish", "Spanish"),
        (" Haitian  creole ", "Haitian Creole"),
        ("Castilian", "Spanish"),
        ("farsi", "Persian"),
        ("pt-br", "Brazilian Portuguese"),
        ("yue", "Cantonese"),
    ],
)
def test_a_language_is_known_in_any_case(word: str, wanted: str) -> None:
    assert language_name(word) == wanted


@pytest.mark.parametrize(
    ("word", "close"),
    [
        ("Spanihs", "is Spanish (es) meant?"),
        ("Portugese", "is Portuguese (pt)"),
        ("Filipno", "is Filipino (fil)"),
        ("klingon", "--language klingon is unknown; "),
        ("x" * 5000, "give a code such as es"),
        ("e\ns", "\\n"),
    ],
)
def test_an_unknown_language_is_refused_with_what_is_close(word: str, close: str) -> None:
    with pytest.raises(InputError) as raised:
        language_name(word, "--language")
    text = str(raised.value)
    assert close in text and "--languages` lists them" in text
    assert len(text) < MAX_CHARS and text.isprintable()
