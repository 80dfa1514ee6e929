"""Async engine: requests of an asyncio program, whose event loop never waits for a step.

The steps run in a thread of the model's (`engine.loop`), which hands over at once what a step has
brought to all requests. A request that nobody reads any more is cancelled, and gone within a step.

    async with gemelo.AsyncEngine(model) as engine:
        request = await engine.request("Once upon a time", temperature=0)
        async for piece in engine.submit(request):
            print(piece.text, end="")
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from gemelo.api.model import Model, PromptLike
from gemelo.engine.completion import Completion
from gemelo.engine.continuation import Piece
from gemelo.engine.delivery import Delivery, Ticket
from gemelo.engine.engine import Engine
from gemelo.engine.request import Request
from gemelo.errors import InputError


class AsyncEngine:
    """A model's requests in an event loop. Leaving the context cancels those under way."""

    def __init__(self, model: Model) -> None:
        if not isinstance(getattr(model, "engine", None), Engine):
            raise InputError(
                f"AsyncEngine takes a model, not {model!r:.80}: gemelo.load() gives one"
            )
        self.model = model
        self._sink: _EventSink | None = None
        self._streams: list[AsyncStream] = []  # that are under way

    async def request(self, prompt: PromptLike, **options: Any) -> Request:
        """What `Model.request` makes of a prompt, in a thread beside: text is tokenised and media
        are encoded there."""
        return await asyncio.to_thread(self.model.request, prompt, **options)

    def submit(self, request: Request) -> AsyncStream:
        """Hand a request in; its pieces come by `async for`.

        Raises InputError for one that can never fit in memory, UnavailableError where too many
        wait.
        """
        if not isinstance(request, Request):
            raise InputError(
                f"submit takes a Request, not {request!r:.80}: await engine.request(prompt)"
            )
        if self._sink is None or self._sink.events is not asyncio.get_running_loop():
            self._sink = _EventSink()
        stream = AsyncStream(Ticket(request, self._sink))
        self._sink.streams[stream.ticket] = stream
        try:
            self.model.engine.requests.submit(stream.ticket)
        except BaseException:
            del self._sink.streams[stream.ticket]
            raise
        self._streams = [one for one in self._streams if not one.is_over] + [stream]
        return stream

    async def generate(self, prompt: PromptLike, **options: Any) -> Completion:
        """Continue a prompt to its end."""
        stream = self.submit(await self.request(prompt, **options))
        async for _ in stream:
            pass
        return stream.completion()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *exception: object) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.cancel()
        for stream in streams:
            await stream.until_ended()


class AsyncStream:
    """A request's pieces as an async iterator, for one reader. `AsyncEngine.submit` makes it."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket, self.is_over = ticket, False
        self._pieces: deque[Piece] = deque()
        self._news = asyncio.Event()

    def cancel(self) -> None:
        """Give the request up. Its iterator ends."""
        self.ticket.cancel()

    def completion(self) -> Completion:
        """What was written so far; "cancelled" where it has not ended by itself."""
        return self.ticket.completion()

    async def until_ended(self) -> None:
        """Wait until nothing is left of the request."""
        while not self.is_over:
            self._news.clear()
            await self._news.wait()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Raises what ended the request, if an error did. Whoever leaves it cancels the request."""
        try:
            while True:
                while self._pieces:
                    yield self._pieces.popleft()
                if self.is_over:
                    break
                self._news.clear()
                await self._news.wait()
            if self.ticket.error is not None:
                raise self.ticket.error
        finally:
            self.ticket.cancel()

    def _push(self, delivery: Delivery) -> None:
        """What a step has brought; the last one perhaps nothing."""
        self._pieces.extend(delivery.pieces)
        self.is_over = delivery.is_last
        self._news.set()


class _EventSink:
    """Where deliveries to the streams of one event loop go."""

    def __init__(self) -> None:
        self.events = asyncio.get_running_loop()
        self.streams: dict[Ticket, AsyncStream] = {}

    def put(self, batch: list[Delivery]) -> None:
        """Called by the engine's thread: what a step has brought."""
        try:
            self.events.call_soon_threadsafe(self._deliver, batch)
        except RuntimeError:  # the event loop was closed: nobody is there to read
            for delivery in batch:
                delivery.ticket.cancel()
                self.streams[delivery.ticket].is_over = True

    def _deliver(self, batch: list[Delivery]) -> None:
        for delivery in batch:
            self.streams[delivery.ticket]._push(delivery)
            if delivery.is_last:
                del self.streams[delivery.ticket]
