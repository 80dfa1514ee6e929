"""One turn at a time: threads that share a model or a session, streams in turns, and forks."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gemelo.api import Model, load
from gemelo.checkpoints.load import load_checkpoint
from gemelo.config.sampling import Sampling
from gemelo.engine.continuation import Piece
from gemelo.engine.decoder import Decoder
from gemelo.engine.engine import Engine
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.turns import Line, Turns
from gemelo.errors import InputError, SessionBusyError
from gemelo.kernels import native
from tests.engine.forking import child, forks
from tests.matformer import CONFIG, PROMPT, SMALL, tiny_gemma3n
from tests.native import needs_native
from tests.quantised import again, modules_of, native_of

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
PROMPTS = ("the capital", "of the thing", "a ring in an", "her")


@pytest.fixture(scope="module", params=["kernels", "numpy", "modules"])
def model(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Model:
    """Through the program, natively and in NumPy, and through modules."""
    loaded = load(tiny_checkpoint)
    decoder = loaded.engine.decoder
    assert isinstance(decoder, NativeDecoder)
    if request.param == "kernels":
        assert decoder.is_native == (native.module is not None)
        return loaded
    other: Decoder = modules_of(decoder)
    if request.param == "numpy":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "module", None)
            other = again(decoder)
    return Model(loaded.checkpoint, Engine(other, loaded.tokenizer))


@pytest.fixture(scope="module")
def wanted(model: Model) -> list[tuple[int, ...]]:
    return [model.generate(prompt, **GREEDY).token_ids for prompt in PROMPTS]


def tokens(pieces: Sequence[Piece]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.token_ids)


def in_thread(work: Callable[[], object]) -> list[object]:
    """What another thread got from `work`, or the error it raised."""
    got: list[object] = []

    def run() -> None:
        try:
            got.append(work())
        except SessionBusyError as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return got


# ---- a model -------------------------------------------------------------------------------------


def test_threads_share_a_model(model: Model, wanted: list[tuple[int, ...]]) -> None:
    """Generating and streaming at once: every answer is the one it would have been alone."""
    wrong: list[object] = []

    def work(first: int) -> None:
        for number in range(first, first + 4):
            place = number % len(PROMPTS)
            if number % 2:
                got = model.generate(PROMPTS[place], **GREEDY).token_ids
            else:
                got = tokens(list(model.stream(PROMPTS[place], **GREEDY)))
            if got != wanted[place]:
                wrong.append((place, got))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert wrong == []


def test_two_streams_in_turns_are_as_each_alone(
    model: Model, wanted: list[tuple[int, ...]]
) -> None:
    streams = [model.stream(prompt, **GREEDY) for prompt in PROMPTS[:3]]
    got: list[list[Piece]] = [[], [], []]
    for together in zip(*streams, strict=True):
        for pieces, piece in zip(got, together, strict=True):
            pieces.append(piece)
    assert [tokens(pieces) for pieces in got] == wanted[:3]


def test_generate_amid_a_stream(model: Model, wanted: list[tuple[int, ...]]) -> None:
    """In the same thread and in another, with n > 1 and without."""
    stream = model.stream(PROMPTS[0], **GREEDY)
    got = [next(stream)]
    assert model.generate(PROMPTS[1], **GREEDY).token_ids == wanted[1]
    got.append(next(stream))
    assert in_thread(lambda: model.generate(PROMPTS[2], **GREEDY).token_ids) == [wanted[2]]
    got.append(next(stream))
    several = model.generate(PROMPTS[3], **GREEDY | {"n": 2})
    assert [choice.token_ids for choice in several.choices] == [wanted[3]] * 2
    assert tokens([*got, *stream]) == wanted[0]


def test_a_stream_that_is_over_gives_its_session_back(model: Model) -> None:
    """Read to its end, closed, dropped, or dropped by another thread."""
    model.engine.requests.clear()
    list(model.stream(PROMPTS[0], **GREEDY))
    stream = model.stream(PROMPTS[0], **GREEDY)
    next(stream)
    stream.close()
    for _ in model.stream(PROMPTS[0], **GREEDY):
        break
    held = [model.stream(PROMPTS[0], **GREEDY)]
    next(held[0])
    in_thread(held.clear)
    gc.collect()
    model.generate(PROMPTS[0], **GREEDY)
    assert model.engine.requests.pool.num_idle == 1


def test_a_stream_left_open_stops_nobody(model: Model, wanted: list[tuple[int, ...]]) -> None:
    """What comes after has a session of its own, and keeps that."""
    model.engine.requests.clear()
    stream = model.stream(PROMPTS[0], **GREEDY)
    next(stream)
    assert in_thread(lambda: model.generate(PROMPTS[1], **GREEDY).token_ids) == [wanted[1]]
    assert model.generate(PROMPTS[1], **GREEDY).token_ids == wanted[1]
    assert model.engine.requests.pool.num_idle == 1


def test_another_beginning_has_a_new_session(model: Model, wanted: list[tuple[int, ...]]) -> None:
    """What only begins with <bos> as the last prompt did shares nothing worth keeping."""
    model.engine.requests.clear()
    model.generate(PROMPTS[0], **GREEDY)
    other = [2, *reversed(model.prompt(PROMPTS[1]).ids)]
    model.generate(other, **GREEDY)
    assert model.engine.requests.pool.num_idle == 2
    assert model.generate(PROMPTS[0], **GREEDY).token_ids == wanted[0]


# ---- a session -----------------------------------------------------------------------------------


def test_a_session_is_one_threads_at_a_time(model: Model, wanted: list[tuple[int, ...]]) -> None:
    """Whatever another thread tries amid a stream is refused, and the stream goes on rightly."""
    session, greedy = model.session(), Sampling(**GREEDY)
    ids = [list(model.prompt(prompt).ids) for prompt in PROMPTS]
    stream = session.stream(ids[0], greedy)
    got = [next(stream)]
    for work in (
        lambda: list(session.stream(ids[1], greedy)),
        lambda: session.read(ids[1]),
        lambda: session.write(ids[1]),
        lambda: session.use("E2B"),
    ):
        (error,) = in_thread(work)
        assert isinstance(error, SessionBusyError) and "model.session()" in str(error)
        got.append(next(stream))
    assert tokens([*got, *stream]) == wanted[0]
    assert in_thread(lambda: tokens(list(session.stream(ids[1], greedy)))) == [wanted[1]]


def test_a_turn_while_a_step_runs_is_refused(model: Model, wanted: list[tuple[int, ...]]) -> None:
    """Another thread's, and one from within."""
    session, greedy = model.session(), Sampling(**GREEDY)
    ids = list(model.prompt(PROMPTS[0]).ids)
    refused: list[object] = []

    def progress(done: int, total: int) -> None:
        refused.extend(in_thread(lambda: session.read(ids)))
        with pytest.raises(SessionBusyError):
            session.read(ids)

    assert tokens(list(session.stream(ids, greedy, progress))) == wanted[0]
    assert refused and all(isinstance(error, SessionBusyError) for error in refused)


@pytest.mark.parametrize("later", ["stream", "read", "write"])
def test_a_stream_behind_a_later_turn(
    model: Model, wanted: list[tuple[int, ...]], later: str
) -> None:
    """It says so, each time, rather than going on from what others wrote; the later is right."""
    session, greedy = model.session(), Sampling(**GREEDY)
    ids, others = (list(model.prompt(prompt).ids) for prompt in PROMPTS[:2])
    stale = session.stream(ids, greedy)
    next(stale)
    if later == "stream":
        newer = session.stream(others, greedy)
        first = next(newer)
        with pytest.raises(SessionBusyError, match="has gone on with another turn"):
            next(stale)
        assert tokens([first, *newer]) == wanted[1]
    else:
        session.read(others) if later == "read" else session.write(others)
        with pytest.raises(SessionBusyError, match="has gone on with another turn"):
            next(stale)
        assert session.ids == others
    assert list(stale) == []
    assert tokens(list(session.stream(ids, greedy))) == wanted[0]


def test_several_continuations_are_one_turn(model: Model) -> None:
    """They have a cache of their own, but a stream is a stream."""
    session, greedy = model.session(), Sampling(**GREEDY)
    stale = session.stream(list(model.prompt(PROMPTS[0]).ids), Sampling(**GREEDY | {"n": 2}))
    next(stale)
    list(session.stream(model.prompt(PROMPTS[1]).ids, greedy))
    with pytest.raises(SessionBusyError):
        list(stale)


def test_a_nested_model_in_turns(tiny_checkpoint: Path) -> None:
    """Speculating and changing its size: a stream that was passed says so; `use` amid one's own
    stream is no turn."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    whole = Engine(native_of(tiny_gemma3n(CONFIG)), checkpoint.tokenizer, chunk=16)
    model = Model(checkpoint, whole)
    wanted = model.generate(PROMPT, **GREEDY).token_ids
    session = model.session()
    draft = session.speculate(SMALL, gamma=2)
    stream = session.stream(PROMPT, **GREEDY)
    got = [next(stream)]
    assert model.generate(PROMPT, **GREEDY).token_ids == wanted
    assert tokens([*got, *stream]) == wanted and draft.rounds
    with pytest.raises(InputError, match="is unknown"):
        session.speculate("E9B")
    session = model.session()
    stream = session.stream(PROMPT, Sampling(**GREEDY))
    next(stream)
    session.use(SMALL)
    next(stream)
    (error,) = in_thread(lambda: session.use("E4B"))
    assert isinstance(error, SessionBusyError) and session.active == SMALL
    assert len(list(stream)) > 1


def test_a_turn_that_failed_is_over() -> None:
    turns = Turns()
    turn = turns.begin()
    with pytest.raises(KeyboardInterrupt):
        turn.run(signal.raise_signal, signal.SIGINT)
    assert not turn.running and turns.begin() is not turn
    with pytest.raises(ZeroDivisionError):
        turns.once(divmod, 1, 0)
    assert turns.claim() is not None


def test_an_open_turn_is_not_claimed() -> None:
    turns = Turns()
    turn = turns.claim()
    assert turn is not None and turns.claim() is None
    turn.over = True
    assert turns.claim() is not None, "nobody holds it"
    assert turns.claim() is not None


# ---- forks ---------------------------------------------------------------------------------------


@forks
@pytest.mark.parametrize(("threads", "count"), [(1, 6), (2, 2)])
@needs_native
def test_forks_while_another_thread_generates(
    tiny_checkpoint: Path, threads: int, count: int
) -> None:
    """The child generates, on the model and on a session of its own; the parent goes on rightly."""
    model = load(tiny_checkpoint)
    native.set_threads(threads)
    first, second = (model.generate(prompt, **GREEDY).token_ids for prompt in PROMPTS[:2])
    wrong, over = [], threading.Event()

    def generate() -> None:
        while not over.is_set():
            if model.generate(PROMPTS[0], **GREEDY).token_ids != first:
                wrong.append(1)

    def in_child() -> bool:
        session, ids = model.session(), list(model.prompt(PROMPTS[0]).ids)
        return (
            model.generate(PROMPTS[1], **GREEDY).token_ids == second
            and tokens(list(session.stream(ids, Sampling(**GREEDY)))) == first
        )

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        assert [child(in_child) for _ in range(count)] == [0] * count
    finally:
        over.set()
        thread.join(60)
        native.set_threads(1)
    assert wrong == [] and not thread.is_alive()


@forks
def test_what_threads_left_behind_held_stays_behind() -> None:
    """A turn that stood still and a lock, of a thread that the child does not have."""
    turns, line, ready, over = Turns(), Line(), threading.Event(), threading.Event()

    def hold() -> None:
        turn = turns.begin()
        with line.lock:
            ready.set()
            over.wait(60)
        turn.over = True

    def in_child() -> bool:
        with line.lock:
            return turns.claim() is not None and turns.begin() is not None

    thread = threading.Thread(target=hold)
    thread.start()
    assert ready.wait(60)
    assert turns.claim() is None
    assert child(in_child, 20.0) == 0
    over.set()
    thread.join(60)


# ---- files that change in the middle of a turn ---------------------------------------------------

MIDWAY = """
import os, shutil, signal, sys
import gemelo
from gemelo.errors import FileFormatError
shutil.copy(sys.argv[1], sys.argv[2])
model = gemelo.load(sys.argv[2], threads=1, repack=False)
pieces = model.stream([2, 300, 301], max_tokens=20, ignore_eos=True, temperature=0)
next(pieces)
{change}
try: print(len(list(pieces)))
except FileFormatError as error: print(error)
"""
CHANGES = {
    "cut short, and SIGBUS is another's by now": (
        "signal.signal(signal.SIGBUS, lambda *_: None); os.truncate(sys.argv[2], 4096)",
        "was cut short while it was in use",
    ),
    "written over in time only": (  # its weights make sense, and are not what they were
        "os.utime(sys.argv[2], (1, 1))",
        "was written to while it was in use",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="maps are watched on Linux")
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_in_the_middle(
    change: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A turn that may have read it ends with an error, whoever has the signal."""
    code, said = CHANGES[change]
    script = MIDWAY.format(change=code)
    words = [sys.executable, "-c", script, str(tiny_checkpoint), str(tmp_path / "model.gguf")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert said in done.stdout, done.stderr
