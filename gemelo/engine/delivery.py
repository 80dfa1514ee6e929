"""Delivery: pieces of text on their way from the engine's thread to whoever waits for them.

A step brings something to many requests, whose readers are often one: an event loop, or a thread
that waits for a list of prompts. So all that one reader gets of a step is handed over at once.
Waking somebody costs more than what he is told.

    inbox = Inbox()
    ticket = engine.submit(request, inbox)
    for ticket, pieces, is_last in inbox.until_ended(1): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from gemelo.engine.continuation import Piece
from gemelo.engine.request import Ticket


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
