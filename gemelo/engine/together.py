"""Requests of one thread, computed together: their pieces as they come, or all completions.

for index, piece in stream_all(queue, requests): print(index, piece.text)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

from gemelo.engine.completion import Completion
from gemelo.engine.continuation import Piece
from gemelo.engine.delivery import Delivery, Inbox, Ticket
from gemelo.engine.request import Request
from gemelo.engine.request_queue import RequestQueue


def stream_all(queue: RequestQueue, requests: Sequence[Request]) -> Generator[tuple[int, Piece]]:
    """Every piece with the index of its request, as they come. The first error ends all."""
    inbox = Inbox()
    tickets = [Ticket(request, inbox) for request in requests]
    index = {id(ticket): number for number, ticket in enumerate(tickets)}
    for delivery in _deliveries(queue, tickets, inbox):
        for piece in delivery.pieces:
            yield index[id(delivery.ticket)], piece


def complete_all(queue: RequestQueue, requests: Sequence[Request]) -> list[Completion]:
    """Every request to its end, in their order. The first error ends all."""
    inbox = Inbox()
    tickets = [Ticket(request, inbox) for request in requests]
    for _ in _deliveries(queue, tickets, inbox):
        pass
    return [ticket.completion() for ticket in tickets]


def _deliveries(
    queue: RequestQueue, tickets: Sequence[Ticket], inbox: Inbox
) -> Generator[Delivery]:
    """What comes for tickets. They are handed in as the line has room, half of it at most, and
    cancelled when whoever waits for them leaves."""
    unsent = deque(tickets)
    coming = inbox.until_ended(len(tickets))
    try:
        while True:
            while unsent and (len(unsent) == len(tickets) or queue.num_waiting < queue.limit // 2):
                queue.submit(unsent.popleft())
            if (delivery := next(coming, None)) is None:
                return
            yield delivery
    finally:
        for ticket in tickets:
            ticket.cancel()
