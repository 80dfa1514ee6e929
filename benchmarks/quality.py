"""How far the kernels' distributions are from the exact ones, on real weights and real text.

    python benchmarks/quality.py --json benchmarks/results/quality.json
    python benchmarks/quality.py --build-llama ~/peers/llama --json benchmarks/results/quality.json

The exact ones: the same file with its weights widened to float32, computed in float32 throughout.
Beside them, on the same token ids: gemelo's native kernels and, in an environment of its own,
llama.cpp, each with 512 tokens a step, as a prompt is read, and with 16, by the kernels that add
tokens. The text is the language reference that Python carries (`pydoc_data.topics`, in the order of
its names), in chunks of 512 tokens, each after `<bos>`. Of every next-token distribution: its
KL(reference || engine) in nats, and whether the likeliest token is the same; perplexity is of the
511 tokens that are known in a chunk. Correctness alone: nothing is timed. The scores of two engines
for a chunk are held in files, 0.5 GB each. Without --build-llama or --llama-python,
GEMELO_BENCH_LLAMA_PYTHON names the interpreter; without any of them llama.cpp is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from peers.engines import ENGINES, LLAMA, build, interpreters
from peers.process import EngineFailure, Process

from gemelo import __version__
from gemelo.api import Model, load
from gemelo.checkpoints.locate import resolve
from gemelo.cli.terminal import note
from gemelo.config.options import KVFormat
from gemelo.engine import step
from gemelo.engine.memory.process import peak_rss_bytes
from gemelo.errors import GemeloError, InputError
from gemelo.evals.machine import cpu_name
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.native import isa
from gemelo.kernels.quants import Floats

CHUNK = 512  # tokens, `<bos>` among them
AT_ONCE = (512, 16)  # tokens a step; up to 16 go through the kernels that decode
ROWS = 32  # distributions that are compared at once, in float64
KV_FORMATS: tuple[KVFormat, ...] = ("bf16", "plain")  # of keys and values; the first by itself
REFERENCE = "reference, f32"

Scorer = Callable[[list[int]], Floats]  # ids (T) -> scores (T, V)


class Distance:
    """What is known of an engine's distributions so far."""

    def __init__(self) -> None:
        self.kl: list[NDArray[Any]] = []  # nats, one a position
        self.same: list[NDArray[Any]] = []  # whether the likeliest token is the reference's
        self.surprise: list[NDArray[Any]] = []  # nats, one a known next token

    def add(self, exact: Floats, scores: Floats, ids: list[int]) -> None:
        """Compare the scores (T, V) of a chunk with those of the reference."""
        if scores.shape != exact.shape:
            raise EngineFailure(f"failed: scores of {scores.shape}, not {exact.shape}")
        following = np.array(ids[1:])
        for begin in range(0, len(ids), ROWS):
            p = log_softmax(exact[begin : begin + ROWS])
            q = log_softmax(scores[begin : begin + ROWS])
            self.same.append(p.argmax(-1) == q.argmax(-1))
            known = following[begin : begin + ROWS]
            self.surprise.append(-q[np.arange(len(known)), known])
            self.kl.append((np.exp(p) * (p - q)).sum(-1))

    def figures(self) -> dict[str, float]:
        """Mean and 99th percentile of the divergence, agreement, perplexity."""
        kl = np.concatenate(self.kl)
        return {
            "kl_mean": float(kl.mean()),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "top_token_agreement": float(np.concatenate(self.same).mean()),
            "perplexity": math.exp(np.concatenate(self.surprise).mean()),
        }


def log_softmax(scores: Floats) -> NDArray[Any]:
    """Log-probabilities of scores (T, V), in float64."""
    x = scores.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


class Comparison:
    """The engines, and how far each has been from the reference."""

    def __init__(self, reference: Scorer, engines: dict[str, Scorer], folder: Path) -> None:
        """folder is where the scores of the reference wait for those of the others."""
        self.reference, self.engines, self.folder = reference, engines, folder
        self.distances = {name: Distance() for name in (REFERENCE, *engines)}
        self.failures: dict[str, str] = {}

    def read(self, ids: list[int]) -> None:
        """One chunk through every engine; one that fails is noted and ends its part."""
        file = self.folder / "reference.npy"
        np.save(file, self.reference(ids))
        exact = mapped(file)
        self.distances[REFERENCE].add(exact, exact, ids)
        for name, scores in self.engines.items():
            if name not in self.failures:
                try:
                    self.distances[name].add(exact, scores(ids), ids)
                except EngineFailure as error:
                    self.fail(name, error)

    def fail(self, name: str, error: EngineFailure) -> None:
        self.failures[name] = str(error)
        note(f"{name}: {error}")

    def figures(self) -> dict[str, dict[str, float]]:
        """Of every engine that came through, the reference first."""
        through = (name for name in self.distances if name not in self.failures)
        return {name: self.distances[name].figures() for name in through}


def mapped(file: Path) -> Floats:
    """The array of a file, read as it is used."""
    scores: Floats = np.load(file, mmap_mode="c")
    return scores


def scorer(model: Model, at_once: int) -> Scorer:
    """The model's scores, with so many tokens a step."""

    def scores(ids: list[int]) -> Floats:
        cache = model.engine.cache()
        found = np.empty((len(ids), model.config.vocab_size), np.float32)
        for begin in range(0, len(ids), at_once):
            part = ids[begin : begin + at_once]
            found[begin : begin + len(part)] = step.verify(model.engine.decoder, cache, part, begin)
        return found

    return scores


def peer_scorer(peer: Process, at_once: int, folder: Path) -> Scorer:
    """A peer's scores, handed over in a file."""
    file = folder / "peer.npy"

    def scores(ids: list[int]) -> Floats:
        peer.score(ids, at_once, str(file))
        return mapped(file)

    return scores


def chunks(tokenizer: Tokenizer, count: int) -> Iterator[list[int]]:
    """The first `count` tokens of the text in chunks, the `<bos>` of each counted."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer.encode(text, bos=False, special=False)
    bos = tokenizer.encode("")
    fresh = CHUNK - len(bos)
    most = len(ids) // fresh * CHUNK
    if count > most:
        raise InputError(f"--tokens {count}; the text has {most}")
    for begin in range(0, count // CHUNK * fresh, fresh):
        yield bos + ids[begin : begin + fresh]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every engine over every chunk."""
    path = resolve(options.model)
    exact = load(path, format="f32", device="cpu", threads=options.threads, context=CHUNK)
    engines = {}
    for kv_format in options.kv_format:
        native = load(
            path, device="cpu", threads=options.threads, context=CHUNK, kv_format=kv_format
        )
        engine = "gemelo" if kv_format == KV_FORMATS[0] else f"gemelo, {kv_format} KV"
        engines |= {title(engine, n): scorer(native, n) for n in options.at_once}
    parts = list(chunks(exact.tokenizer, options.tokens))
    versions = {"gemelo": f"gemelo {__version__}, kernels {isa()}"}
    peer, missing = None, {}
    try:
        peer = started(options)
        versions[LLAMA] = str(peer.load(str(path), CHUNK)["version"])
        engines |= {title(LLAMA, n): peer_scorer(peer, n, folder) for n in options.at_once}
    except EngineFailure as error:
        missing[LLAMA] = str(error)
        note(f"{LLAMA}: {error}")
    try:
        comparison = Comparison(scorer(exact, CHUNK), engines, folder)
        for number, ids in enumerate(parts, 1):
            comparison.read(ids)
            note(f"chunk {number} of {len(parts)}")
    finally:
        if peer is not None:
            peer.close()
    return {
        "file": path.name,
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "ids_sha256": hashlib.sha256(np.array(parts, "<i4").tobytes()).hexdigest(),
        "tokens": sum(map(len, parts)),
        "chunk": CHUNK,
        "versions": versions,
        "engines": comparison.figures(),
        "failures": missing | comparison.failures,
    }


def title(engine: str, at_once: int) -> str:
    return f"{engine}, {at_once} at once"


def started(options: argparse.Namespace) -> Process:
    """llama.cpp in its own environment, made if asked for; `EngineFailure` if there is none."""
    python = options.llama_python
    if options.build_llama is not None:
        python = build("llama", options.build_llama)
    command = ENGINES[LLAMA].command(interpreters({"llama": python}))
    return Process(command, options.threads, keep_path=False)


def main() -> int:
    options = parsed()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options, Path(folder))
    except KeyboardInterrupt:
        return 130
    except GemeloError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    machine = {"cpu": cpu_name(), "command": shlex.join(sys.argv), "threads": options.threads}
    found = machine | found | {"peak_rss_bytes": peak_rss_bytes()}
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines(found)))
    return 0


def parsed() -> argparse.Namespace:
    """The command line."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--model", help="a GGUF file; default: the embedded Gemma 3 270M")
    parser.add_argument(
        "--tokens", type=int, default=4096, help=f"a multiple of {CHUNK}; default: 4096"
    )
    steps = " ".join(map(str, AT_ONCE))
    parser.add_argument(
        "--at-once",
        type=int,
        nargs="+",
        choices=range(1, CHUNK + 1),
        default=AT_ONCE,
        metavar="N",
        help=f"tokens a step, 1 to {CHUNK}; default: {steps}",
    )
    parser.add_argument(
        "--kv-format",
        nargs="+",
        choices=get_args(KVFormat),
        default=KV_FORMATS,
        help=f"what gemelo keeps keys and values as; default: {' '.join(KV_FORMATS)}",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--llama-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--build-llama", type=Path, metavar="DIR", help="install it there")
    options = parser.parse_args()
    if options.tokens < CHUNK or options.tokens % CHUNK:
        parser.error(f"--tokens must be a multiple of {CHUNK}")
    return options


def lines(found: dict[str, Any]) -> list[str]:
    """The table for people."""
    out = [f"{found['file']}, {found['tokens']} tokens of {found['text']}"]
    columns = ("mean KL", "99th pct", "top token", "perplexity")
    out.append(f"{'':<32}" + "".join(f"{column:>12}" for column in columns))
    for name, figures in found["engines"].items():
        kl = f"{figures['kl_mean']:>12.6f}{figures['kl_p99']:>12.6f}"
        same = f"{figures['top_token_agreement']:>12.2%}"
        out.append(f"{name:<32}{kl}{same}{figures['perplexity']:>12.4f}")
    return out + [f"{name}: {text}" for name, text in found["failures"].items()]


if __name__ == "__main__":
    sys.exit(main())
