"""gemelo's side of batch.py: many prompts together, one prompt timed, a late one among others.

The three functions are what `peers.llama_server.LlamaServer` does as methods. Prompts are token
ids, answers greedy and of exactly as many tokens as were asked for.

    gemelo_round(model, prompts, new=64)
    stream(model, prompt, new=16)             # the clock's time at each token
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from arrivals import Arrivals

from gemelo import Model, Piece, Sampling

Prompts = Sequence[Sequence[int]]


def gemelo_round(model: Model, prompts: Prompts, new: int) -> None:
    """Add exactly `new` tokens to every prompt, all asked at once; returns when all are done."""
    for ids in prompts:
        found = model.generate(list(ids), greedy(new))
        check(len(found.token_ids), new)


def stream(model: Model, ids: Sequence[int], new: int) -> list[float]:
    """The clock's time (`time.perf_counter`) at which each of `new` tokens came. What an earlier
    prompt left is gone on from."""
    times: list[float] = []
    for piece in model.stream(list(ids), greedy(new)):
        times += [time.perf_counter()] * len(piece.token_ids)
    check(len(times), new)
    return times


def arrivals(
    model: Model, prompts: Prompts, new: int, late: Sequence[int], after: int, budget: int | None
) -> Arrivals:
    """Sessions that decode, and a late prompt that comes when each has `after` tokens.

    budget: the most tokens of prompts that a step takes; None leaves it to the scheduler.
    """
    every: list[list[float]] = [[] for _ in prompts]
    running = [model.stream(list(ids), greedy(new)) for ids in prompts]
    for _ in range(after):
        advance(running, every)
    asked_s = time.perf_counter()
    first_s = stream(model, late, 1)[0]
    for _ in range(new - after):
        advance(running, every)
    for times in every:
        check(len(times), new)
    return Arrivals(every, asked_s, first_s)


def advance(running: Sequence[Iterator[Piece]], every: Sequence[list[float]]) -> None:
    """One token of every session, in turn."""
    for pieces, times in zip(running, every, strict=True):
        next(pieces)
        times.append(time.perf_counter())


def greedy(new: int) -> Sampling:
    """The likeliest token each time, `new` of them whatever they are."""
    return Sampling(temperature=0, max_tokens=new, ignore_eos=True)


def check(count: int, new: int) -> None:
    """Raise if an answer is shorter or longer than was asked for."""
    if count != new:
        raise ValueError(f"{count} tokens, asked for {new}")
