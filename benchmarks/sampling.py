"""Sampling alone: what a token costs between two steps, for one row and for many.

    taskset -c 0 python benchmarks/sampling.py --json benchmarks/results/sampling.json

The scores are the embedded 270M's own, of every token of a text as one native step gives them, with
the maxima of their blocks; no step runs while sampling is measured. A row has a sampler of its own,
a prompt of as many tokens as there are rows and an answer of a hundred. Settings take turns, so
that a slow moment of the machine hits all; one round comes first and is not counted. Medians of
rounds, in microseconds of this thread's own time for a row. Sampling is done by one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gemelo.api import load
from gemelo.config.sampling import Sampling
from gemelo.engine import step
from gemelo.engine.sampler import Sampler
from gemelo.evals.machine import cpu_name
from gemelo.kernels.quants import Floats

ROWS = 64
ANSWER = 100  # tokens before the one that is sampled
TARGET_ROW_US = 3000 / ROWS  # of the default settings
SETTINGS = {
    "greedy": Sampling(temperature=0),
    "temperature 1, top_k 64, top_p 0.95": Sampling(seed=1),
    "the same, repetition_penalty 1.1": Sampling(seed=1, repetition_penalty=1.1),
    "the same, frequency_penalty 0.1": Sampling(seed=1, frequency_penalty=0.1),
    "the same, logprobs 5": Sampling(seed=1, logprobs=5),
    "temperature 1, top_k 0, top_p 0.95": Sampling(seed=1, top_k=0),
    "temperature 1, top_k 0, top_p 1": Sampling(seed=1, top_k=0, top_p=1.0),
}
TEXT = "The city began as a market by the river. " * ROWS


def scores_of_text() -> tuple[list[int], Floats]:
    """Token ids (ROWS,) of a text, and the scores (ROWS, V) after each."""
    model = load(device="cpu")
    ids = list(model.tokenizer.encode(TEXT))[:ROWS]
    decoder = model.engine.decoder
    return ids, step.verify(decoder, decoder.cache(len(ids)), ids, 0)


def row_us(sampling: Sampling, ids: list[int], rows: list[Floats], number: int) -> float:
    """Microseconds a row of one token for each; the answers are longer in every round."""
    samplers = [Sampler(sampling, index) for index in range(len(rows))]
    answer = [ids[place % len(ids)] for place in range(ANSWER + number)]
    for sampler in samplers:
        sampler(rows[0], ids, answer[:-1])  # the one before
    started = time.thread_time()
    for sampler, row in zip(samplers, rows, strict=True):
        sampler(row, ids, answer)
    return (time.thread_time() - started) / len(rows) * 1e6


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Medians for one row and for ROWS, by setting."""
    ids, scores = scores_of_text()
    every = list(scores)
    times: dict[str, dict[int, list[float]]] = {name: {1: [], ROWS: []} for name in SETTINGS}
    for number in range(rounds + 1):
        for name, sampling in SETTINGS.items():
            for count, found in times[name].items():
                first = number % (ROWS - count + 1)
                us = row_us(sampling, ids, every[first : first + count], number)
                found += [us] if number else []
    return {
        name: {f"{count} rows, us a row": statistics.median(us) for count, us in found.items()}
        for name, found in times.items()
    }


def shown(medians: dict[str, dict[str, float]]) -> Table:
    """The medians, for people."""
    table = Table(title=f"the second setting's target: {TARGET_ROW_US:.0f} us a row")
    table.add_column("sampling", no_wrap=True)
    for heading in ("1 row, us", f"{ROWS} rows, us a row", f"{ROWS} rows, ms"):
        table.add_column(heading, justify="right")
    for name, found in medians.items():
        one, many = found.values()
        table.add_row(name, f"{one:.1f}", f"{many:.1f}", f"{many * ROWS / 1000:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampling alone, without the step before it.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    asked = parser.parse_args()
    medians = measure(asked.rounds)
    Console().print(shown(medians))
    if asked.json:
        results = {"cpu": cpu_name(), "rounds": asked.rounds, "sampling": medians}
        asked.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
