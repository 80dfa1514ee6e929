"""gemelo's side of batch.py: many prompts together, one prompt timed, a late one among others.

The three functions are what `peers.llama_server.LlamaServer` does as methods. Prompts are token
ids, answers greedy and of exactly as many tokens as were asked for.

    gemelo_round(model, prompts, new=64)
    stream(model, prompt, new=16)             # the clock's time at each token
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from arrivals import Arrivals
from peers.process import EngineFailure

import gemelo

Prompts = Sequence[Sequence[int]]


def gemelo_round(model: gemelo.Model, prompts: Prompts, new: int) -> None:
    """Add exactly `new` tokens to every prompt, all asked at once; returns when all are done."""
    counts: Counter[int] = Counter()
    for index, piece in model.stream_many([list(ids) for ids in prompts], greedy(new)):
        counts[index] += len(piece.token_ids)
    for index in range(len(prompts)):
        check(counts[index], new)


def stream(model: gemelo.Model, ids: Sequence[int], new: int) -> list[float]:
    """The clock's time (`time.perf_counter`) at which each of `new` tokens came. What an earlier
    prompt left is gone on from."""
    times: list[float] = []
    for piece in model.stream(list(ids), greedy(new)):
        times += [time.perf_counter()] * len(piece.token_ids)
    check(len(times), new)
    return times


def arrivals(
    model: gemelo.Model,
    prompts: Prompts,
    new: int,
    late: Sequence[int],
    after: int,
    budget: int | None,
) -> Arrivals:
    """Sessions that decode, and a late prompt that comes when each has `after` tokens.

    budget: the most tokens of prompts that a step takes; None leaves it to the scheduler.
    """
    model.engine.loop.scheduler.prefill_budget = budget
    return asyncio.run(arriving(model, prompts, new, late, after))


async def arriving(
    model: gemelo.Model, prompts: Prompts, new: int, late: Sequence[int], after: int
) -> Arrivals:
    """The same, as the event loop of a server has it."""
    every: list[list[float]] = [[] for _ in prompts]
    asked, reached = asyncio.Event(), 0

    def counted(times: list[float]) -> None:
        nonlocal reached
        reached += len(times) == after
        if reached == len(prompts):
            asked.set()

    async with gemelo.AsyncEngine(model) as engine:
        running = [
            asyncio.create_task(answered(engine, ids, new, times, counted))
            for ids, times in zip(prompts, every, strict=True)
        ]
        ready = asyncio.create_task(asked.wait())
        await asyncio.wait([ready, *running], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():  # one ended before: with an error, or too few tokens
            await asyncio.gather(*running)
        asked_s = time.perf_counter()
        first = await answered(engine, late, 1, [], lambda times: None)
        await asyncio.gather(*running)
    return Arrivals(every, asked_s, first[0])


async def answered(
    engine: gemelo.AsyncEngine,
    ids: Sequence[int],
    new: int,
    times: list[float],
    counted: Callable[[list[float]], None],
) -> list[float]:
    """One request to its end: `times`, to which each token's is added; counted is told of it."""
    request = engine.model.request(list(ids), greedy(new))
    async for piece in engine.submit(request):
        for _ in piece.token_ids:
            times.append(time.perf_counter())
            counted(times)
    check(len(times), new)
    return times


def greedy(new: int) -> gemelo.Sampling:
    """The likeliest token each time, `new` of them whatever they are."""
    return gemelo.Sampling(temperature=0, max_tokens=new, ignore_eos=True)


def check(count: int, new: int) -> None:
    """Raise if an answer is shorter or longer than was asked for."""
    if count != new:
        raise EngineFailure(f"failed: {count} tokens, asked for {new}")
