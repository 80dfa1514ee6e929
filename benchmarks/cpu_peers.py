"""gemelo beside llama.cpp, OpenVINO GenAI and transformers: same files, same threads, one run.

    python benchmarks/cpu_peers.py --build-llama ~/peers/llama --build-openvino ~/peers/openvino \\
        --json benchmarks/results/cpu_peers.json

Every engine runs in a process of its own and keeps its model loaded for a round, and they take
turns: each figure is the median of the rounds, each ratio the median of the ratios within a round.
Every round has new processes, as the place that a process is given in memory may cost or gain a
fifth. Loading and peak memory come from others that do nothing else: load, first token of 8, a
prompt of 512, 32 tokens. Prompts are seeded random tokens, decoding is greedy, and the argmax is in
the time. How fast memory is changes by the minute on shared machines, so it is read after each
engine has decoded. Without --build-*, GEMELO_BENCH_LLAMA_PYTHON, GEMELO_BENCH_OPENVINO_PYTHON and
GEMELO_BENCH_TRANSFORMERS_PYTHON name the peers' interpreters. What an engine cannot do is a line
under the table and stops nothing. The larger files are random weights (see random_weights.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from peers import limits
from peers.engines import ENGINES, GEMELO, build, interpreters
from peers.process import EngineFailure, Process
from peers.report import KINDS, MEMORY_AFTER, Found, Rounds, limits_table, table
from peers.subjects import SUBJECTS, Subject, Turn, Work, default_folder, turns, work
from rich.console import Console

from gemelo.cli.terminal import note
from gemelo.errors import GemeloError
from gemelo.evals.machine import cpu_name, memory_bandwidth

CONTEXT = 4096
FIRST_PROMPT = 8  # tokens of the prompt whose first token ends "load to first token"
MEMORY_TURN = Turn(512, 32)  # what a fresh process has done when its peak memory is read
READ_BYTES = 256 << 20  # of memory, to see how fast it is
HELD_PER_BYTE = 2.5  # of a file, at most, by an engine that repacks it


class Comparison:
    """One file, its engines, and the rounds measured so far. Holds their processes."""

    def __init__(self, subject: Subject, options: argparse.Namespace, pythons: dict[str, str]):
        self.subject, self.options, self.pythons = subject, options, pythons
        self.forms: dict[str, Path] = {}
        self.rounds: dict[str, Rounds] = {}
        self.failures: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.works: dict[str, Work] = {}
        self._running: dict[str, Process] = {}
        for engine in subject.engines:
            if engine in options.engines:
                self._attempt(engine, lambda name=engine: self._prepare(name))

    @property
    def found(self) -> Found:
        """What is known so far."""
        return Found(self.subject.name, self.rounds, self.failures, self.versions, self.works)

    @property
    def live(self) -> list[str]:
        """Engines that have not failed."""
        return [engine for engine in self.rounds if engine not in self.failures]

    def _prepare(self, engine: str) -> None:
        """Find or make what the engine loads."""
        ENGINES[engine].command(self.pythons)
        python = self.pythons[ENGINES[engine].home]
        form = self.subject.form(engine, self.options.files, python)
        self.forms[engine], self.rounds[engine] = form, []
        self.works[engine] = work(self.subject, engine, self.options.files, form)

    def run(self) -> None:
        """All rounds, engines in turn, the first of a round another one each time."""
        for number in range(self.options.rounds if self.live else 0):
            started = time.perf_counter()
            for engine in self.live:
                self.rounds[engine].append({})
            self._round(number)
            spent_s = time.perf_counter() - started
            note(
                f"{self.subject.name}: round {number + 1} of {self.options.rounds}, {spent_s:.0f} s"
            )

    def _round(self, number: int) -> None:
        live = self.live
        order = live[number % len(live) :] + live[: number % len(live)] if live else []
        if self.options.wanted("load") or self.options.wanted("memory"):
            for engine in order:
                self._attempt(engine, lambda name=engine: self._fresh(name, number))
        planned = turns(self.options.new_tokens, self.options.wanted)
        if self._fit_together():
            jobs = [(engine, turn) for turn in planned for engine in order]
        else:
            jobs = [(engine, turn) for engine in order for turn in planned]
        for engine, turn in jobs:
            if engine in self.live:
                self._attempt(engine, lambda e=engine, t=turn: self._turn(e, t, number))
        self.close()

    def _attempt(self, engine: str, job: object) -> None:
        """Do something with an engine; its failure is noted and ends its part."""
        try:
            job()  # type: ignore[operator]
        except (EngineFailure, GemeloError) as error:
            self.failures[engine] = str(error)
            note(f"{self.subject.name}: {engine} {error}")
            self._close(engine)

    def _start(self, engine: str) -> Process:
        command = ENGINES[engine].command(self.pythons)
        return Process(command, self.options.threads, keep_path=engine == GEMELO)

    def _fresh(self, engine: str, number: int) -> None:
        """Load to first token and peak memory, in a process that does nothing else."""
        with self._start(engine) as peer:
            loaded = peer.load(str(self.forms[engine]), CONTEXT)
            first = peer.turn(FIRST_PROMPT, 0, 1, seed=number)
            since_start_s = time.perf_counter() - peer.started
            self.versions[engine] = str(loaded["version"])
            figures = self.rounds[engine][-1]
            if self.options.wanted("load"):
                figures["load_to_first_token_s"] = loaded["seconds"] + first["prefill_s"]
                figures["start_to_first_token_s"] = since_start_s
            if self.options.wanted("memory"):
                last = peer.turn(MEMORY_TURN.prompt, MEMORY_TURN.new, 1, seed=number)
                figures["peak_rss_bytes"] = last["peak_rss_bytes"]

    def _turn(self, engine: str, turn: Turn, number: int) -> None:
        """One turn in the process that keeps the model; the seed is another each time."""
        seed = 1000 * (number + 1) + turn.prompt + turn.rows
        process, figures = self._running_process(engine), self.rounds[engine][-1]
        figures |= turn.measures(process.turn(turn.prompt, turn.new, turn.rows, seed))
        if (memory := MEMORY_AFTER.get(turn.decode)) is not None:
            figures[memory] = memory_bandwidth(READ_BYTES)
        if engine == GEMELO and turn.decode == "decode_32" and (speed := process.read()):
            figures["own_read_bytes_per_s"] = speed

    def _running_process(self, engine: str) -> Process:
        """The engine's process of this round, its model loaded and warm; alone where memory is
        short."""
        if engine not in self._running:
            if not self._fit_together():
                self.close()
            self._running[engine] = peer = self._start(engine)
            self.versions[engine] = str(peer.load(str(self.forms[engine]), CONTEXT)["version"])
            for warm in (Turn(512, 2), Turn(32, 2, 4), Turn(32, 2, 8)):
                if warm.rows == 1 or self.options.wanted("batch"):
                    peer.turn(warm.prompt, warm.new, warm.rows, seed=0)
        return self._running[engine]

    def _fit_together(self) -> bool:
        """Whether all models may stay loaded at once, a fresh one beside them."""
        sizes = [_form_bytes(self.forms[engine]) for engine in self.live]
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return HELD_PER_BYTE * (sum(sizes) + max(sizes, default=0)) < free

    def _close(self, engine: str) -> None:
        if engine in self._running:
            self._running.pop(engine).close()

    def close(self) -> None:
        """End every process."""
        for engine in list(self._running):
            self._close(engine)


def _form_bytes(form: Path) -> int:
    """Bytes of a model's file, or of all files of its directory."""
    files = form.iterdir() if form.is_dir() else [form]
    return sum(file.stat().st_size for file in files)


def main() -> int:
    options = parsed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    done: list[Found] = []
    interrupted = False
    try:
        pythons = interpreters(built(options))
        ceilings = limits.measured(options.threads)  # and after every file: the best counts
        for name in options.models:
            comparison = Comparison(SUBJECTS[name], options, pythons)
            try:
                comparison.run()
                again = limits.measured(options.threads)
                ceilings = {name: max(ceilings[name], value) for name, value in again.items()}
            finally:
                comparison.close()
                done.append(comparison.found)
                write(options, done, ceilings)
    except KeyboardInterrupt:
        interrupted = True
    except (EngineFailure, GemeloError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if done:
        show(done, ceilings)
    return 130 if interrupted else 0


def parsed() -> argparse.Namespace:
    """The command line; `wanted(kind)` says whether a kind of measure is."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument(
        "--files", type=Path, default=default_folder(), help="models, made if absent"
    )
    for home in ("llama", "openvino", "transformers"):
        parser.add_argument(f"--{home}-python", help="interpreter that has it")
        parser.add_argument(f"--build-{home}", type=Path, metavar="DIR", help="install it there")
    options = parser.parse_args()
    for name in ("rounds", "threads", "new_tokens"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    options.wanted = lambda kind: kind in options.only
    return options


def built(options: argparse.Namespace) -> dict[str, str | None]:
    """Interpreters that options name, after building what was asked for."""
    given = {"llama": options.llama_python, "openvino": options.openvino_python}
    given["transformers"] = options.transformers_python
    folders = {"llama": options.build_llama, "openvino": options.build_openvino}
    folders["transformers"] = options.build_transformers
    for home, folder in folders.items():
        if folder is not None:
            given[home] = build(home, folder)
    return given


def write(options: argparse.Namespace, done: list[Found], ceilings: dict[str, float]) -> None:
    """Everything measured so far, after every file, so that nothing is lost with a later one."""
    if options.json is None:
        return
    settings = {n: getattr(options, n) for n in ("rounds", "threads", "new_tokens", "only")}
    value = {"cpu": cpu_name(), "command": shlex.join(sys.argv), **settings, "context": CONTEXT}
    value |= {"limits": ceilings, "load_average": os.getloadavg()}
    value["files"] = {found.subject: found.to_json() for found in done}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def show(done: list[Found], ceilings: dict[str, float]) -> None:
    """Tables on stdout."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for found in done:
        console.print(table(found), "")
    console.print(limits_table(done, ceilings))


if __name__ == "__main__":
    sys.exit(main())
