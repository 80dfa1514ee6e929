"""Terminal I/O: stdout and stderr, JSON and tables, text from stdin, progress bars, SIGINT.

stdout carries the result alone: the model's words, a table, or one JSON object. Everything said to
people about it (notes, errors, progress bars) goes to stderr. A bar is drawn only on a terminal and
only once the work has taken long enough to be worth it, so that short commands never import rich.

    note("stopped after 256 tokens");  print_json({"text": "..."})
    with Interrupt() as interrupt: ...; interrupt.check()
"""

from __future__ import annotations

import codecs
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from gemelo.cli.wrapping import stderr_width, wrapped
from gemelo.errors import InputError, one_line

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

MAX_TEXT_BYTES = 64 << 20  # far more than any context holds
MOST_NOTED = 2000  # characters of a line for people
# What PowerShell writes. The longer mark comes first: it begins as the shorter one does.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PATIENCE_S = 0.5  # work shorter than this gets no bar
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
_CONTROLS |= {ord(kept): kept for kept in "\n\t"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def prepare() -> None:
    """Make both streams able to print anything: what an encoding lacks is written as an escape.

    On Windows a pipe or a file would get the code page, which has few letters; it gets UTF-8,
    unless PYTHONIOENCODING says otherwise.
    """
    own_choice = sys.platform != "win32" or os.environ.get("PYTHONIOENCODING")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if own_choice else "utf-8"  # None leaves it as it is
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def note(text: str) -> None:
    """One line for people, on stderr. What a file or a model put into it is shown, not obeyed.

    A terminal gets it broken between words.
    """
    page(wrapped(one_line(text, MOST_NOTED), stderr_width()))


def page(text: str) -> None:
    """Several lines of our own for people, on stderr: help, a table, a traceback."""
    if sys.stderr is not None:  # `2>&-` closes it, and print would then use stdout
        print(text.translate(_CONTROLS), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A part of the result, on stdout at once and without a line's end.

    A file or a pipe gets the text itself; on a terminal, control characters other than a line's end
    and a tab become U+FFFD, because a model may say anything and a terminal obeys them.
    """
    if text and sys.stdout is not None:
        harmless = text.translate(_CONTROLS) if sys.stdout.isatty() else text
        print(harmless, end="", flush=True)


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """The result as one JSON value on one line of stdout."""
    encoding = sys.stdout.encoding if sys.stdout is not None else None
    ascii_only = codecs.lookup(encoding or "ascii").name != "utf-8"
    print(json.dumps(value, ensure_ascii=ascii_only, allow_nan=False), flush=True)


def print_table(table: Table) -> None:
    """A rich table on stdout; as wide as it needs to be where stdout is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout is not None and sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(table)


def size(count: float) -> str:
    """Bytes for people: 1536 is 1.5 KiB."""
    unit = 0
    while abs(count) >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def interactive() -> bool:
    """Whether there is a person to ask: input and messages both go by a terminal."""
    return all(s is not None and s.isatty() for s in (sys.stdin, sys.stderr))


# ---- in ------------------------------------------------------------------------------------------


def argument_or_stdin(argument: str) -> str:
    """A text argument, or all of stdin where it is "-". Raises `InputError` for what is no text."""
    return read_stdin() if argument == "-" else checked_text("the prompt", argument)


def read_stdin() -> str:
    """Everything on stdin as text, without a byte order mark and else exactly; `InputError` for
    more than any context holds."""
    if sys.stdin is None:
        raise InputError("there is no stdin to read the text from; give it as an argument")
    if sys.stdin.isatty():
        note("reading the text from the terminal; Ctrl-D ends it")
    raw = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise InputError(
            f"stdin holds more than {size(MAX_TEXT_BYTES)}, and no model reads so much; cut it"
        )
    return text_of(raw)


def text_of(raw: bytes, source: str = "stdin") -> str:
    """Bytes as text, without a byte order mark; `source` names them in an error."""
    return decoded(raw, _decoder(raw), final=True, source=source)


def text_lines(source: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream of bytes as they come, each with a line feed for its end.

    What ends a line on Windows, a carriage return before the line feed, is one end as well.
    """
    decoder: codecs.IncrementalDecoder | None = None
    rest = ""
    for raw in source:
        decoder = decoder or _decoder(raw)
        *lines, rest = (rest + decoded(raw, decoder)).split("\n")
        yield from (line.removesuffix("\r") + "\n" for line in lines)
    if decoder is not None:
        rest += decoded(b"", decoder, final=True)
    if rest:
        yield rest


def decoded(
    raw: bytes,
    decoder: codecs.IncrementalDecoder,
    *,
    final: bool = False,
    source: str = "stdin",
) -> str:
    """The next bytes of a source as text. Raises `InputError` for what is none."""
    try:
        return decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        encoding = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
        raise InputError(
            f"{source} is not {encoding}: byte 0x{error.object[error.start]:02x} at position "
            f"{error.start}; convert it first, for example with iconv"
        ) from None


def _decoder(beginning: bytes) -> codecs.IncrementalDecoder:
    """Of UTF-8, unless a byte order mark says what else; the mark is no part of the text."""
    for mark, encoding in _MARKS.items():
        if beginning.startswith(mark):
            return codecs.getincrementaldecoder(encoding)()
    return codecs.getincrementaldecoder("utf-8-sig")()


def checked_text(what: str, text: str) -> str:
    """The text itself, unless it holds bytes of the command line that were not text."""
    encoding = sys.getfilesystemencoding()
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InputError(
                f"{what} is not valid text: character {position} is an unpaired surrogate "
                f"(U+{ord(character):04X}), left by bytes that are not {encoding}"
            )
    return text


# ---- meanwhile -----------------------------------------------------------------------------------


class Bar:
    """A progress bar on stderr that is gone when the work is done; call it with done and total."""

    def __init__(self, label: str, shown: bool = True) -> None:
        self._label = label
        self._shown = shown and sys.stderr is not None and sys.stderr.isatty()
        self._started = time.perf_counter()
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Draw how far the work is; removes the bar at its end."""
        if done >= total:
            self.close()
        elif self._shown and time.perf_counter() - self._started > _PATIENCE_S:
            self._draw(done, total)

    def _draw(self, done: int, total: int) -> None:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.add_task(self._label, total=total)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Interrupt:
    """Handles Ctrl-C (SIGINT) in a `with` block: the first asks to stop, the second stops at once.

    Asking leaves the work to end between two tokens, where everything it holds is whole.
    """

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if Ctrl-C was pressed: for a place where stopping is safe."""
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # as the handler before sees fit: not in the middle of an import
            (self._before if callable(self._before) else signal.default_int_handler)(number, frame)
        self.requested = True

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before or signal.default_int_handler)
