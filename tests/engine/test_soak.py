"""Soak: many random requests of many callers; every answer is that of a fresh process alone.

Prompts of 1 to 3,000 tokens, of which some begin alike, windows of 40 so that rings wrap, sizes
mixed, callers that leave in the middle: from an event loop, from threads with sessions of their
own, and from lists of prompts. In the end memory, descriptors and threads are where they began.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from gemelo.api.async_engine import AsyncEngine
from gemelo.config.sampling import Sampling
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache
from gemelo.engine.request import Request
from gemelo.engine.together import stream_all
from gemelo.engine.tokens import Tokens
from gemelo.models.gemma3 import Gemma3
from tests.engine.fake_decoder import FakeTokenizer
from tests.matformer import CONFIG, SMALL, UPPER, tiny_gemma3n
from tests.native import needs_native
from tests.quantised import GEMMA3, native_of

pytestmark = needs_native
CONTEXT, CHUNK = 4096, 128
KV_LIMIT_BYTES = 48 << 20  # room for about ten long ones: others wait, and pooled ones have to go
SIZES = {"small": SMALL, "upper": UPPER}
Ids = list[int]


class Job(NamedTuple):
    """A prompt, tokens of the answer, the size that answers; and after how many pieces its caller
    leaves, None to stay."""

    prompt: Ids
    count: int
    size: str
    leaves_after: int | None

    def request(self) -> Request:
        sampling = Sampling(temperature=0, max_tokens=self.count, ignore_eos=True)
        return Request(Tokens(self.prompt), sampling, SIZES.get(self.size))


def engine_of(family: str) -> Engine:
    """The same weights in every process."""
    if family == "gemma3n":
        wide = dataclasses.replace(CONFIG, sliding_window=40, max_position_embeddings=CONTEXT)
        decoder = native_of(tiny_gemma3n(wide))
    else:
        config = dataclasses.replace(GEMMA3, sliding_window=40, max_position_embeddings=CONTEXT)
        module = Gemma3(config).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            spread = 0.5 if parameter.dim() == 1 else 0.2
            parameter.data.uniform_(-spread, spread, generator=generator)
        decoder = native_of(module, "q8_0")
    assert decoder.is_native
    tokenizer: Any = FakeTokenizer()
    return Engine(decoder, tokenizer, CONTEXT, CHUNK, kv_limit_bytes=KV_LIMIT_BYTES)


def jobs_of(count: int, generator: random.Random) -> list[Job]:
    """Lengths of all magnitudes; three in ten begin as others do, and two in ten are left."""

    def some_ids(length: int) -> Ids:
        return [generator.randrange(3, 500) for _ in range(length)]

    beginnings = [some_ids(length) for length in (40, 64, 100, 300, 700, 1500, 2500)]
    jobs = []
    for _ in range(count):
        prompt = some_ids(int(3000 ** generator.random()))
        if generator.random() < 0.3:
            shared = generator.choice(beginnings)
            prompt = [*shared[: generator.randrange(1, len(shared) + 1)], *prompt[:200]]
        leaves = generator.randrange(12) if generator.random() < 0.2 else None
        size = generator.choice(["", "", "small", "upper"])
        jobs.append(Job(prompt[:3000], generator.randrange(1, 30), size, leaves))
    return jobs


# ---- each alone ----------------------------------------------------------------------------------


def answer_alone(family: str) -> None:
    """In a process of its own: jobs from stdin, ids to stdout, each from a new session."""
    engine, answers = engine_of(family), []
    for prompt, count, size in json.load(sys.stdin):
        session = engine.session()
        if size:
            session.use(SIZES[size])
        completion = session.generate(prompt, temperature=0, max_tokens=count, ignore_eos=True)
        answers.append(completion.token_ids)
    json.dump(answers, sys.stdout)


def answers_alone(family: str, jobs: list[Job]) -> list[Ids]:
    code = f"from tests.engine.test_soak import answer_alone; answer_alone({family!r})"
    root = Path(__file__).parents[2]
    given = json.dumps([job[:3] for job in jobs])
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, input=given, capture_output=True, text=True, cwd=root, check=True)
    answers: list[Ids] = json.loads(done.stdout)
    return answers


# ---- all at once ---------------------------------------------------------------------------------


class Left(Exception):
    """A caller leaves while its prompt is read."""


class Soak:
    """Callers of three kinds, who take the next job until there is none. `answers` are by job,
    `whole` those whose callers have stayed to the end."""

    def __init__(self, engine: Engine, jobs: list[Job]) -> None:
        self.engine, self.jobs = engine, jobs
        self.left = deque(range(len(jobs)))
        self.answers: dict[int, Ids] = {}
        self.whole: set[int] = set()
        self.errors: list[BaseException] = []

    def run(self, num_tasks: int, num_sessions: int, num_lists: int) -> None:
        work: list[Callable[[], None]] = [lambda: asyncio.run(self.event_loop(num_tasks))]
        work += [self.sessions] * num_sessions + [self.lists] * num_lists
        threads = [threading.Thread(target=self.noting, args=(one,)) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def noting(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def next_jobs(self, count: int = 1) -> list[int]:
        found: list[int] = []
        while len(found) < count and self.left:
            try:
                found.append(self.left.popleft())
            except IndexError:  # another thread was first
                break
        return found

    async def event_loop(self, num_tasks: int) -> None:
        model: Any = SimpleNamespace(engine=self.engine)
        async with AsyncEngine(model) as engine:
            await asyncio.gather(*(self.task(engine) for _ in range(num_tasks)))

    async def task(self, engine: AsyncEngine) -> None:
        while found := self.next_jobs():
            job, ids = self.jobs[found[0]], self.answers.setdefault(found[0], [])
            stream = engine.submit(job.request())
            if job.leaves_after == 0:
                await asyncio.sleep(0.02)
                stream.cancel()
            async for piece in stream:
                ids.extend(piece.token_ids)
                if job.leaves_after is not None and len(ids) >= job.leaves_after:
                    break
            else:
                self.whole.update(found if job.leaves_after != 0 else [])

    def sessions(self) -> None:
        while found := self.next_jobs():
            job, ids = self.jobs[found[0]], self.answers.setdefault(found[0], [])
            session = self.engine.session()
            if job.size:
                session.use(SIZES[job.size])

            def progress(read: int, total: int, job: Job = job) -> None:
                if job.leaves_after == 0 and 2 * read > total:
                    raise Left

            try:
                for piece in session.stream(job.prompt, job.request().sampling, progress):
                    ids.extend(piece.token_ids)
                    if job.leaves_after is not None and len(ids) >= job.leaves_after:
                        break  # and nobody closes the stream
                else:
                    self.whole.update(found)
            except Left:
                pass

    def lists(self) -> None:
        while found := self.next_jobs(6):
            for number in found:
                self.answers[number] = []
            counts = [self.jobs[number].leaves_after for number in found]
            leaves = min((count for count in counts if count is not None), default=None)
            stream = stream_all(self.engine.requests, [self.jobs[n].request() for n in found])
            for index, piece in stream:
                self.answers[found[index]].extend(piece.token_ids)
                if leaves is not None and sum(len(self.answers[n]) for n in found) > 8 * leaves:
                    break
            else:
                self.whole.update(found)
            stream.close()


class Held(NamedTuple):
    """What a process has."""

    caches: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        descriptors = Path("/proc/self/fd")
        return cls(
            sum(type(each) is KVCache for each in gc.get_objects()),
            threading.active_count(),
            len(os.listdir(descriptors)) if descriptors.exists() else 0,
        )


def resident_bytes() -> int:
    """Of this process, without what the allocator keeps; 0 where the system does not say."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def soak(family: str, count: int, seed: int) -> None:
    def jobs_from(seed: int, count: int) -> list[Job]:
        jobs = jobs_of(count, random.Random(seed))
        return jobs if family == "gemma3n" else [job._replace(size="") for job in jobs]

    jobs = jobs_from(seed, count)
    wanted, engine = answers_alone(family, jobs), engine_of(family)
    Soak(engine, jobs_from(0, min(count, 200))).run(24, 4, 2)  # until the allocator has its arenas
    settle(engine)
    before, began_bytes = Held.now(), resident_bytes()
    run = Soak(engine, jobs)
    run.run(num_tasks=24, num_sessions=4, num_lists=2)
    assert run.errors == []
    assert set(run.answers) == set(range(count))
    for number, (job, alone) in enumerate(zip(jobs, wanted, strict=True)):
        found = run.answers[number]
        expected = alone if number in run.whole else alone[: len(found)]
        assert found == expected, f"job {number} of {len(job.prompt)} tokens"
    assert len(run.whole) > count // 2
    settle(engine)
    assert Held.now() == before
    assert resident_bytes() < began_bytes + KV_LIMIT_BYTES


def settle(engine: Engine) -> None:
    """Nothing waits, nothing is reserved; the thread leaves, and what was held goes."""
    end = time.monotonic() + 20
    while engine.loop.is_shared and time.monotonic() < end:
        time.sleep(0.02)
    queue = engine.requests
    assert not engine.loop.is_shared
    assert queue.num_waiting == 0 == queue.admission.reserved_bytes
    queue.clear()
    assert queue.pool.num_idle == 0 == queue.pool.nbytes


@pytest.mark.parametrize("family", ["gemma3n", "gemma3"])
def test_two_dozen_requests_are_each_as_alone(family: str) -> None:
    soak(family, 24, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", ["gemma3n", "gemma3"])
def test_two_thousand_requests_are_each_as_alone(family: str) -> None:
    soak(family, 2000, seed=2)
