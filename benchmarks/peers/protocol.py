"""What a driver of an engine has in common with the others: lines of JSON in, lines of JSON out.

Every engine runs in a process and an environment of its own, so a driver and this file need nothing
but the standard library and that engine. The parent asks for one piece of work a line and waits for
one line of answer; the end of the input is the end of the process, so nothing outlives the parent.
What a library prints goes to stderr, for stdout carries answers alone.

    {"do": "load", "file": "model.gguf", "threads": 2, "context": 4096}    -> {"seconds": 0.4}
    {"do": "turn", "prompt": 512, "new": 128, "rows": 1, "seed": 3}
                                       -> {"prefill_s": 0.7, "decode_s": 1.9, "peak_rss_bytes": ...}
    {"do": "read"}                                                      -> {"bytes_per_s": 3.3e10}
    {"do": "score", "ids": [2, 506], "at_once": 16, "file": "scores.npy"}  -> {}

    serve(Engine())                                      # at the end of a driver
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Protocol, TextIO

SAFE_IDS = range(300, 250_000)  # ordinary tokens of Gemma's vocabulary


class Engine(Protocol):
    """What a driver implements."""

    version: str

    def load(self, file: str, threads: int, context: int) -> None:
        """Make a model ready; what is not done here counts in the first turn."""

    def turn(self, ids: list[list[int]], new: int) -> tuple[float, float]:
        """Read the prompts ids, one a row, then add `new` greedy tokens to every row.

        Starts empty, ends with what it wrote forgotten. Returns the seconds of reading, up to the
        first scores, and of adding.
        """


class Reading(Engine, Protocol):
    """What a driver implements if it knows where its weights lie."""

    def read(self) -> float:
        """Bytes a second of reading them and doing nothing else; 0 if they lie in no one place."""


class Scoring(Engine, Protocol):
    """What a driver implements if its distributions are compared too."""

    def score(self, ids: list[int], at_once: int, file: str) -> None:
        """Write next-token scores (T, V), read `at_once` tokens a step, to a file of NumPy's."""


def serve(engine: Engine) -> None:
    """Answer the parent until it closes our input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        for line in sys.stdin:
            answer(answers, work(engine, json.loads(line)))
    except (
        KeyboardInterrupt
    ):  # Ctrl-C reaches the whole group; the parent says what there is to say
        os._exit(130)


def work(engine: Engine, request: dict[str, object]) -> dict[str, object]:
    """Do what one line asks; an exception of the engine is an answer too."""
    try:
        task = request.pop("do")
        if task == "load":
            started = time.perf_counter()
            engine.load(**request)  # type: ignore[arg-type]
            seconds = time.perf_counter() - started
            return {"seconds": seconds, "version": engine.version}
        if task == "read":
            return {"bytes_per_s": engine.read()}  # type: ignore[attr-defined]
        if task == "score":
            return score(engine, **request)  # type: ignore[arg-type]
        return turn(engine, **request)  # type: ignore[arg-type]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def turn(engine: Engine, prompt: int, new: int, rows: int, seed: int) -> dict[str, object]:
    """One turn on seeded prompts, which are the same for every engine."""
    ids = [prompt_ids(prompt, seed + row) for row in range(rows)]
    prefill_s, decode_s = engine.turn(ids, new)
    return {"prefill_s": prefill_s, "decode_s": decode_s, "peak_rss_bytes": peak_rss_bytes()}


def score(engine: Scoring, ids: list[int], at_once: int, file: str) -> dict[str, object]:
    """The scores of given tokens, in a file."""
    engine.score(ids, at_once, file)
    return {}


def prompt_ids(count: int, seed: int) -> list[int]:
    """`<bos>` and random ordinary tokens: the work is the same, and no cache knows the prompt."""
    generator = random.Random(seed)
    return [2] + [generator.choice(SAFE_IDS) for _ in range(count - 1)]


def peak_rss_bytes() -> int:
    """The most memory this process has held at once, mapped files included; 0 if not told."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def answer(answers: TextIO, value: dict[str, object]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
