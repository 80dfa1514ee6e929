"""The elasticity of Gemma 3n on the native kernels: random weights in the real shapes, Q4_0.

    python benchmarks/random_weights.py e4b q4_0 E4B.gguf
    python benchmarks/random_weights.py 4b q4_0 4B.gguf
    python benchmarks/elastic_kernels.py E4B.gguf 4B.gguf --threads 2

What is compared takes turns; each figure is the median of the rounds, each ratio the median of the
ratios within a round. The decode steps follow a prompt of 32 tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable

from gemelo.api import load
from gemelo.config import Submodel
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.engine import Engine
from gemelo.engine.tokens import Tokens
from gemelo.kernels import native

SEED = 0
Timed = Callable[[], float]


def ids_of(count: int) -> list[int]:
    generator = random.Random(SEED)
    return [2, *(generator.randrange(5, 200_000) for _ in range(count - 1))]


def decoding(engine: Engine, decoder: Decoder, tokens: int) -> Timed:
    """Seconds a token, after a prompt of 32."""

    def run() -> float:
        cache, prompt = engine.cache(), ids_of(32)
        step.prefill(decoder, cache, Tokens(prompt), 0)
        started = time.perf_counter()
        for position in range(32, 32 + tokens):
            step.decode(decoder, cache, position, position)
        return (time.perf_counter() - started) / tokens

    return run


def prefilling(engine: Engine, decoder: Decoder, count: int) -> Timed:
    """Seconds of a prompt whose last token alone is scored."""

    def run() -> float:
        started = time.perf_counter()
        step.prefill(decoder, engine.cache(), Tokens(ids_of(count)), 0)
        return time.perf_counter() - started

    return run


def compared(slow: Timed, fast: Timed, rounds: int) -> dict[str, float]:
    """Medians of both, and of slow over fast within a round; the first round warms up."""
    pairs = [(slow(), fast()) for _ in range(rounds + 1)][1:]
    return {
        "slow_s": statistics.median(a for a, _ in pairs),
        "fast_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("e4b")
    parser.add_argument("gemma3_4b")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    model, other = (
        load(path, threads=options.threads) for path in (options.e4b, options.gemma3_4b)
    )
    engine, whole = model.engine, model.engine.decoder
    small = engine.views.view(Submodel.named("E2B", whole.config))
    tokens, rounds = options.new_tokens, options.rounds
    results = {
        "decode, E4B / E2B": compared(
            decoding(engine, whole, tokens), decoding(engine, small, tokens), rounds
        ),
        "prefill 512, Gemma 3 4B / E4B": compared(
            prefilling(other.engine, other.engine.decoder, 512),
            prefilling(engine, whole, 512),
            rounds,
        ),
        "decode, Gemma 3 4B / E4B": compared(
            decoding(other.engine, other.engine.decoder, tokens),
            decoding(engine, whole, tokens),
            rounds,
        ),
    }
    json.dump({"threads": native.num_threads(), "rounds": rounds} | results, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
