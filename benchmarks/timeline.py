"""What the engine did when, for whom: eight answers being written, and a long prompt that comes.

    python benchmarks/timeline.py --json benchmarks/results/timeline.json && python docs/figures.py

Eight requests of 64 tokens decode 48 each; when every one has 16, a prompt of 2,048 tokens comes
and is answered with 8. The engine's events (`StepLoop.on_event`) are written down as they come.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import gemelo
from gemelo.engine.delivery import Inbox, Ticket
from gemelo.evals.machine import cpu_name

SESSIONS, PROMPT, NEW, LATE_PROMPT, LATE_NEW, AFTER = 8, 64, 48, 2048, 8, 16


def main() -> None:
    """Run it once for warmth, then once for the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="the embedded model if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    with gemelo.load(options.model, threads=options.threads) as model:
        recorded(model)
        events = recorded(model)
    found = {"cpu": cpu_name(), "threads": options.threads, "model": "270m", "events": events}
    options.json.write_text(json.dumps(found, indent=1) + "\n")


def recorded(model: gemelo.Model) -> list[list[Any]]:
    """Events as [name, begin, end, request], in seconds from the first; the late prompt is the last
    request."""
    generator = np.random.default_rng(0)
    model.engine.requests.clear()
    inbox, events = Inbox(), list[list[Any]]()
    lengths = [(PROMPT, NEW)] * SESSIONS + [(LATE_PROMPT, LATE_NEW)]
    tickets = [Ticket(request(model, generator, *one), inbox) for one in lengths]
    numbers = {id(ticket.request): number for number, ticket in enumerate(tickets)}
    began = time.perf_counter()
    model.engine.loop.on_event = lambda name, start, end, of: events.append(
        [name, round(start - began, 5), round(end - began, 5), numbers[id(of)]]
    )
    for ticket in tickets[:-1]:
        model.engine.requests.submit(ticket)
    late = False
    for _ in inbox.until_ended(len(tickets)):
        if not late and all(len(ticket.pieces) >= AFTER for ticket in tickets[:-1]):
            model.engine.requests.submit(tickets[-1])
            late = True
    model.engine.loop.on_event = None
    return events


def request(
    model: gemelo.Model, generator: np.random.Generator, prompt: int, new: int
) -> gemelo.Request:
    """Random ordinary ids, and a greedy answer of so many tokens."""
    ids = [2, *generator.integers(1000, 200_000, prompt - 1).tolist()]
    return model.request(ids, temperature=0, max_tokens=new, ignore_eos=True)


if __name__ == "__main__":
    main()
