"""Requests of many callers, on a decoder that computes nothing: every text is what it is alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemelo.config import Submodel
from gemelo.config.sampling import Sampling
from gemelo.engine.delivery import Delivery, Inbox, Ticket
from gemelo.engine.engine import Engine
from gemelo.engine.loop import Waiting
from gemelo.engine.request import Request
from gemelo.engine.together import complete_all, stream_all
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.errors import InputError, ModelClosedError, SessionBusyError, UnavailableError
from tests.engine.fake_decoder import engine_of, request, text_alone
from tests.engine.forking import child, forks

ROOT = Path(__file__).parents[2]
SHARED = [1 + index * index % 90 for index in range(700)]


def ids_of(ticket: Ticket) -> list[int]:
    return [id for piece in ticket.pieces for id in piece.token_ids]


class Rounds:
    """An engine whose loop is turned by hand."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.inbox = engine, Inbox()
        self.present: list[Waiting] = []
        self.tickets: list[Ticket] = []
        engine.loop.ask = self.present.append  # type: ignore[method-assign]

    def submit(self, prompt: list[int], count: int, **options: Any) -> Ticket:
        ticket = Ticket(request(prompt, count, **options), self.inbox)
        self.engine.requests.submit(ticket)
        self.tickets.append(ticket)
        return ticket

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.engine.loop.round(self.present)

    def to_the_end(self) -> None:
        for _ in range(100_000):
            if not self.present:
                return
            self.turn()
        raise AssertionError("it does not end")


prompts = st.builds(
    lambda shared, own: SHARED[:shared] + own,
    st.sampled_from([0, 3, 64, 70, 300, 600]),
    st.lists(st.integers(1, 96), min_size=1, max_size=90),
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), prompts, st.integers(1, 80)),
        st.tuples(st.just("again"), st.integers(0, 30), st.integers(1, 80)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("turn"), st.integers(1, 20), st.just(0)),
    ),
    max_size=24,
)


# A ring that was restored holds its window and no more: what lies before is not there.
RESTORED: list[tuple[str, Any, int]] = [
    *(("submit", [1], 1), ("submit", [*SHARED[:300], 1, 1, 1, 1], 19), ("turn", 20, 0)),
    *(("again", 0, 1), ("again", 1, 3), ("turn", 2, 0), ("again", 3, 1), ("again", 1, 1)),
]


@example(RESTORED, 60_000, None)
@settings(max_examples=60, deadline=None)
@given(actions, st.sampled_from([60_000, 200_000, 1 << 22]), st.sampled_from([None, 64, 200]))
def test_every_text_is_what_it_is_alone_and_nothing_is_left(
    actions: list[tuple[str, Any, int]], limit: int, budget: int | None
) -> None:
    rounds = Rounds(engine_of(limit))
    rounds.engine.loop.scheduler.prefill_budget = budget
    for kind, what, count in actions:
        if kind == "submit":
            rounds.submit(what, count)
        elif kind == "turn":
            rounds.turn(what)
        elif rounds.tickets:
            ticket = rounds.tickets[what % len(rounds.tickets)]
            if kind == "cancel":
                ticket.cancel()
            else:  # as a chat goes on
                prompt = [*ticket.request.tokens.ids, *ids_of(ticket), 7]
                rounds.submit(prompt[:900], count)
    rounds.to_the_end()
    for ticket in rounds.tickets:
        prompt, wanted = list(ticket.request.tokens.ids), ticket.request.sampling.max_tokens
        alone = text_alone(prompt, wanted)
        assert ids_of(ticket) == alone[: len(ids_of(ticket))]
        assert ticket.ended and ticket.error is None
        assert ticket.cancelled or len(ids_of(ticket)) == wanted
    queue = rounds.engine.requests
    assert queue.admission.reserved_bytes == 0 == queue.num_waiting
    assert queue.pool.nbytes <= limit


def test_all_go_in_the_same_steps() -> None:
    rounds = Rounds(engine_of())
    tickets = [rounds.submit([number], 20) for number in range(1, 9)]
    rounds.to_the_end()
    assert [ids_of(ticket) for ticket in tickets] == [text_alone([n], 20) for n in range(1, 9)]
    decoder: Any = rounds.engine.decoder
    assert decoder.steps == [[1] * 8] * 20


def test_a_shared_beginning_is_read_once() -> None:
    rounds = Rounds(engine_of())
    rounds.submit([*SHARED, 5], 4)
    rounds.to_the_end()
    later = rounds.submit([*SHARED, 6, 7], 4)
    rounds.to_the_end()
    assert later.timings.reused_tokens == len(SHARED) // 64 * 64
    assert later.timings.prefill_tokens == 702 - later.timings.reused_tokens


def test_an_answer_is_made_anew_after_the_ring_has_wrapped() -> None:
    rounds = Rounds(engine_of())
    for _ in range(2):
        ticket = rounds.submit(SHARED, 200)
        rounds.to_the_end()
    assert ticket.timings.prefill_tokens <= 64


def test_a_ring_that_was_restored_reaches_back_no_further_than_what_was_kept() -> None:
    rounds = Rounds(engine_of())
    rounds.submit(SHARED, 200)
    rounds.to_the_end()
    again = rounds.submit(SHARED[:650], 5)  # goes back to 640, where a snapshot was taken
    rounds.turn()
    again.cancel()
    rounds.to_the_end()
    shorter = rounds.submit([*SHARED[:600], 5], 5)  # begins alike up to 576
    rounds.to_the_end()
    assert shorter.error is None
    assert ids_of(shorter) == text_alone([*SHARED[:600], 5], 5)


def test_other_salts_share_nothing() -> None:
    rounds = Rounds(engine_of())
    for salt in ("one", "other"):
        ticket = rounds.submit(SHARED, 2, salt=salt)
        rounds.to_the_end()
    assert ticket.timings.reused_tokens == 0


def test_what_can_never_fit_is_refused_with_its_bytes() -> None:
    rounds = Rounds(engine_of(5_000))
    with pytest.raises(InputError, match="needs .* kv_limit_bytes"):
        rounds.submit(SHARED, 300)
    assert not rounds.present


def test_too_many_waiting_are_refused() -> None:
    rounds = Rounds(engine_of())
    rounds.engine.requests.limit = 2
    rounds.submit([1], 2)
    rounds.submit([2], 2)
    with pytest.raises(UnavailableError, match="2 requests wait"):
        rounds.submit([3], 2)


def test_a_step_that_fails_ends_the_requests_in_it_alone() -> None:
    rounds = Rounds(engine_of(60_000))
    first = [rounds.submit([number, 2, 3], 30) for number in range(1, 3)]
    rounds.turn(5)
    decoder: Any = rounds.engine.decoder
    decoder.broken_after = len(decoder.steps)
    rounds.turn()
    later = rounds.submit([9, 9], 30)
    rounds.to_the_end()
    assert all(isinstance(ticket.error, MemoryError) for ticket in first)
    assert ids_of(later) == text_alone([9, 9], 30)
    assert rounds.engine.requests.admission.reserved_bytes == 0


def test_a_deadline_ends_a_request() -> None:
    rounds = Rounds(engine_of())
    ticket = rounds.submit([1, 2], 50, deadline_s=1e-9)
    rounds.turn(2)
    assert isinstance(ticket.error, UnavailableError) and not rounds.present


def test_a_cancelled_request_is_gone_within_a_step() -> None:
    rounds = Rounds(engine_of())
    ticket = rounds.submit([1, 2], 50)
    rounds.turn(3)
    ticket.cancel()
    rounds.turn()
    assert ticket.ended and not rounds.present
    assert rounds.engine.requests.admission.reserved_bytes == 0


def test_a_request_that_cannot_begin_ends_alone() -> None:
    rounds = Rounds(engine_of())
    first = rounds.submit([1, 2], 20)
    rounds.turn(3)
    part = Submodel((64,) * 2, (), "part")
    hurt = rounds.submit([3, 4], 20, submodel=part)  # which Gemma 3 does not have
    later = rounds.submit([9, 9], 20)
    rounds.to_the_end()
    assert isinstance(hurt.error, InputError) and hurt.ended
    assert ids_of(first) == text_alone([1, 2], 20)
    assert ids_of(later) == text_alone([9, 9], 20)
    assert rounds.engine.requests.admission.reserved_bytes == 0


def test_a_picture_longer_than_a_step_ends_its_request_alone() -> None:
    rounds = Rounds(engine_of())
    picture = EmbeddingSpan(1, np.zeros((80, 64), np.float32), b"sky", bidirectional=True)
    tokens = Tokens([1] * 90, [picture])
    hurt = Ticket(Request(tokens, Sampling(temperature=0, max_tokens=3)), rounds.inbox)
    rounds.engine.requests.submit(hurt)
    other = rounds.submit([1, 2], 20)
    rounds.to_the_end()
    assert isinstance(hurt.error, InputError) and "80 tokens" in str(hurt.error)
    assert ids_of(other) == text_alone([1, 2], 20)


def test_a_reader_that_raises_is_cancelled_alone() -> None:
    class Broken:
        def put(self, batch: list[Delivery]) -> None:
            raise ValueError("nobody reads")

    rounds = Rounds(engine_of())
    hurt = Ticket(request([4, 4], 50), Broken())
    rounds.engine.requests.submit(hurt)
    other = rounds.submit([1, 2], 20)
    rounds.to_the_end()
    assert hurt.ended and len(ids_of(hurt)) < 50
    assert ids_of(other) == text_alone([1, 2], 20)


# ---- with the loop's thread ----------------------------------------------------------------------


def loop_threads() -> int:
    return sum(thread.name == "gemelo" for thread in threading.enumerate())


def test_more_prompts_than_may_wait() -> None:
    engine = engine_of(1 << 22)
    engine.requests.limit = 4
    made = complete_all(engine.requests, [request([n], 2) for n in range(1, 30)])
    assert [list(one.token_ids) for one in made] == [text_alone([n], 2) for n in range(1, 30)]


def test_a_stream_that_is_left_cancels_all() -> None:
    engine = engine_of(1 << 22)
    stream = stream_all(engine.requests, [request([n], 900) for n in range(1, 5)])
    next(stream)
    stream.close()
    assert complete_all(engine.requests, [request([9], 3)])[0].token_ids
    assert engine.requests.admission.reserved_bytes == 0


def test_sessions_of_other_threads_go_in_the_same_steps() -> None:
    engine = engine_of(1 << 22)
    texts: dict[int, list[int]] = {}

    def run(number: int) -> None:
        sampling = Sampling(temperature=0, max_tokens=60)
        texts[number] = list(engine.session().generate([number, 5], sampling).token_ids)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: text_alone([number, 5], 60) for number in range(1, 7)}


def test_a_function_told_of_progress_that_asks_the_model_holds_up_nobody() -> None:
    engine = engine_of(1 << 22)
    stream = stream_all(engine.requests, [request([n], 900) for n in range(1, 5)])
    next(stream)  # the loop's thread has the model, and calls the function

    def progress(read: int, total: int) -> None:
        complete_all(engine.requests, [request([8], 3)])

    with pytest.raises(SessionBusyError):
        next(engine.session().stream([5] * 200, Sampling(temperature=0), progress))
    assert complete_all(engine.requests, [request([9], 3)])[0].token_ids
    stream.close()


@forks
def test_a_fork_leaves_requests_under_way_to_its_parent() -> None:
    engine = engine_of(200_000)
    stream = stream_all(engine.requests, [request([n], 900) for n in range(1, 60)])
    next(stream)
    assert engine.requests.num_waiting and engine.requests.admission.reserved_bytes

    def in_child() -> bool:
        [made] = complete_all(engine.requests, [request([3, 4], 4)])
        return list(made.token_ids) == text_alone([3, 4], 4) and not engine.requests.num_waiting

    assert child(in_child, 20.0) == 0
    stream.close()
    assert in_child()


AT_EXIT = """
import time
from tests.engine.fake_decoder import engine_of, request
from gemelo.engine.loop import StepLoop
from gemelo.engine.together import stream_all
step = StepLoop._step
def slow(self, group):
    print("begun", flush=True)
    time.sleep(0.1)
    found = step(self, group)
    print("done", flush=True)
    return found
StepLoop._step = slow
stream = stream_all(engine_of(1 << 22).requests, [request([5] * 20, 100)])
next(stream)
"""


def test_the_interpreter_goes_when_the_step_under_way_is_over() -> None:
    run = [sys.executable, "-c", AT_EXIT]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    steps = done.stdout.split()
    assert steps == ["begun", "done"] * (len(steps) // 2)


def test_closing_ends_what_is_under_way() -> None:
    engine = engine_of(1 << 22)
    stream = stream_all(engine.requests, [request([n], 900) for n in range(1, 5)])
    next(stream)
    engine.loop.close()
    with pytest.raises(ModelClosedError):
        list(stream)
    with pytest.raises(ModelClosedError):
        engine.session().generate([1, 2])
    assert loop_threads() == 0


# ---- what cannot be run --------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[2, 999], [2, -5], []])
def test_ids_that_cannot_be_run_are_refused_at_once(ids: list[int]) -> None:
    rounds = Rounds(engine_of())
    neighbour = rounds.submit([1, 2], 5)
    with pytest.raises(InputError):
        rounds.submit(ids, 5)
    rounds.to_the_end()
    assert ids_of(neighbour) == text_alone([1, 2], 5)


@pytest.mark.parametrize("deadline_s", ["x", -1, 0, True, float("nan"), float("inf")])
def test_a_deadline_is_a_time_to_come(deadline_s: Any) -> None:
    with pytest.raises(InputError, match="deadline_s = .* expected seconds"):
        request([1], 2, deadline_s=deadline_s)


@pytest.mark.parametrize("field", ["tokens", "sampling", "submodel", "draft", "salt"])
def test_a_field_of_another_type_is_refused(field: str) -> None:
    made = request([1], 2)
    fields: dict[str, Any] = {name: getattr(made, name) for name in ("tokens", "sampling")}
    with pytest.raises(InputError, match=f"a request's {field} is 5"):
        Request(**fields | {field: 5})


def test_a_lone_caller_keeps_to_the_limit() -> None:
    lone = engine_of(5_000).requests.alone(request(SHARED, 300))
    with pytest.raises(InputError, match="kv_limit_bytes"), lone:
        pass
