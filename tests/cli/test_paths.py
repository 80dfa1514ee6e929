"""File names as they are typed and dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemelo.cli.paths import exists, media_in, typed_path, typed_paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where these files lie, which is home too."""
    for name in ("a b.png", "c.png", "it's.png", "par(1).jpg", "x.wav", "y.mp4", "z.txt"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("c.png ", ["c.png"]),
        ("a b.png", ["a b.png"]),
        ("'a b.png'", ["a b.png"]),
        ('"a b.png" ', ["a b.png"]),
        (r"a\ b.png", ["a b.png"]),
        ("it's.png", ["it's.png"]),
        (r"it\'s.png", ["it's.png"]),
        (r"'it'\''s.png'", ["it's.png"]),
        (r"par\(1\).jpg", ["par(1).jpg"]),
        ("~/c.png", ["~/c.png"]),
        ("c.png x.wav", ["c.png", "x.wav"]),
        ("'a b.png' c.png", ["a b.png", "c.png"]),
        ("nowhere with spaces.png", ["nowhere with spaces.png"]),
        ("'nowhere.png'", ["nowhere.png"]),
        ("don't.png", ["don't.png"]),
        ("file:///home/me/a%20b.png", ["/home/me/a b.png"]),
        ("file://localhost/c.png", ["/c.png"]),
        ("file:///nowhere/c.png file:///d.png", ["/nowhere/c.png", "/d.png"]),
        ("'file:///c.png'", ["/c.png"]),
        ("https://host/c.png", ["https://host/c.png"]),
        ("'not closed.png", ["'not closed.png"]),
        ("", []),
    ],
)
def test_names_as_they_are_typed(folder: Path, typed: str, names: list[str]) -> None:
    assert typed_paths(typed) == names


def test_one_name(folder: Path) -> None:
    assert typed_path("'a b.png' ") == "a b.png"
    assert typed_path("c.png x.wav") == "c.png x.wav"
    assert typed_path("my talk.json") == "my talk.json"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What is in c.png?", [("image", "c.png")]),
        ("what's in 'a b.png', and x.wav.", [("image", "a b.png"), ("audio", "x.wav")]),
        ("(see ~/y.mp4).", [("video", "~/y.mp4")]),
        ("see ~/y.mp4", [("video", "~/y.mp4")]),
        ("a b.png", [("image", "a b.png")]),
        ("z.txt and nowhere.png", []),
        ("a text of words", []),
        ("png .png wav", []),
        ("x" * 1_000_000, []),
        ("/" * 300 + ".png", []),
    ],
)
def test_media_that_a_message_names(folder: Path, text: str, found: list[tuple[str, str]]) -> None:
    assert media_in(text) == found


def test_what_cannot_be_asked_for_is_not_there(folder: Path) -> None:
    for name in ("", "a\0b", "x" * 5000, "~nobody-here/x", "/"):
        assert not exists(name)
