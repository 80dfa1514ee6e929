"""Delivery: pieces of text on their way from the engine's thread to whoever waits for them.

Whoever hands a request in gets a `Ticket` at once: it gathers the pieces, says how the request
ended, and cancels it. Pieces are at most as many as the answer has tokens, so a reader that is
slow, or never reads, holds up nobody and costs a bounded room; the KV cache of its request is free
when the answer is written, read or not.

A step brings something to many requests, whose readers are often one: an event loop, or a thread
that waits for a list of prompts. So all that one reader gets of a step is handed over at once.
Waking somebody costs more than what he is told.

    inbox = Inbox()
    queue.submit(Ticket(request, inbox))
    for ticket, pieces, is_last in inbox.until_ended(1): ...
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from gemelo.engine.completion import Completion
from gemelo.engine.continuation import Piece
from gemelo.engine.request import Request
from gemelo.engine.timings import Timings


class Ticket:
    """A request that was handed in: its pieces so far, and whether it has ended, and how; queue_s
    is how long it waited for room."""

    def __init__(self, request: Request, sink: Sink) -> None:
        self.request, self.sink = request, sink
        self.pieces: list[Piece] = []
        self.timings, self.seed = Timings(), 0
        self.submitted, self.queue_s = time.monotonic(), 0.0
        self.cancelled = self.ended = False
        self.error: BaseException | None = None

    @property
    def overdue(self) -> bool:
        """Whether its deadline has passed."""
        deadline_s = self.request.deadline_s
        return deadline_s is not None and time.monotonic() > self.submitted + deadline_s

    def cancel(self) -> None:
        """Give it up: before the next step nothing is left of it. Any thread may."""
        self.cancelled = True

    def completion(self) -> Completion:
        """What was written so far."""
        request = self.request
        return Completion.of(
            request.tokens.ids, self.pieces, self.timings, self.seed, request.sampling.n
        )


class Delivery(NamedTuple):
    """What a step has brought to one request; after the last one nothing comes."""

    ticket: Ticket
    pieces: list[Piece]
    is_last: bool


class Sink(Protocol):
    """Where a step's deliveries go, all at once; called by the engine's thread."""

    def put(self, batch: list[Delivery]) -> None: ...


class Inbox:
    """A sink for a reader that waits in a thread of its own."""

    def __init__(self) -> None:
        self._batches: SimpleQueue[list[Delivery]] = SimpleQueue()

    def put(self, batch: list[Delivery]) -> None:
        """Wake the reader."""
        self._batches.put(batch)

    def until_ended(self, num_tickets: int) -> Iterator[Delivery]:
        """What comes, until so many requests have ended. Raises the first error there is."""
        while num_tickets:
            for delivery in self._batches.get():
                yield delivery
                if delivery.is_last:
                    num_tickets -= 1
                    if delivery.ticket.error is not None:
                        raise delivery.ticket.error


class Courier(Protocol):
    """Who has something to deliver."""

    def take_deliveries(self) -> list[Delivery]:
        """What has come since it was asked last."""


def deliver(couriers: Iterable[Courier]) -> None:
    """Hand over what there is, to every sink once. What one cannot take is given up."""
    batches: dict[int, tuple[Sink, list[Delivery]]] = {}
    for courier in couriers:
        for delivery in courier.take_deliveries():
            sink = delivery.ticket.sink
            batches.setdefault(id(sink), (sink, []))[1].append(delivery)
    for sink, batch in batches.values():
        try:
            sink.put(batch)
        except Exception:  # nobody is there to read
            for delivery in batch:
                delivery.ticket.cancel()
