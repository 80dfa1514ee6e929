"""Requests of asyncio programs: pieces as they come, cancellation, errors, and many loops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import gemelo
from gemelo.errors import InputError, ModelClosedError, UnavailableError

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
PROMPTS = ["the", "capital of", "of the capital"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> gemelo.Model:
    return gemelo.load(tiny_checkpoint)


def run(work: Callable[[gemelo.AsyncEngine], Awaitable[Any]], model: gemelo.Model) -> Any:
    async def main() -> Any:
        async with gemelo.AsyncEngine(model) as engine:
            return await work(engine)

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_answers_are_those_of_generate(model: gemelo.Model) -> None:
    async def work(engine: gemelo.AsyncEngine) -> list[gemelo.Completion]:
        return await asyncio.gather(*(engine.generate(prompt, **GREEDY) for prompt in PROMPTS))

    found = run(work, model)
    assert [one.token_ids for one in found] == [
        model.generate(prompt, **GREEDY).token_ids for prompt in PROMPTS
    ]


def test_pieces_join_to_the_completion(model: gemelo.Model) -> None:
    async def work(engine: gemelo.AsyncEngine) -> tuple[str, gemelo.Completion]:
        stream = engine.submit(await engine.request("the", **GREEDY))
        text = "".join([piece.text async for piece in stream])
        return text, stream.completion()

    text, completion = run(work, model)
    assert text == completion.text and completion.finish_reason == "length"


def test_whoever_leaves_a_stream_cancels_it(model: gemelo.Model) -> None:
    async def work(engine: gemelo.AsyncEngine) -> gemelo.AsyncStream:
        stream = engine.submit(await engine.request("the", **GREEDY | {"max_tokens": 200}))
        pieces = aiter(stream)
        await anext(pieces)
        await pieces.aclose()
        await stream.until_ended()
        return stream

    assert run(work, model).completion().finish_reason == "cancelled"
    assert model.engine.requests.admission.reserved_bytes == 0


def test_an_engine_serves_one_event_loop_after_another(model: gemelo.Model) -> None:
    engine = gemelo.AsyncEngine(model)

    async def leave() -> None:
        engine.submit(await engine.request("the", **GREEDY | {"max_tokens": 200}))

    async def again() -> gemelo.Completion:
        async with engine:
            return await engine.generate("the", **GREEDY)

    asyncio.run(leave())
    found = asyncio.run(asyncio.wait_for(again(), 60))
    assert found.token_ids == model.generate("the", **GREEDY).token_ids


def test_a_deadline_is_the_readers_error(model: gemelo.Model) -> None:
    async def work(engine: gemelo.AsyncEngine) -> None:
        await engine.generate("the", deadline_s=1e-6, **GREEDY)

    with pytest.raises(UnavailableError, match="not answered within"):
        run(work, model)


@pytest.mark.parametrize("wrong", ["text", None, 5])
def test_what_is_no_request_is_refused(model: gemelo.Model, wrong: Any) -> None:
    async def work(engine: gemelo.AsyncEngine) -> None:
        engine.submit(wrong)

    with pytest.raises(InputError, match="submit takes a Request"):
        run(work, model)
    with pytest.raises(InputError, match="AsyncEngine takes a model"):
        gemelo.AsyncEngine(wrong)
    with pytest.raises(InputError, match="takes a list of prompts"):
        model.stream_many(wrong)


def test_a_closed_model_ends_what_is_under_way(tiny_checkpoint: Path) -> None:
    model = gemelo.load(tiny_checkpoint)

    async def work(engine: gemelo.AsyncEngine) -> None:
        stream = engine.submit(await engine.request("the", **GREEDY | {"max_tokens": 250}))
        async for _ in stream:
            model.close()

    with pytest.raises(ModelClosedError):
        run(work, model)
    with pytest.raises(ModelClosedError):
        model.generate("the", **GREEDY)
