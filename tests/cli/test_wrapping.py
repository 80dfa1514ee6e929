"""Notes and lists in the width of a terminal."""

from __future__ import annotations

import os

import pytest

from gemelo.cli import commands, terminal, wrapping
from gemelo.cli.wrapping import stderr_width, two_columns, wrapped

ROWS = [(f"{name} {one.usage}", one.help) for name, one in commands.COMMANDS.items()]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_help_fits_and_breaks_between_words(width: int) -> None:
    text = two_columns(ROWS, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.split() == two_columns(ROWS, None).split()


def test_help_is_a_table_where_there_is_room() -> None:
    lines = two_columns(ROWS, 80).splitlines()
    assert {line.find(row[1].split()[0], 20) for row in ROWS for line in lines if row[1] in line}
    starts = {line.index(help) for _, help in ROWS for line in lines if help in line}
    assert len(starts) == 1
    assert len(two_columns(ROWS, None).splitlines()) == len(ROWS)


def test_paths_stay_whole_and_pipes_get_what_there_is() -> None:
    path = f"/{'folder/' * 20}file"
    assert f"{path}:" in wrapped(f"error: cannot read {path}: no such file", 40).splitlines()
    assert wrapped("a b " * 100, None) == "a b " * 100
    assert wrapped("  a b", 3) == "  a\n  b"
    assert wrapped("one\n\ntwo words", 5) == "one\n\ntwo\nwords"


def test_notes_break_between_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stderr_width() is None
    terminal.note("three short words")
    monkeypatch.setattr(wrapping.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((12, 9)))
    monkeypatch.setattr(wrapping.sys.stderr, "fileno", lambda: 2)
    assert stderr_width() == 12
    terminal.note("three short words")
    assert capsys.readouterr().err == "three short words\nthree short\nwords\n"
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((0, 0)))
    assert stderr_width() == wrapping.DEFAULT_WIDTH
