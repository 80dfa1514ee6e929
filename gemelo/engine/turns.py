"""Exclusive use of a session: one turn at a time, across streams, threads and forks.

A stream is a turn that stands still between two pieces, and while a step is computed other threads
run. So whoever begins or goes on with a turn says so here first. A turn of another thread is left
alone, running or standing still: a second one raises `SessionBusyError`. In one thread the newer
turn goes first, since nobody can tell a stream that was left for good from one that is to go on;
the older finds that out when it is resumed, and raises the same.

Nothing has to be put back after an interrupt, an exception or a stream that was dropped: a turn is
over when nobody holds it. And nothing stays locked in the child of a fork.

    turn = turns.begin()
    turn.run(step, tokens)        # raises SessionBusyError if others have gone on meanwhile
    turn.over = True
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gemelo.errors import SessionBusyError

P = ParamSpec("P")
R = TypeVar("R")

# For a moment, whenever a turn begins or goes on: one lock for all, so that a fork can hold it. A
# signal's handler or a finaliser may come in that moment, and enters again.
_changing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_changing.acquire,
        after_in_parent=_changing.release,
        after_in_child=_changing.release,
    )


class Turn:
    """A turn on one session or stream. Made by `Turns`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.thread, self.process = threading.get_ident(), os.getpid()
        self.running = self.over = False

    def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do a part of the turn; SessionBusyError if others have begun one since the last."""
        try:
            with _changing:
                self._turns.check(self)
                self.thread, self.process, self.running = threading.get_ident(), os.getpid(), True
            return work(*args, **kwargs)
        finally:
            self.running = False

    @property
    def lost(self) -> bool:
        """Whether it stands still, and its thread stayed behind in the process that forked."""
        reachable = self.thread == threading.get_ident() or self.process == os.getpid()
        return not (reachable or self.running)

    @property
    def elsewhere(self) -> bool:
        """Whether another thread has it; the threads of a process that was forked are gone."""
        return self.thread != threading.get_ident() and self.process == os.getpid()


class Turns:
    """The turns on one session or stream, of which the last that was begun may go on."""

    def __init__(self, noun: str = "session", own: str = "model.session()") -> None:
        """noun is what they are on, own how to get another one: for what errors say."""
        self._noun, self._own = noun, own
        self._last: weakref.ref[Turn] | None = None

    def begin(self) -> Turn:
        """A new turn, after which no older one goes on."""
        with _changing:
            last = self._open()
            if last is not None and (last.running or last.elsewhere):
                raise self._busy()
            return self._new()

    def claim(self) -> Turn | None:
        """A new turn if none is open; else None."""
        with _changing:
            last = self._open()
            return self._new() if last is None or last.lost else None

    def once(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """A turn that is over when `work` is done."""
        turn = self.begin()
        try:
            return turn.run(work, *args, **kwargs)
        finally:
            turn.over = True

    def beside(self) -> None:
        """Raise SessionBusyError if another thread has a turn: for changes between two steps."""
        with _changing:
            last = self._open()
            if last is not None and last.elsewhere:
                raise self._busy()

    def check(self, turn: Turn) -> None:
        """Raise SessionBusyError unless `turn` is the one that may go on."""
        if self._last is None or self._last() is not turn:
            raise SessionBusyError(
                f"the {self._noun} has gone on with another turn since this stream gave its last "
                f"piece; use a {self._noun} for each: {self._own}"
            )

    def _busy(self) -> SessionBusyError:
        return SessionBusyError(
            f"the {self._noun} is in the middle of a turn, in another thread or around this call; "
            "wait until it is over or close its stream, or use "
            f"a {self._noun} of your own: {self._own}"
        )

    def _open(self) -> Turn | None:
        last = None if self._last is None else self._last()
        return None if last is None or last.over else last

    def _new(self) -> Turn:
        turn = Turn(self)
        self._last = weakref.ref(turn)
        return turn


class Line:
    """Whoever has to wait waits here, one thread after another; one that is in may enter again.

    with line.lock: ...
    """

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    @property
    def lock(self) -> threading.RLock:
        """What to hold meanwhile. A forked process has its own: it has none of the threads that
        may have held its parent's."""
        with _changing:
            if self._process != os.getpid():
                self._lock, self._process = threading.RLock(), os.getpid()
            return self._lock
