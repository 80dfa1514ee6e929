"""From a process's start to its first token, and its peak memory, beside llama.cpp.

    python benchmarks/start.py --build-llama ~/peers/llama --json benchmarks/results/start.json
    python benchmarks/start.py --phases          # where gemelo's time goes, part by part

What somebody waits for who types a command: `gemelo generate PROMPT --max-tokens 1`, and the same
with llama.cpp through llama-cpp-python: both start Python, load the file and say one greedy token.
The clock runs from before the process is started until the first byte of its text. They take turns,
the first of a round another one each time; files are in the page cache, as one round that is not
counted comes first. Medians of the rounds, and medians of the ratios within a round. Peak memory is
what the system says of the ended process, touched pages of the model's file included.

--python names another interpreter that has gemelo, such as one without PyTorch. Without
--build-llama or --llama-python, GEMELO_BENCH_LLAMA_PYTHON names llama.cpp's; without any of them
gemelo is measured alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_tables import table
from peers.engines import GEMELO, HERE, LLAMA, build, interpreters
from peers.process import EngineFailure

PROMPT = "The capital of France is"
ROOT = Path(__file__).resolve().parent.parent
SMALL_S = 5e-3  # parts that are not worth a line
PHASES = Path(__file__).with_name("start_phases.py")


@dataclass(frozen=True)
class Start:
    """One process: seconds to its first text and to its end, peak memory, and the text."""

    first_token_s: float
    exit_s: float
    peak_rss_bytes: int
    text: str


def started(command: Sequence[str], settings: dict[str, str]) -> Start:
    """Run a process to its end; EngineFailure for one that fails or says nothing."""
    begun = time.monotonic()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings, bufsize=0
    )
    assert child.stdout is not None and child.stderr is not None
    with child.stdout, child.stderr:
        first = child.stdout.read(1)
        first_token_s = time.monotonic() - begun
        text = first + child.stdout.read()
        complaints = child.stderr.read().decode(errors="replace").strip().splitlines()
        # The system adds up a child's memory when it is waited for. It counts what the parent held
        # too, which is why nothing large is imported here.
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or not first:
        said = complaints[-1] if complaints else "it said nothing"
        raise EngineFailure(f"{command[0]} exited with {child.returncode}; {said}")
    seconds = time.monotonic() - begun
    return Start(first_token_s, seconds, usage.ru_maxrss * 1024, text.decode().strip())


def commands(options: argparse.Namespace) -> dict[str, Callable[[], Start]]:
    """How to start each engine, gemelo first."""
    words = [options.python, "-m", "gemelo", *generate(options)]
    found = {GEMELO: lambda: started(words, environment(gemelo=True))}
    python = options.llama_python
    if options.build_llama is not None:
        python = build("llama", options.build_llama)
    python = interpreters({"llama": python})["llama"]
    if python:
        script = [python, str(HERE / "start_llama.py")]
        words_of_peer = [*script, str(options.model), options.prompt, str(options.threads)]
        found[LLAMA] = lambda: started(words_of_peer, environment(gemelo=False))
    return found


def generate(options: argparse.Namespace) -> list[str]:
    """The command that is measured."""
    settings = ["--max-tokens", "1", "--temperature", "0", "--threads", str(options.threads)]
    return ["generate", options.prompt, *settings, "--model", str(options.model), "--quiet"]


def environment(gemelo: bool) -> dict[str, str]:
    """Of a child: this checkout of gemelo, which an environment of a peer's own must not see. It
    may keep compiled modules, as installed packages have them."""
    settings = os.environ | {"HF_HUB_OFFLINE": "1"}
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        settings.pop(name, None)
    return settings | ({"PYTHONPATH": str(ROOT)} if gemelo else {})


def rounds(engines: dict[str, Callable[[], Start]], count: int) -> dict[str, list[Start]]:
    """Every engine in turn, `count` times after one round that is not counted."""
    found: dict[str, list[Start]] = {name: [] for name in engines}
    order = list(engines)
    for number in range(count + 1):
        for name in order:
            start = engines[name]()
            if number:
                found[name].append(start)
        order = order[1:] + order[:1]
    return found


def summary(found: dict[str, list[Start]]) -> dict[str, Any]:
    """Medians of every engine, and gemelo beside the other: above 1 it is faster, or larger."""
    fields = ("first_token_s", "exit_s", "peak_rss_bytes")
    medians = {
        name: {field: statistics.median(getattr(one, field) for one in starts) for field in fields}
        for name, starts in found.items()
    }
    result: dict[str, Any] = {"medians": medians}
    if LLAMA in found:
        pairs = list(zip(found[GEMELO], found[LLAMA], strict=True))
        result["ratios"] = {
            "first token, llama.cpp / gemelo": statistics.median(
                theirs.first_token_s / ours.first_token_s for ours, theirs in pairs
            ),
            "peak memory, gemelo / llama.cpp": statistics.median(
                ours.peak_rss_bytes / theirs.peak_rss_bytes for ours, theirs in pairs
            ),
        }
    result["texts"] = {name: starts[0].text for name, starts in found.items()}
    result["rounds"] = {name: [vars(one) for one in starts] for name, starts in found.items()}
    return result


def phases(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of every part's seconds, of the packages' imports, and of what ran beside."""
    runs = []
    for _ in range(options.rounds + 1):
        command = [options.python, str(PHASES), str(time.monotonic()), *generate(options)]
        done = subprocess.run(command, env=environment(gemelo=True), capture_output=True, text=True)
        if done.returncode:
            raise EngineFailure(f"failed: {(done.stderr.splitlines() or ['nothing said'])[-1]}")
        runs.append(json.loads(done.stderr.splitlines()[-1]))
    kinds = {kind: {name for run in runs for name in run[kind]} for kind in runs[0]}
    return {
        kind: {
            name: statistics.median(run[kind].get(name, 0.0) for run in runs[1:]) for name in names
        }
        for kind, names in kinds.items()
    }


def shown(result: dict[str, Any]) -> str:
    """Tables for people."""
    out = []
    if "medians" in result:
        body = [
            [name, f"{one['first_token_s']:.3f}", f"{one['exit_s']:.3f}",
             f"{one['peak_rss_bytes'] / 1e6:.0f}"]
            for name, one in result["medians"].items()
        ]  # fmt: skip
        out.append(table(["", "first token after, s", "ended after, s", "peak memory, MB"], body))
        out += [f"{name}: {ratio:.2f}" for name, ratio in result.get("ratios", {}).items()]
    if "phases" in result:
        out.append(phases_table(result["phases"]))
    return "\n".join(out)


def phases_table(found: dict[str, dict[str, float]]) -> str:
    """Milliseconds of every part, the longest first, each package's import a part; the small ones
    together."""
    parts = dict(found["parts"])
    parts |= {f"import {name}": seconds for name, seconds in found["imports"].items()}
    body = sorted(parts.items(), key=lambda part: -part[1])
    rows = [[name, f"{1e3 * seconds:.0f}"] for name, seconds in body if seconds >= SMALL_S]
    small_s = sum(seconds for seconds in parts.values() if seconds < SMALL_S)
    rows.append([f"parts under {1e3 * SMALL_S:.0f} ms", f"{1e3 * small_s:.0f}"])
    rows.append(["together", f"{1e3 * sum(parts.values()):.0f}"])
    rows.append(["beside: tokenizer's thread", f"{1e3 * sum(found['beside'].values()):.0f}"])
    return table(["part", "ms"], rows)


def cpu_name() -> str:
    """As gemelo tells it, asked of its interpreter."""
    code = "from gemelo.evals.machine import cpu_name; print(cpu_name())"
    return asked(sys.executable, code)


def default_model() -> str:
    """The embedded Gemma 3 270M."""
    return asked(sys.executable, "from gemelo.checkpoints.locate import demo; print(demo())")


def asked(python: str, code: str) -> str:
    """What a line of Python prints, with this checkout of gemelo."""
    done = subprocess.run(
        [python, "-c", code], env=environment(gemelo=True), capture_output=True, text=True
    )
    if done.returncode:
        raise EngineFailure(f"failed: {(done.stderr.splitlines() or ['nothing said'])[-1]}")
    return done.stdout.strip()


def main() -> int:
    options = parsed()
    try:
        options.model = options.model or Path(default_model())
        result: dict[str, Any] = {
            "cpu": cpu_name(),
            "command": shlex.join(sys.argv),
            "file": options.model.name,
            "threads": options.threads,
            "prompt": options.prompt,
            "load_average": os.getloadavg(),
        }
        if options.phases:
            result["phases"] = phases(options)
        else:
            result |= summary(rounds(commands(options), options.rounds))
    except KeyboardInterrupt:
        return 130
    except EngineFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        before = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(before | result, indent=2) + "\n", encoding="utf-8")
    print(shown(result))
    return 0


def parsed() -> argparse.Namespace:
    """The command line."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the embedded 270M")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--phases", action="store_true", help="gemelo's own time, part by part")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has gemelo's")
    parser.add_argument("--llama-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--build-llama", type=Path, metavar="DIR", help="install it there")
    parser.add_argument(
        "--json", type=Path, help="where to write every figure; phases join what is there"
    )
    options = parser.parse_args()
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
