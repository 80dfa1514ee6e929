"""Step loop: computes the steps that tasks ask for, of one caller at once, of many together.

While there is one caller, steps are computed in its own thread: nothing is handed over, and Ctrl-C
is its own. When a second one asks meanwhile, a thread is started that has the model from then on,
until nobody has asked for a moment. Before each step it looks what everybody waits for and lets the
scheduler choose; runs it, a native call for each size; and lets those go on whose works are done.
Tasks of requests run in that thread (`request_queue`); those of sessions stay in their callers'
threads, which wait here.

An error of a step ends the tasks that had a piece in it and no others. A caller who is interrupted
leaves as soon as no step runs that has a piece of its works. Ctrl-C may come between any two lines
of the main thread; so what is taken there is given back by a `finally` around the taking.

    loop = StepLoop(Scheduler())
    piece = loop.advance(task)                 # a task of this thread: its next piece of text

V vocabulary.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from gemelo.engine import step
from gemelo.engine.continuation import Piece
from gemelo.engine.decoder import StepPiece
from gemelo.engine.delivery import Courier, Delivery, deliver
from gemelo.engine.request import Request
from gemelo.engine.scheduler import Scheduler, Share
from gemelo.engine.task import R, Task, Works
from gemelo.engine.work import Work
from gemelo.errors import GemeloError, ModelClosedError, SessionBusyError
from gemelo.kernels.quants import Floats

LINGER_S = 0.05  # how long the thread stays when nobody asks
_AWAITED = 0.2  # of a step's time: how long callers that were just answered are waited for


class Result(NamedTuple):
    """What a step has given for the pieces of one work."""

    work: Work
    pieces: list[StepPiece]
    scores: list[Floats]


S = TypeVar("S")
OnEvent = Callable[[str, float, float, Request | None], None]


class Waiting(Courier, Protocol):
    """Somebody who waits for works, and for his turn where there are none yet."""

    works: Works

    @property
    def request(self) -> Request | None:
        """What is answered, if it is a request."""

    @property
    def given_up(self) -> bool:
        """Whether nobody waits any more."""

    def proceed(self) -> bool:
        """The works are done, if there were any: go on. Whether it is to be served further."""

    def fail(self, error: BaseException | None) -> None:
        """A step of these works failed with an error; None where they were given up."""


class StepLoop:
    """The steps of one model, for all its callers. `closed` says that there are no more."""

    def __init__(self, scheduler: Scheduler, on_event: OnEvent | None = None) -> None:
        """on_event is told what was done for whom, and when it began and ended, in seconds of
        `time.perf_counter`: "prefill" and "decode" of a step, and "sample" of an answer's tokens,
        for a request, or None for a session's turn. It is called by the thread that steps."""
        self.scheduler, self.on_event, self.closed = scheduler, on_event, False
        self._renew()
        _close_at_exit(self)

    def _renew(self) -> None:
        """Nothing under way: as in the child of a fork, which has none of its parent's threads."""
        self._process = os.getpid()
        # The second one is for whom it is given back by, if an interrupt came as it was taken.
        self._changing, self._stepping = threading.Lock(), threading.RLock()
        self._thread: threading.Thread | None = None
        self._steps_alone = False
        self._asked: queue.SimpleQueue[Waiting] = queue.SimpleQueue()

    @property
    def is_shared(self) -> bool:
        """Whether a step is under way, or a thread has the model."""
        self._check_process()
        return self._thread is not None or self._steps_alone

    # ---- a task of this thread -------------------------------------------------------------------

    def advance(self, task: Task[Any]) -> Piece | None:
        """Go on with a task to its next piece of text; None at its end."""
        scores: list[Floats] | None = None
        while True:
            try:
                item = task.send(scores)
            except StopIteration:
                return None
            if isinstance(item, Piece):
                return item
            scores = self.run(item)

    def finish(self, task: Task[R]) -> R:
        """A task that gives no text, to its end: what it returns."""
        scores: list[Floats] | None = None
        while True:
            try:
                item = task.send(scores)
            except StopIteration as end:
                result: R = end.value
                return result
            assert not isinstance(item, Piece), "a task that gives text is asked for it"
            scores = self.run(item)

    def run(self, works: Works) -> list[Floats]:
        """Works to their end: the scores of each, (logits_to_keep, V)."""
        while pending := [work for work in works if not work.done]:
            results = self.between_steps(partial(self._alone, pending))
            if results is None:
                Caller(works).wait(self)
            for work, pieces, scores in results or ():
                work.wrote(pieces, scores)
        return [work.scores for work in works]

    def between_steps(self, do: Callable[[bool], S]) -> S:
        """Do something while no step is under way; or, told False, while one may be."""
        self._check()
        stepping = self._stepping
        try:
            free = self._thread is None and stepping.acquire(blocking=False)
            self._check()  # it may have been closed meanwhile, and whoever closed it waits no more
            return do(free)
        finally:
            try:  # noqa: SIM105  a call of Python's own between would hear Ctrl-C
                stepping.release()
            except RuntimeError:  # it is not this thread's
                pass

    def _alone(self, works: Works, is_free: bool) -> list[Result] | None:
        """A step in this thread, one of each size; None where others have the model."""
        if not is_free:
            return None
        self._steps_alone = True
        try:
            groups = self.scheduler.batch(works).groups
            return [result for group in groups for result in self._step(group)]
        finally:
            self._steps_alone = False

    def close(self) -> None:
        """End all that is under way with `ModelClosedError`, as soon as its step is over."""
        self._check_process()
        self.closed = True
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join()
        with self._stepping:  # of a caller in a thread of its own
            pass

    def _check(self) -> None:
        self._check_process()
        if self.closed:
            raise ModelClosedError("the model was closed; load it again")

    def _check_process(self) -> None:
        if self._process != os.getpid():
            self._renew()

    def _step(self, group: Sequence[Share[Work]]) -> list[Result]:
        """One step: what the scheduler has chosen of works of one size."""
        parts = [(share.work, share.work.pieces(share.limit)) for share in group]
        pieces = [piece for _, taken in parts for piece in taken]
        scores = iter(step.forward(group[0].work.decoder, pieces))
        return [Result(work, taken, [next(scores) for _ in taken]) for work, taken in parts]

    # ---- the thread of many ----------------------------------------------------------------------

    def ask(self, waiting: Waiting) -> None:
        """Have somebody served by the loop's thread.

        Raises SessionBusyError in that thread itself, where a function that is told of progress
        runs.
        """
        self._check()
        if threading.current_thread() is self._thread:
            raise SessionBusyError(
                "the model is computing what this function was told of; ask it afterwards"
            )
        self.put(waiting)

    def put(self, waiting: Waiting) -> None:
        """The same of somebody who may ask; who is put there twice is served once."""
        with self._changing:
            self._asked.put(waiting)
            if self._thread is None or not self._thread.is_alive():  # Ctrl-C may come before start
                self._thread = threading.Thread(target=self._serve, name="gemelo", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        present: list[Waiting] = []
        with self._stepping:  # from here on nobody steps alone
            self._steps_alone = False
            while self._anybody(present):
                began = time.perf_counter()
                try:
                    num_answered = self.round(present)
                except BaseException as error:  # nobody is left to wait for ever
                    num_answered = _fail_all(present, error)
                until = time.perf_counter() + _AWAITED * (time.perf_counter() - began)
                self._await(present, num_answered, until)

    def _anybody(self, present: list[Waiting]) -> bool:
        """Whether somebody is here. If nobody has come for a moment, the thread is given up."""
        self._await(present, self._asked.qsize(), float("inf"))
        if not present:
            self._await(present, 1, time.perf_counter() + LINGER_S)
        with self._changing:
            if not present and self._asked.empty():
                self._thread = None
                return False
        return True

    def _await(self, present: list[Waiting], count: int, until: float) -> None:
        """Take in so many who come, as long as there is time."""
        while count > 0 and (left_s := until - time.perf_counter()) > 0:
            try:
                present.append(self._asked.get(timeout=min(left_s, LINGER_S)))
            except queue.Empty:
                return
            count -= 1

    def round(self, present: list[Waiting]) -> int:
        """Steps for what everybody waits for, one of each size; how many callers were answered."""
        self._let_go(present)
        failed = self._steps(present)
        num_answered = 0
        for waiting, error in failed:
            waiting.fail(error)
            present.remove(waiting)
        served = [w for w in present if all(work.done for work in w.works)]
        for waiting in served:
            began = time.perf_counter()
            if not waiting.proceed():
                present.remove(waiting)
                num_answered += isinstance(waiting, Caller)
            self._tell("sample", began, waiting)
        deliver([*served, *(waiting for waiting, _ in failed)])
        return num_answered

    def _tell(self, name: str, began: float, waiting: Waiting) -> None:
        if self.on_event is not None:
            self.on_event(name, began, time.perf_counter(), waiting.request)

    def _let_go(self, present: list[Waiting]) -> None:
        """Those who wait no longer, and everybody if the model was closed."""
        gone = [waiting for waiting in present if waiting.given_up or self.closed]
        for waiting in gone:
            present.remove(waiting)
            waiting.fail(ModelClosedError("the model was closed") if self.closed else None)
        deliver(gone)

    def _steps(self, present: list[Waiting]) -> list[tuple[Waiting, BaseException]]:
        """Run what the scheduler chooses; who had a piece in a step that failed, and its error."""
        owners = {id(work): waiting for waiting in present for work in waiting.works}
        works = [work for w in present for work in w.works if not work.done]
        if not works:
            return []
        failed: dict[int, tuple[Waiting, BaseException]] = {}
        batch, began = self.scheduler.batch(works), time.perf_counter()
        for group in batch.groups:
            started = time.perf_counter()
            try:
                results = self._step(group)
            except Exception as error:
                hurt = [owners[id(share.work)] for share in group]
                failed.update({id(waiting): (waiting, error) for waiting in hurt})
                continue
            for work, pieces, scores in results:
                name = "decode" if len(pieces) == 1 and pieces[0].exact else "prefill"
                self._tell(name, started, owners[id(work)])
                try:
                    work.wrote(pieces, scores)
                except BaseException as error:  # of a caller's own function that is told
                    failed[id(owners[id(work)])] = owners[id(work)], error
        self.scheduler.learn(batch, time.perf_counter() - began)
        return list(failed.values())


class Caller:
    """A task in a thread of its own, which waits for its works."""

    request: Request | None = None

    def __init__(self, works: Works) -> None:
        self.works, self.given_up = works, False
        self.error: BaseException | None = None
        self.over = threading.Event()

    def proceed(self) -> bool:
        """Its thread goes on; if there are more works, it comes with them."""
        self.over.set()
        return False

    def fail(self, error: BaseException | None) -> None:
        """Its thread gets the error."""
        self.error = error
        self.over.set()

    def take_deliveries(self) -> list[Delivery]:
        """Nothing: its text is made in its own thread."""
        return []

    def wait(self, loop: StepLoop) -> None:
        """Until a loop has done the works. An interrupt gives them up, and leaves when no step runs
        that has a piece of them."""
        try:
            loop.ask(self)
            self.over.wait()
        except GemeloError:  # not let in
            raise
        except BaseException:
            self.given_up = True
            while not self.over.is_set():
                with suppress(KeyboardInterrupt):
                    loop.put(self)  # it may not have been, when the interrupt came
                    self.over.wait()
            raise
        if self.error is not None:
            raise self.error


def _fail_all(present: list[Waiting], error: BaseException) -> int:
    """What no task is known to have caused ends them all; how many callers were answered."""
    gone, present[:] = list(present), []
    for waiting in gone:
        with suppress(Exception):
            waiting.fail(error)
    deliver(gone)
    return sum(isinstance(waiting, Caller) for waiting in gone)


def _close_at_exit(loop: StepLoop) -> None:
    """A thread that came back from a native step when the interpreter is gone would end the process
    by a crash."""
    known = weakref.ref(loop)

    def close() -> None:
        if (loop := known()) is not None:
            loop.close()

    atexit.register(close)
    finalizer = weakref.finalize(loop, atexit.unregister, close)
    finalizer.atexit = False  # at exit it would come first
