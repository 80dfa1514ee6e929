"""Benchmark: load, first token, prefill and decode, beside the memory bandwidth of the machine.

Decoding one token reads every weight once, so tokens a second times `weights_bytes_per_token` is a
bandwidth, and it is reported beside the one that the machine reached in the same run. Prompts are
seeded random ids and decoding is greedy and ignores the end of text, so that every run does the
same work. Figures are medians with their least and greatest; a warm-up run is not counted.

A process's peak of memory never goes down, and what one load frees the next does not take all of.
So the peak is that of the first load and the first run, before anything is repeated: what
`generate` takes for a prompt of that length in a process of its own.

    result = bench("gemma-3-1b-it-q8_0.gguf", prompt_tokens=512, new_tokens=128, repeat=5)
    result.timings["decode_tokens_per_s"].median
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gemelo.api import Model, load
from gemelo.config.options import KVFormat, WeightFormat
from gemelo.config.sampling import Sampling
from gemelo.engine.decoder import Decoder
from gemelo.engine.memory.process import peak_rss_bytes
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING
from gemelo.engine.timings import Timings
from gemelo.errors import InputError
from gemelo.evals import machine
from gemelo.kernels import native

Progress = Callable[[int, int], None]  # measurements done, measurements in all
_SHORT_PROMPT = 8  # tokens of the prompt whose first token ends "load to first token"


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured. Seconds, bytes, and tokens or bytes a second."""

    model: str
    format: str
    threads: int
    cpu: str
    prompt_tokens: int
    new_tokens: int
    repeat: int
    timings: dict[str, Spread]
    weights_bytes_per_token: int
    memory_bandwidth_bytes_per_s: float
    peak_rss_bytes: int

    @property
    def achieved_bytes_per_s(self) -> float:
        """Weights read a second while decoding, at the median speed."""
        return self.weights_bytes_per_token * self.timings["decode_tokens_per_s"].median

    def to_json(self) -> dict[str, Any]:
        """One flat object; `timings` holds medians, `spread` their least and greatest."""
        return {
            "model": self.model,
            "format": self.format,
            "threads": self.threads,
            "cpu": self.cpu,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "repeat": self.repeat,
            "timings": {name: spread.median for name, spread in self.timings.items()},
            "spread": {name: [s.least, s.greatest] for name, s in self.timings.items()},
            "weights_bytes_per_token": self.weights_bytes_per_token,
            "achieved_bytes_per_s": self.achieved_bytes_per_s,
            "memory_bandwidth_bytes_per_s": self.memory_bandwidth_bytes_per_s,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def bench(
    model: str | Path | None = None,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    repeat: int = 5,
    threads: int | None = None,
    format: WeightFormat = "native",
    kv_format: KVFormat | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure a model from its file: `repeat` runs of one load, then `repeat` loads.

    A load is that of a cold object from a warm file, up to the first token of a short prompt; one
    more load and one more run come first and are not counted, and the peak of memory is theirs.
    Raises `InputError` for counts that make no sense or do not fit the context.
    """
    _check_counts(prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeat=repeat)
    done = _counter(2 * (repeat + 1), progress)

    def load_one() -> Model:
        one = load(model, format=format, kv_format=kv_format, device=device, threads=threads)
        _check_context(one, prompt_tokens + new_tokens)
        return one

    loaded = load_one()
    run(loaded, _SHORT_PROMPT, 1, seed)
    done()
    runs, peak_bytes = [], 0
    for number in range(repeat + 1):
        runs.append(run(loaded, prompt_tokens, new_tokens, seed + number))
        peak_bytes = peak_bytes or peak_rss_bytes()
        done()
    name, held = str(loaded.checkpoint.path), loaded.checkpoint.format
    read_bytes = weights_bytes_per_token(loaded.engine.decoder)
    del loaded
    loads = []
    for _ in range(repeat):
        gc.collect()  # one model at a time in memory
        loads.append(run(load_one(), _SHORT_PROMPT, 1, seed))
        done()
    return BenchResult(
        model=name,
        format=held,
        threads=native.num_threads(),
        cpu=machine.cpu_name(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeat=repeat,
        timings=_spreads(loads, runs[1:]),
        weights_bytes_per_token=read_bytes,
        peak_rss_bytes=peak_bytes,
        memory_bandwidth_bytes_per_s=machine.memory_bandwidth(),
    )


def run(model: Model, prompt_tokens: int, new_tokens: int, seed: int = 0) -> Timings:
    """One turn on an empty session: random ids in, greedy tokens out, the end of text ignored.

    `load_s` of the result is the model's own, so that `time_to_first_token_s` counts it.
    """
    generator = random.Random(seed)
    vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size)
    ids = [generator.randrange(vocab_size) for _ in range(prompt_tokens)]
    session = model.session()
    sampling = Sampling(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    for _ in session.stream(ids, sampling):
        pass
    session.timings.load_s = model.load_s
    return session.timings


def weights_bytes_per_token(decoder: Decoder) -> int:
    """Bytes of weights that decoding one token reads: every matrix and norm, the head once.

    A tied embedding is the head. A table that is only looked up gives a single row, which is what
    it counts for: an untied embedding, and Gemma 3n's per-layer embeddings.
    """
    tables = [PER_LAYER_EMBEDDING]
    if not decoder.config.tie_word_embeddings:
        tables.append("embed_tokens.weight")
    gathered = [decoder.weights[name] for name in tables if name in decoder.weights]
    return decoder.weights.nbytes - sum(t.nbytes - t.nbytes // t.rows for t in gathered)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        least = 2 if name == "new_tokens" else 1  # the first token is prefill's, not decode's
        if value < least:
            raise InputError(f"{name} = {value}; expected {least} or more")


def _check_context(model: Model, tokens: int) -> None:
    if tokens > model.engine.context:
        raise InputError(
            f"{tokens} prompt and new tokens do not fit the context of {model.engine.context}; "
            "lower prompt_tokens or new_tokens"
        )


def _spreads(loads: Sequence[Timings], runs: Sequence[Timings]) -> dict[str, Spread]:
    """Loading from the loads; a loaded model's first token and rates from the runs."""
    return {
        "load_s": Spread.of([t.load_s for t in loads]),
        "load_to_first_token_s": Spread.of([t.time_to_first_token_s for t in loads]),
        "time_to_first_token_s": Spread.of([t.prefill_s for t in runs]),
        "prefill_s": Spread.of([t.prefill_s for t in runs]),
        "decode_s": Spread.of([t.decode_s for t in runs]),
        "prefill_tokens_per_s": Spread.of([t.prefill_tokens_per_s for t in runs]),
        "decode_tokens_per_s": Spread.of([t.decode_tokens_per_s for t in runs]),
    }


def _counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """A function to call after every measurement."""
    finished = 0

    def one_more() -> None:
        nonlocal finished
        finished += 1
        if progress is not None:
            progress(finished, total)

    return one_more
