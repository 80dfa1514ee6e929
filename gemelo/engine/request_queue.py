"""Request queue: who waits, who is under way, and the sessions that ended requests leave behind.

A request begins when the KV cache that it may come to need fits beside what others have reserved,
in the order of arrival. What that is is known before it runs (`plan`), so that none runs out of
memory in the middle, and one that can never fit is refused at once. Sessions of ended requests stay
as long as nobody needs their room; a request that begins as one of them reads the rest alone
(`prefix_pool`).

    queue = engine.requests
    queue.submit(ticket)                       # raises if it can never fit, or too many wait
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gemelo.config import Submodel
from gemelo.engine.continuation import Piece
from gemelo.engine.delivery import Delivery, Ticket
from gemelo.engine.loop import StepLoop
from gemelo.engine.plan import Admission, Reservation, reserved_tokens
from gemelo.engine.prefix_pool import PrefixPool
from gemelo.engine.request import Request
from gemelo.engine.sequence import CachedSequence
from gemelo.engine.session import Session
from gemelo.engine.task import Task, Works
from gemelo.engine.turns import Line, Turn
from gemelo.errors import UnavailableError
from gemelo.kernels.quants import Floats

Key = tuple[Submodel | None, str]  # of held tokens: who wrote them, and for whom


class RequestQueue:
    """The requests of one engine; `limit` is how many may wait."""

    def __init__(
        self,
        new_sequence: Callable[[], CachedSequence],
        new_session: Callable[[CachedSequence], Session],
        loop: StepLoop,
        pool: PrefixPool[CachedSequence],
        admission: Admission,
        needed_bytes: Callable[[Request], int],
        limit: int = 256,
    ) -> None:
        """needed_bytes is what a request may come to take."""
        self.new_sequence, self.new_session, self.loop = new_sequence, new_session, loop
        self.pool, self.pool_bytes, self.admission = pool, pool.limit_bytes, admission
        self.needed_bytes, self.limit = needed_bytes, limit
        self._waiting: deque[Running] = deque()
        self._line, self._process = Line(), os.getpid()

    @property
    def _lock(self) -> threading.RLock:
        """What to hold while requests come and go. In the child of a fork there are none: those
        that were under way go on in its parent."""
        lock = self._line.lock
        if self._process != os.getpid():
            self._process = os.getpid()
            self._waiting.clear()
            self.admission.live.clear()
            self.pool.forget_busy()
        return lock

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    def submit(self, ticket: Ticket) -> None:
        """Put a request at the end of the line; any thread may.

        Raises InputError for one that can never fit, UnavailableError where too many wait.
        """
        nbytes = self.needed_bytes(ticket.request)
        self.admission.check(nbytes)
        with self._lock:
            if len(self._waiting) >= self.limit:
                raise UnavailableError(
                    f"{self.limit} requests wait already, which is the limit; ask again later"
                )
            running = Running(self, ticket, nbytes)
            try:
                self._waiting.append(running)
                self.loop.ask(running)
            except BaseException:  # whoever nobody serves would stand before all others
                self._waiting.remove(running)
                ticket.cancelled = True
                raise

    def admit(self, running: Running) -> Reservation | None:
        """The bytes of a request whose turn it is; None while it has to wait."""
        with self._lock:
            if running is not next(iter(self._waiting), None):
                return None
            reservation = self.admission.reserve(running.nbytes)
            if reservation is not None:
                self._waiting.popleft()
                self._share_memory()
            return reservation

    def leave(self, running: Running, sequence: CachedSequence | None) -> None:
        """A request has ended, begun or not."""
        with self._lock:
            if running in self._waiting:
                self._waiting.remove(running)
            if sequence is not None:
                self.pool.end(sequence)
            self._share_memory()

    @contextmanager
    def alone(self, request: Request) -> Iterator[tuple[Session, Turn]]:
        """A session and a turn for a caller who runs a request in his own thread.

        Raises InputError for one that can never fit.
        """
        self.admission.check(self.needed_bytes(request))
        sequence: CachedSequence | None = None
        try:
            sequence = self.loop.between_steps(lambda free: self.sequence(request, free))
            yield self.turn(request, sequence)
        finally:
            if sequence is not None:
                with self._lock:
                    self.pool.end(sequence)

    def clear(self) -> None:
        """Let go of all sequences that nobody has."""
        with self._lock:
            self.pool.keep_within(0)
            self.pool.keep_within(self.pool_bytes)

    def sequence(self, request: Request, may_copy: bool) -> CachedSequence:
        """One that holds as much of how a request begins as is worth it. `may_copy` says that no
        step is under way."""
        key = (request.submodel, request.salt)
        with self._lock:
            found = self.pool.take(request.tokens, key)
            if found is None or (found.copy and not may_copy):
                return self.pool.supersede(request.tokens, key) or self.new_sequence()
            if found.copy:
                return found.sequence.copy(found.end)
        found.sequence.forget(found.end)
        return found.sequence

    def turn(self, request: Request, sequence: CachedSequence) -> tuple[Session, Turn]:
        """A session on a sequence that others may copy from now on."""
        session = self.new_session(sequence)
        if request.submodel is not None:
            session.use(request.submodel)
        session.draft = request.draft
        with self._lock:
            self.pool.begin(sequence, (request.submodel, request.salt))
        return session, session.turns.begin()

    def _share_memory(self) -> None:
        """Sequences that ended have what those that run have not reserved, at most."""
        self.pool.keep_within(min(self.pool_bytes, self.admission.free_bytes))


class Running:
    """A request: waiting for room, or under way."""

    def __init__(self, queue: RequestQueue, ticket: Ticket, nbytes: int) -> None:
        self.queue, self.ticket, self.nbytes = queue, ticket, nbytes
        self.works: Works = []
        self._task: Task[None] | None = None
        self._sequence: CachedSequence | None = None
        self._session: Session | None = None
        self._turn: Turn | None = None
        self._reservation: Reservation | None = None
        self._pieces: list[Piece] = []

    @property
    def request(self) -> Request:
        """What is answered."""
        return self.ticket.request

    @property
    def given_up(self) -> bool:
        """Whether it was cancelled, or its time is over."""
        return self.ticket.cancelled or self.ticket.overdue

    def proceed(self) -> bool:
        """Begin if there is room, or go on with the scores of the works."""
        try:
            if self._task is None and not self._begin():
                return True
            self._advance([work.scores for work in self.works] if self.works else None)
        except Exception as error:
            self._end(error)
        return not self.ticket.ended

    def fail(self, error: BaseException | None) -> None:
        """End it; without an error it was cancelled, or came too late."""
        if error is None and not self.ticket.cancelled:
            error = UnavailableError(
                f"the request was not answered within its {self.ticket.request.deadline_s} s"
            )
        self._end(error)

    def take_deliveries(self) -> list[Delivery]:
        """Its new pieces, and its end."""
        pieces, self._pieces = self._pieces, []
        ended = self.ticket.ended
        return [Delivery(self.ticket, pieces, ended)] if pieces or ended else []

    def _begin(self) -> bool:
        self._reservation = self.queue.admit(self)
        if self._reservation is None:
            return False
        request, ticket = self.ticket.request, self.ticket
        self._sequence = self.queue.sequence(request, may_copy=True)  # this is between two steps
        session, self._turn = self.queue.turn(request, self._sequence)
        self._session = session
        session.cache.reserve(
            reserved_tokens(len(request.tokens), request.sampling.max_tokens, session.cache.context)
        )
        ticket.queue_s = time.monotonic() - ticket.submitted
        self._task = session.task(request.tokens, request.sampling)
        return True

    def _advance(self, scores: list[Floats] | None) -> None:
        """To the next works, with all pieces before them."""
        assert self._task is not None, "a request that goes on has begun"
        try:
            while isinstance(item := self._task.send(scores), Piece):
                self._pieces.append(item)
                self.ticket.pieces.append(item)
                scores = None
            self.works = item
        except StopIteration:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        """Nothing is left of it but what its session holds."""
        ticket, session = self.ticket, self._session
        if self._task is not None:
            self._task.close()
        if session is not None and self._turn is not None:
            ticket.timings, ticket.seed, self._turn.over = session.timings, session.seed, True
        if self._reservation is not None:
            self._reservation.release()
        self.queue.leave(self, self._sequence)
        ticket.error, ticket.ended, self.works = error, True, []
