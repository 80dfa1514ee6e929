"""Ctrl-C in the middle of whatever the engine does for the main thread, and exceptions of callers'
own functions: nobody else notices, and nothing stays taken.

Python hears signals when a function begins and when one of C's returns. So a profile function,
which is called then, raises KeyboardInterrupt at each such moment in turn.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from gemelo.config.sampling import Sampling
from gemelo.engine.engine import Engine
from gemelo.engine.together import complete_all, stream_all
from gemelo.engine.tokens import Tokens
from tests.engine.fake_decoder import engine_of, request, text_alone

PATIENCE_S = 60
GREEDY = Sampling(temperature=0, max_tokens=6)


class Interrupting:
    """Raises at the `moment`-th moment within the engine; `is_due` until it has."""

    def __init__(self, moment: int) -> None:
        self.moment, self.is_due = moment, True

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_return") and "/gemelo/engine/" in frame.f_code.co_filename:
            self.moment -= 1
            if self.moment < 0:
                sys.setprofile(None)
                self.is_due = False
                raise KeyboardInterrupt


def interrupted(work: Callable[[], object], moment: int) -> bool:
    """Whether `work` was still going on at that moment of it."""
    hook = Interrupting(moment)
    sys.setprofile(hook)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return not hook.is_due


@contextmanager
def others(engine: Engine) -> Iterator[None]:
    """Another thread's requests meanwhile, each of which has to be right."""
    over, wrong = threading.Event(), []

    def ask() -> None:
        number = 0
        while not over.is_set():
            number = number % 90 + 1
            [made] = complete_all(engine.requests, [request([number, 7], 5)])
            if list(made.token_ids) != text_alone([number, 7], 5):
                wrong.append(number)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive() and not wrong


def works_still(engine: Engine) -> None:
    """From other threads, by every way in; and nothing is left."""
    found: list[object] = []

    def ask() -> None:
        [made] = complete_all(engine.requests, [request([3, 4], 4)])
        alone = engine.session().generate([3, 4], temperature=0, max_tokens=4)
        found.extend([list(made.token_ids), list(alone.token_ids)])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert found == [text_alone([3, 4], 4)] * 2
    gc.collect()
    queue = engine.requests
    assert queue.num_waiting == 0 == queue.admission.reserved_bytes
    assert queue.pool.num_idle == len(queue.pool._entries), "some run for ever"


WAYS: dict[str, Callable[[Engine], Any]] = {
    "list": lambda engine: complete_all(engine.requests, [request([n, 2], 6) for n in (1, 2)]),
    "stream": lambda engine: list(stream_all(engine.requests, [request([5] * 70, 6)])),
    "session": lambda engine: engine.session().generate([5, 6] * 40, GREEDY),
    "alone": lambda engine: alone(engine),
}


def alone(engine: Engine) -> None:
    with engine.requests.alone(request([5] * 70, 6)) as (session, turn):
        list(session.answer(turn, Tokens([5] * 70), GREEDY))


@pytest.mark.parametrize(
    "beside", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "beside"]
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a finaliser
def test_an_interrupt_at_any_moment_touches_nobody(way: str, beside: bool) -> None:
    engine, moment = engine_of(1 << 22), 0
    while True:
        if beside:
            with others(engine):
                goes_on = interrupted(lambda: WAYS[way](engine), moment)
        else:
            goes_on = interrupted(lambda: WAYS[way](engine), moment)
        works_still(engine)
        if not goes_on:
            break
        moment += 1 + moment // 5
    assert moment > 50
