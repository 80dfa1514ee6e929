"""stdout carries the result and nothing else; a terminal is safe from what a model says."""

from __future__ import annotations

import io
import json
import sys

import pytest

from gemelo.cli import terminal
from gemelo.cli.terminal import Bar, note, print_json, show, size


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_not_obeyed_by_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, wanted in ((Screen(), "a\n\t\ufffd[2J\ufffd"), (io.StringIO(), "a\n\t\x1b[2J\x9b")):
        monkeypatch.setattr(sys, "stdout", stream)
        show("a\n\t\x1b[2J\x9b")
        assert stream.getvalue() == wanted


@pytest.mark.parametrize(("encoding", "wanted"), [("utf-8", "é日"), ("ascii", "\\u00e9\\u65e5")])
def test_json_is_json_in_every_encoding(
    monkeypatch: pytest.MonkeyPatch, encoding: str, wanted: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    terminal.prepare()
    print_json({"text": "é日", "path": "\udcff"})
    said = raw.getvalue().decode(encoding)
    assert wanted in said
    assert json.loads(said) == {"text": "é日", "path": "\udcff"}


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    note("a note")
    with Bar("working") as bar:
        bar(1, 2)
    assert stdout.getvalue() == ""
    monkeypatch.setattr(sys, "stdout", None)
    show("text")
    print_json({})


def test_a_bar_is_drawn_on_a_terminal_once_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(screen: io.StringIO, patience_s: float, shown: bool = True) -> str:
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setattr(terminal, "_PATIENCE_S", patience_s)
        with Bar("working", shown) as bar:
            bar(1, 3)
            bar(2, 3)
            bar(3, 3)
        return screen.getvalue()

    assert "working" in drawn(Screen(), patience_s=0)
    assert drawn(Screen(), patience_s=60) == ""
    assert drawn(Screen(), patience_s=0, shown=False) == ""
    assert drawn(io.StringIO(), patience_s=0) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text
