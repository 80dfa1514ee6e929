"""stdout carries the result and nothing else; a terminal is safe from what a model says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator

import pytest

from gemelo.cli import terminal
from gemelo.cli.terminal import Bar, note, print_json, show, size
from gemelo.errors import InputError


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


class Stdin:
    """A stdin that is a pipe with some bytes in it."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


WINDOWS = "\ufeffé\r\n日\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_says_how_stdin_is_written(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = WINDOWS.encode(encoding)
    monkeypatch.setattr("sys.stdin", Stdin(content))
    assert terminal.read_stdin() == "é\r\n日\r\n"
    assert list(terminal.text_lines(io.BytesIO(content))) == ["é\n", "日\n"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a\n", "\ufeffb"]),  # a mark is one at the beginning
        (b"a\rb\r\r\n\r\n\r", ["a\rb\r\n", "\n", "\r"]),
        (b"a\n\n", ["a\n", "\n"]),
    ],
)
def test_lines_of_text(content: bytes, lines: list[str]) -> None:
    assert list(terminal.text_lines(io.BytesIO(content))) == lines


def test_a_line_is_read_as_soon_as_it_is_there() -> None:
    given = []

    def source() -> Iterator[bytes]:
        for raw in (b"one\r\n", b"two\n"):
            given.append(raw)
            yield raw

    lines = terminal.text_lines(source())
    assert next(lines) == "one\n" and given == [b"one\r\n"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\xff", "stdin is not UTF-8: byte 0xff at position 1"),
        (b"ab\xc3", "stdin is not UTF-8: byte 0xc3"),
        (b"\xff\xfea\x00\x00\xd8a\x00", "stdin is not UTF-16"),
        (b"\xff\xfea", "stdin is not UTF-16"),
    ],
)
def test_stdin_that_is_no_text(
    content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(content))
    with pytest.raises(InputError, match=reason):
        terminal.read_stdin()
    with pytest.raises(InputError, match=reason):
        list(terminal.text_lines(io.BytesIO(content)))
