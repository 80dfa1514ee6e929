"""Many callers at once: gemelo beside llama.cpp's server, which decodes all its slots in one step.

    python benchmarks/batch.py --build-llama-server DIR --json benchmarks/results/batch.json
    python benchmarks/batch.py --models 1b-q4_0 --only late shared --engines gemelo

Four measures, of engines that take turns, the first of a round another one each time, after one
turn each that is not counted; medians of the rounds, and medians of the ratios within a round.

    together    prompts of 128 tokens, all asked at once, 64 new tokens each: new tokens a second of
                the whole round, reading included, at 1, 8, 32 and 64 sessions
    late        8 sessions decode, and a prompt of 2,048 tokens comes: their gaps between tokens,
                and its time to its first token, by how many tokens of prompts a step may take
    shared      1,000 common tokens and 16 others, one after another: time to the first token
    regenerate  a chat of 2,000 tokens, and an answer long enough to wrap the ring of every sliding
                layer; then the same prompt again

Prompts are seeded random tokens that differ from each other and from round to round, answers are
greedy and go on past every end. The server is given the same threads, started once for each number
of sessions, and asked over HTTP; for `together` an answer comes in one piece and nothing is cached.
Without --llama-server or --build-llama-server, GEMELO_BENCH_LLAMA_SERVER names the program. JSON
that is there is added to, measure by measure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import batch_gemelo
import batch_tables
from arrivals import Arrivals
from peers.engines import GEMELO, LLAMA
from peers.llama_server import NO_REUSE, VARIABLE, LlamaServer, build_server, version
from peers.process import EngineFailure
from peers.protocol import prompt_ids
from peers.subjects import SUBJECTS, default_folder

import gemelo
from gemelo.cli.terminal import note
from gemelo.evals.machine import cpu_name
from gemelo.kernels.native import isa

PROMPT, NEW = 128, 64  # tokens, of `together`
LATE_PROMPT, LATE_SESSIONS, LATE_AFTER, LATE_NEW = 2048, 8, 16, 128
BUDGETS = (64, 128, 256, 512, None)
SHARED, SUFFIX, LATER = 1000, 16, 6
CHAT, CHAT_ANSWER = 2000, 640
CONTEXT = 4096
Turn = Callable[[int], Any]  # of an engine: from a seed to what was measured


class Bench:
    """A model, in gemelo and as a file for the server; options say how often and with what."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.file = SUBJECTS[name].gguf(options.files)
        self.engines: list[str] = options.engines
        self._seeds = itertools.count(0, 1_000_000)  # no prompt comes twice, or it would be held
        self.model = None
        if GEMELO in self.engines:
            self.model = gemelo.load(self.file, threads=options.threads, context=CONTEXT)

    def server(self, sessions: int, context: int, *settings: str) -> LlamaServer:
        """The peer, or EngineFailure."""
        options = self.options
        return LlamaServer(
            options.llama_server, self.file, sessions, context, options.threads, settings
        )

    def rounds(self, turns: dict[str, Turn]) -> dict[str, list[Any]]:
        """What every engine measured: each in turn, after one turn that is not counted. A round's
        prompts are the same for all, and no other round's."""
        found: dict[str, list[Any]] = {name: [] for name in turns}
        order = list(turns)
        for number in range(self.options.rounds + 1):
            seed = next(self._seeds)
            for name in order:
                result = turns[name](seed)
                if number:
                    found[name].append(result)
            order = order[1:] + order[:1]
        return found

    # ---- many prompts together -----------------------------------------------------------------

    def together(self) -> dict[str, Any]:
        """New tokens a second, by the number of sessions."""
        return {str(sessions): self._together(sessions) for sessions in self.options.sessions}

    def _together(self, sessions: int) -> dict[str, Any]:
        note(f"{self.name}: {sessions} sessions")

        def turn(ask: Callable[[list[list[int]], int], None], seed: int) -> dict[str, float]:
            prompts = [prompt_ids(PROMPT, seed + row) for row in range(sessions)]
            started, worked = time.perf_counter(), time.process_time()
            ask(prompts, NEW)
            seconds = time.perf_counter() - started
            speed = sessions * NEW / seconds
            return {"tokens_per_s": speed, "cpu_share": (time.process_time() - worked) / seconds}

        turns: dict[str, Turn] = {}
        if (model := self.model) is not None:
            turns[GEMELO] = lambda seed: turn(
                lambda prompts, new: batch_gemelo.gemelo_round(model, prompts, new), seed
            )
        if LLAMA not in self.engines:
            return compared(self.rounds(turns), "tokens_per_s")
        with self.server(sessions, 512, *NO_REUSE) as server:
            turns[LLAMA] = lambda seed: turn(server.together, seed)
            return compared(self.rounds(turns), "tokens_per_s")

    # ---- a late prompt ---------------------------------------------------------------------------

    def late(self) -> dict[str, Any]:
        """Gaps and waiting, by the budget; the server has its own default, and one column."""
        found: dict[str, Any] = {}
        if (model := self.model) is not None:
            for budget in BUDGETS:
                note(f"{self.name}: a late prompt, budget {budget}")
                turns = {GEMELO: lambda seed, budget=budget: late_turn(
                    lambda ids: batch_gemelo.stream(model, ids, 1)[0],
                    lambda prompts, late: batch_gemelo.arrivals(
                        model, prompts, LATE_NEW, late, LATE_AFTER, budget
                    ),
                    seed,
                )}  # fmt: skip
                found[f"{GEMELO}, {budget or 'adaptive'}"] = medians(self.rounds(turns)[GEMELO])
        if LLAMA in self.engines:
            note(f"{self.name}: a late prompt")
            context = LATE_PROMPT + 512
            with self.server(LATE_SESSIONS + 1, context, *NO_REUSE) as server:
                turns = {LLAMA: lambda seed: late_turn(
                    lambda ids: server.stream(ids, 1, reuse=False)[0],
                    lambda prompts, late: server.arrivals(prompts, LATE_NEW, late, LATE_AFTER),
                    seed,
                )}  # fmt: skip
                found[LLAMA] = medians(self.rounds(turns)[LLAMA])
        return found

    # ---- what an earlier prompt left -----------------------------------------------------------

    def shared(self) -> dict[str, Any]:
        """Prompts that begin alike: time to the first token of the first, and of later ones."""
        return self._streamed("prompts that begin alike", shared_turn)

    def regenerate(self) -> dict[str, Any]:
        """A chat read, answered, and its answer asked for again."""
        return self._streamed("an answer again", regenerate_turn)

    def _streamed(self, what: str, measure: Callable[[Ask, int], Any]) -> dict[str, Any]:
        note(f"{self.name}: {what}")
        turns: dict[str, Turn] = {}
        if (model := self.model) is not None:
            turns[GEMELO] = lambda seed: measure(
                lambda ids, new: batch_gemelo.stream(model, ids, new), seed
            )
        if LLAMA not in self.engines:
            return {name: medians(values) for name, values in self.rounds(turns).items()}
        with self.server(1, CONTEXT) as server:
            turns[LLAMA] = lambda seed: measure(server.stream, seed)
            return {name: medians(values) for name, values in self.rounds(turns).items()}


Ask = Callable[[list[int], int], list[float]]  # a prompt and a count: when each token came


def late_turn(
    alone: Callable[[list[int]], float],
    arrivals: Callable[[list[list[int]], list[int]], Arrivals],
    seed: int,
) -> dict[str, float]:
    """A prompt read alone, and another of its length while sessions decode."""
    started = time.perf_counter()
    alone_s = alone(prompt_ids(LATE_PROMPT, seed)) - started
    prompts = [prompt_ids(PROMPT, seed + 1 + row) for row in range(LATE_SESSIONS)]
    found = arrivals(prompts, prompt_ids(LATE_PROMPT, seed + 100))
    gap_s = found.median_gap_s
    return {
        "median_gap_s": gap_s,
        "longest_gap_s": found.longest_gap_s,
        "longest / median": found.longest_gap_s / gap_s,
        "alone_s": alone_s,
        "first_token_s": found.wait_s,
        "steps": found.steps,
        "first token / allowed": found.wait_s / (2 * alone_s + found.steps * gap_s),
    }


def shared_turn(ask: Ask, seed: int) -> dict[str, float]:
    """Time to the first token of a prompt, and the median of others that begin alike."""
    common, times = prompt_ids(SHARED, seed), []
    for number in range(1 + LATER):
        suffix = prompt_ids(SUFFIX + 1, seed + 1 + number)[1:]
        times.append(first_token_s(ask, common + suffix, 1))
    return again(times[0], statistics.median(times[1:]))


def regenerate_turn(ask: Ask, seed: int) -> dict[str, float]:
    """Time to the first token of a chat, and of the same when a long answer has been given."""
    chat = prompt_ids(CHAT, seed)
    first_s = first_token_s(ask, chat, CHAT_ANSWER)
    return again(first_s, first_token_s(ask, chat, 1))


def first_token_s(ask: Ask, ids: list[int], new: int) -> float:
    started = time.perf_counter()
    return ask(ids, new)[0] - started


def again(first_s: float, later_s: float) -> dict[str, float]:
    return {"first_s": first_s, "later_s": later_s, "first / later": first_s / later_s}


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The median of every figure, and all rounds beside them."""
    found = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    return found | {"rounds": list(rounds)}


def compared(found: dict[str, list[dict[str, float]]], key: str) -> dict[str, Any]:
    """The medians of every engine, and gemelo's ratio to the peer within the rounds."""
    result: dict[str, Any] = {name: medians(values) for name, values in found.items()}
    if GEMELO in found and LLAMA in found:
        pairs = zip(found[GEMELO], found[LLAMA], strict=True)
        result["ratio"] = statistics.median(ours[key] / theirs[key] for ours, theirs in pairs)
    return result


MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "together": Bench.together,
    "late": Bench.late,
    "shared": Bench.shared,
    "regenerate": Bench.regenerate,
}


def main() -> int:
    options = parsed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.build_llama_server is not None:
            options.llama_server = build_server(options.build_llama_server)
        if LLAMA in options.engines and not options.llama_server:
            raise EngineFailure(f"{LLAMA} is not run: set {VARIABLE}, or give --llama-server")
        for name in options.models:
            bench = Bench(name, options)
            for measure in options.only:
                write(options, name, measure, MEASURES[measure](bench))
    except KeyboardInterrupt:
        return 130
    except (EngineFailure, ValueError, gemelo.GemeloError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write(options: argparse.Namespace, name: str, measure: str, found: dict[str, Any]) -> None:
    """Print one measure of one model, and add it to the JSON at once."""
    run = {"command": shlex.join(sys.argv), "cpu": cpu_name(), "isa": isa()}
    run |= {"rounds": options.rounds, "threads": options.threads, "load_average": os.getloadavg()}
    if LLAMA in options.engines:
        run["llama.cpp"] = version(options.llama_server)
    value = {name: {measure: {"run": run, "found": found}}}
    print(batch_tables.TABLES[measure](value), flush=True)
    if options.json is None:
        return
    models = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
    models[name] = models.get(name, {}) | value[name]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    """The command line."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=["270m", "1b-q4_0"])
    parser.add_argument("--engines", nargs="+", choices=(GEMELO, LLAMA), default=[GEMELO, LLAMA])
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument(
        "--files", type=Path, default=default_folder(), help="models, made if absent"
    )
    parser.add_argument(
        "--llama-server", default=os.environ.get(VARIABLE, ""), help="the program llama-server"
    )
    parser.add_argument("--build-llama-server", type=Path, metavar="DIR", help="compile it there")
    options = parser.parse_args()
    for name, least in (("rounds", options.rounds), ("threads", options.threads),
                        ("sessions", min(options.sessions))):  # fmt: skip
        if least < 1:
            parser.error(f"--{name} must be 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
