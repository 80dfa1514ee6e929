"""Request: a prompt and how to continue it, and the ticket of one that was handed in.

Whoever hands a request in gets a `Ticket` at once: it gives the pieces of text as they come, says
how the request ended, and cancels it. Pieces are at most as many as the answer has tokens, so a
reader that is slow, or never reads, holds up nobody and costs a bounded room; the KV cache of its
request is free when the answer is written, read or not.

    inbox = Inbox()
    ticket = engine.submit(Request(tokens, sampling), inbox)
    for delivery in inbox.until_ended(1): print(*delivery.pieces)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemelo.config import Submodel
from gemelo.config.sampling import Sampling
from gemelo.engine.completion import Completion
from gemelo.engine.continuation import Piece
from gemelo.engine.elastic.speculative import Draft
from gemelo.engine.timings import Timings
from gemelo.engine.tokens import Tokens

if TYPE_CHECKING:
    from gemelo.engine.delivery import Sink


@dataclass(frozen=True)
class Request:
    """A checked prompt, and how to continue it.

    submodel is the size that answers, None the engine's own; draft speculates. It fails when
    deadline_s have passed since it was handed in. salt keeps callers apart who must not find each
    other's prompts held: a request that is answered sooner shows what others have asked.
    """

    tokens: Tokens
    sampling: Sampling
    submodel: Submodel | None = None
    draft: Draft | None = None
    salt: str = ""
    deadline_s: float | None = None


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
