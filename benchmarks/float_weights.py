"""Float weights natively and as modules: bfloat16 and float32 directories of the 270M, in turn.

    python benchmarks/float_weights.py --threads 2 --json benchmarks/results/float_weights.json

A directory of safetensors runs on a CPU by the same program as a quantised file, its matrices as
blocks of one. Beside it, in the same process and over the same weights, run the modules of
`gemelo.models`, which multiply as PyTorch does and are what such a directory once ran on. Both read
a prompt and add greedy tokens after a short one, each with the KV cache that it makes by itself.
They take turns, and so do the formats; one round comes first and is not counted. Medians of the
rounds in tokens a second, and medians of the ratios within a round. The directories are written
from the embedded default by `gemelo convert` if they are not there (0.5 and 1.1 GB). Needs the
extra torch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from markdown_tables import significant, table
from peers.subjects import default_folder

from gemelo import __version__
from gemelo.api import load
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.locate import demo
from gemelo.cli.terminal import Bar, note
from gemelo.config.options import TargetFormat
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.tokens import Tokens
from gemelo.errors import GemeloError
from gemelo.evals.machine import cpu_name, memory_bandwidth
from gemelo.kernels import native

FORMATS: tuple[TargetFormat, ...] = ("bf16", "f32")
NATIVE, MODULES = "native", "modules"
SHORT = 32  # tokens of the prompt that decoding follows
CONTEXT = 4096
Speeds = dict[str, float]  # tokens a second, by measure


def directory(format: TargetFormat, files: Path) -> Path:
    """The 270M in a format, written if it is not there yet."""
    target = files / f"hf-{format}" / "270m"
    if not target.exists():
        with Bar(f"writing {target}") as bar:
            convert(demo(), target, format, progress=bar)
    return target


def decoders(path: Path, threads: int) -> dict[str, Decoder]:
    """The same weights twice; GemeloError where the kernels do not run them."""
    made = load(path, device="cpu", threads=threads, context=CONTEXT).engine.decoder
    assert isinstance(made, NativeDecoder)
    if not made.is_native:
        raise GemeloError(f"{path}: the native kernels do not run this here, so nothing to compare")
    return {NATIVE: made, MODULES: ModuleDecoder.of(made)}


def reading(decoder: Decoder, ids: list[int]) -> float:
    """Tokens a second of a prompt whose last token alone is scored."""
    cache = decoder.cache(CONTEXT)
    started = time.perf_counter()
    step.prefill(decoder, cache, Tokens(ids))
    return len(ids) / (time.perf_counter() - started)


def adding(decoder: Decoder, ids: list[int], new_tokens: int) -> float:
    """Greedy tokens a second after a prompt; the argmax is in the time."""
    cache = decoder.cache(CONTEXT)
    token = int(step.prefill(decoder, cache, Tokens(ids)).argmax())
    started = time.perf_counter()
    for position in range(len(ids), len(ids) + new_tokens):
        token = int(step.decode(decoder, cache, token, position).argmax())
    return new_tokens / (time.perf_counter() - started)


def one_round(
    every: dict[str, dict[str, Decoder]], number: int, options: argparse.Namespace
) -> Iterator[tuple[str, str, Speeds]]:
    """Format, who ran it, and how fast: the first of a round another one each time."""
    generator = random.Random(number)
    ids = [2, *(generator.randrange(300, 250_000) for _ in range(options.prompt_tokens - 1))]
    for format, both in every.items():
        for name in (NATIVE, MODULES) if number % 2 else (MODULES, NATIVE):
            prefill = reading(both[name], ids)
            decode = adding(both[name], ids[:SHORT], options.new_tokens)
            yield format, name, {"prefill": prefill, "decode": decode}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of all formats."""
    every = {f: decoders(directory(f, options.files), options.threads) for f in options.formats}
    rounds: dict[str, dict[str, list[Speeds]]] = {f: {NATIVE: [], MODULES: []} for f in every}
    for number in range(options.rounds + 1):
        for format, name, speeds in one_round(every, number, options):
            if number:
                rounds[format][name].append(speeds)
        note(f"round {number} of {options.rounds}" if number else "warmed up")
    return {
        "memory_bandwidth_bytes_per_s": memory_bandwidth(),
        "formats": {
            format: summary(found) | {"bytes": every[format][NATIVE].weights.nbytes}
            for format, found in rounds.items()
        },
    }


def summary(rounds: dict[str, list[Speeds]]) -> dict[str, Any]:
    """Medians of both, and of native beside modules within a round."""
    pairs = list(zip(rounds[NATIVE], rounds[MODULES], strict=True))
    measures = ("prefill", "decode")
    return {
        **{name: {m: statistics.median(r[m] for r in rounds[name]) for m in measures}
           for name in rounds},
        "native / modules": {m: statistics.median(a[m] / b[m] for a, b in pairs) for m in measures},
        "rounds": rounds,
    }  # fmt: skip


def shown(result: dict[str, Any]) -> str:
    """A table for people."""
    body = []
    for format, found in result["formats"].items():
        for measure in ("prefill", "decode"):
            speeds = [significant(found[name][measure]) for name in (NATIVE, MODULES)]
            ratio = f"{found['native / modules'][measure]:.2f}x"
            body.append([format, measure, *speeds, ratio])
    heads = ["format", "tokens/s of", "native", "modules", "native / modules"]
    return table(heads, body)


def main() -> int:
    options = parsed()
    try:
        result: dict[str, Any] = {
            "cpu": cpu_name(),
            "command": shlex.join(sys.argv),
            "versions": f"gemelo {__version__}, kernels {native.isa()}, torch {torch.__version__}",
            "threads": options.threads,
            "prompt_tokens": options.prompt_tokens,
            "new_tokens": options.new_tokens,
            "load_average": os.getloadavg(),
        }
        result |= measure(options)
    except KeyboardInterrupt:
        return 130
    except GemeloError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(shown(result))
    return 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument(
        "--files", type=Path, default=default_folder(), help="directories, made if absent"
    )
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args()
    if min(options.rounds, options.threads, options.new_tokens) < 1:
        parser.error("--rounds, --threads and --new-tokens must be 1 or more")
    if not SHORT <= options.prompt_tokens <= CONTEXT - options.new_tokens:
        parser.error(f"--prompt-tokens must be {SHORT} to {CONTEXT - options.new_tokens}")
    return options


if __name__ == "__main__":
    sys.exit(main())
