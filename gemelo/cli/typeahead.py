"""Type-ahead: a terminal's mode while a model loads or answers, so that what is typed then waits.

Between two prompts a terminal is in cooked mode: it echoes what is typed into the answer, and turns
Enter into another key than the line editor knows. Here it is kept silent and byte by byte, as the
editor has it, but for the keys that send signals: so whatever is typed stays in the terminal's own
queue, and the next prompt shows and sends it, line by line. The mode is put back at the end, after
an error, and by the signals that end or stop a process.

    with kept_typeahead():
        load(); prompt(); answer()
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from gemelo.cli.terminal import interactive

if sys.platform != "win32":  # whose console has no such modes
    import termios

_ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT")
_PLAIN_PASTE = b"\x1b[?2004l"  # what an editor asks of a paste is not for the shell
_LOCAL, _INPUT, _KEYS = 3, 0, 6  # places in what tcgetattr gives

Mode = list[Any]


@contextmanager
def kept_typeahead() -> Iterator[None]:
    """Keep what is typed while nobody reads it for the prompt that comes; nothing without a
    terminal to type at."""
    if sys.platform == "win32" or not interactive():
        yield
        return
    mode = TerminalMode(sys.stdin.fileno())
    try:
        mode.keep()
        yield
    finally:
        mode.restore()


class TerminalMode:
    """The mode of a terminal and the handlers of signals, as they were and as they are kept."""

    def __init__(self, number: int) -> None:
        """number: its file descriptor."""
        self._number = number
        self._before: Mode = termios.tcgetattr(number)
        self._handlers: dict[signal.Signals, Any] = {}

    def keep(self) -> None:
        """No echo, no lines, Enter as it is; Ctrl-C and Ctrl-Z stay signals."""
        for name in _ENDING:
            self._handle(signal.Signals[name], self._end)
        self._handle(signal.SIGTSTP, self._stop)
        mode = termios.tcgetattr(self._number)
        mode[_LOCAL] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        mode[_INPUT] &= ~termios.ICRNL
        mode[_KEYS][termios.VMIN], mode[_KEYS][termios.VTIME] = 1, 0
        self._set(mode)

    def restore(self) -> None:
        """Mode and handlers as they were."""
        self._set(self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: signal.Signals, handler: Any) -> None:
        if signal.getsignal(number) == signal.SIG_DFL:  # else somebody wants it ignored
            self._handlers[number] = signal.signal(number, handler)

    def _set(self, mode: Mode) -> None:
        """Without losing what was typed; nothing if the terminal is gone."""
        with suppress(termios.error):
            termios.tcsetattr(self._number, termios.TCSANOW, mode)

    def _put_back(self) -> None:
        self._set(self._before)
        with suppress(OSError, AttributeError):
            os.write(sys.stderr.fileno(), _PLAIN_PASTE)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._put_back()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell finds its terminal as it was; `fg` finds this one as it is now."""
        now = termios.tcgetattr(self._number)
        self._put_back()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._stop)
        self._set(now)
