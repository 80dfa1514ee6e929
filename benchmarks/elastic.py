"""What elasticity is worth: Gemma 3n in its real shapes, random weights, ratios from one run.

    python benchmarks/elastic.py --threads 2 --repeat 5 > benchmarks/results/elastic.json

Random weights say nothing of quality and everything of speed: bytes and operations are those of
the real E4B, E2B and Gemma 3 4B in bfloat16, by the native kernels (`elastic_kernels.py` compares
them in 4 bits). The per-layer table is a small one that every id maps into, because a gather of 18
KB a token is what it costs, however large the table. Measurements alternate and medians are
compared, so that a slow moment of the machine hits both sides. Needs 20 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from gemelo.config import Gemma3Config, Gemma3nConfig, ModelConfig, Submodel
from gemelo.config.parameters import decoder_shapes
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.device import decoder_on, set_threads
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.memory.process import peak_rss_bytes
from gemelo.engine.programs.backends import NativeBackend, Step
from gemelo.engine.programs.gemma3n import Buffers, write_mlp
from gemelo.engine.programs.writer import Writer
from gemelo.engine.tokens import Tokens
from gemelo.evals.machine import cpu_name
from gemelo.kernels import native
from gemelo.kernels.quants import FORMATS, Packed, pack
from gemelo.kernels.repacked import large_pages
from gemelo.weights.tensors import Weights

CONTEXT = 4096
FEW_TOKENS = 4096  # the vocabulary where every token of a prompt is scored
EMBEDDING = "embed_tokens.weight"
E4B = Gemma3nConfig(vocab_size_per_layer_input=4096)
GEMMA3_4B = Gemma3Config(
    hidden_size=2560,
    intermediate_size=10240,
    num_hidden_layers=34,
    sliding_window=1024,
    rope_scaling_factor=8.0,
)


def filled(config: ModelConfig) -> Decoder:
    """A decoder in bfloat16 whose matrices repeat one random stretch: real bytes, made quickly, in
    large pages, where loading moves the weights of a file."""
    numbers = np.random.default_rng(0).standard_normal(1 << 22, np.float32) * np.float32(0.02)
    stretch = pack(numbers, FORMATS["bf16"]).blocks[0]
    neutral = 1.0 if config.is_matformer else 0.0  # Gemma 3's norms are 1 + weight
    tensors: dict[str, Packed] = {}
    for name, shape in decoder_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = Packed.of(np.full(shape, neutral, np.float32))
            continue
        rows, row_bytes = shape[0], FORMATS["bf16"].row_bytes(shape[1])
        blocks = large_pages(rows * row_bytes)
        for start in range(0, len(blocks), len(stretch)):
            blocks[start : start + len(stretch)] = stretch[: len(blocks) - start]
        tensors[name] = Packed(blocks.reshape(rows, row_bytes), FORMATS["bf16"])
    return decoder_on("cpu", config, Weights(tensors), repack=False)


def with_few_tokens(decoder: Decoder) -> Decoder:
    """The same with the beginning of its vocabulary: to score a token costs next to nothing."""
    config = dataclasses.replace(decoder.config, vocab_size=FEW_TOKENS)  # type: ignore[type-var]
    fewer = decoder.weights[EMBEDDING].prefix(rows=FEW_TOKENS)
    return decoder_on("cpu", config, Weights({**decoder.weights, EMBEDDING: fewer}), repack=False)


def alternate(repeat: int, **actions: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every action, in turn, `repeat` times after one warm-up of each."""
    for action in actions.values():
        action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeat):
        for name, action in actions.items():
            seconds[name].append(action())
        say({name: round(values[-1], 4) for name, values in seconds.items()})
    return seconds


def decoding(decoder: Decoder, tokens: int, context: int = 32) -> Callable[[], float]:
    """Seconds a token, decoding `tokens` after a context."""
    cache = decoder.cache(CONTEXT)
    step.write(decoder, cache, Tokens(range(100, 100 + context)), 0)

    def run() -> float:
        cache.rewind(context)
        started = time.perf_counter()
        for place in range(context, context + tokens):
            step.decode(decoder, cache, 1000 + place, place)
        return (time.perf_counter() - started) / tokens

    return run


def reading(decoder: Decoder, tokens: int, whole: bool = False) -> Callable[[], float]:
    """Seconds of a prompt; `whole` scores every token, for which all layers run, as others do."""
    ids = [(i * 7919) % 4000 + 50 for i in range(tokens)]

    def run() -> float:
        cache = decoder.cache(CONTEXT)
        started = time.perf_counter()
        if not whole:
            step.prefill(decoder, cache, Tokens(ids))
        else:
            for begin in range(0, tokens, cache.chunk):  # scores of one step at a time
                step.verify(decoder, cache, ids[begin : begin + cache.chunk], begin)
        return time.perf_counter() - started

    return run


def feed_forwards(decoder: Decoder, layers: Sequence[int]) -> Callable[[], float]:
    """Seconds of the feed-forwards of some layers, for one token: a program of them alone."""
    config, backend = decoder.config, NativeBackend(decoder.config)
    writer = Writer(config, decoder.weights, config.layers, backend)
    buffers, embedding = Buffers.of(writer), writer.matrix("embed_tokens")
    writer.program.embed(embedding, config.embed_scale, buffers.m)
    for layer in layers:
        write_mlp(writer.layer(layer), buffers)
    writer.program.logits(buffers.y, writer.matrix("embed_tokens", rows=16), 0.0)
    cache = decoder.cache(CONTEXT)
    cache.make_room(1, 1)
    one = Step(
        ids=np.array([[506]]),
        positions=np.array([[0]]),
        cache=cache,
        logits_to_keep=1,
        scores=np.empty((1, 16), np.float32),
    )

    def run() -> float:
        started = time.perf_counter()
        backend.run(one)
        return time.perf_counter() - started

    return run


def switching(decoder: Decoder) -> dict[str, float]:
    """Seconds of changing size between tokens, and what the process grew by meanwhile."""
    sizes = SubmodelViews(decoder)
    chosen = [sizes.parse(name) for name in ("E2B", "E4B", "E3.18B", "E2.49B")]
    before = peak_rss_bytes()
    seconds = []
    for turn in range(200):
        started = time.perf_counter()
        sizes.view(chosen[turn % len(chosen)])
        seconds.append(time.perf_counter() - started)
    return {
        "first_s": max(seconds[:4]),
        "median_s": statistics.median(seconds),
        "rss_growth_bytes": peak_rss_bytes() - before,
    }


def verifying(decoder: Decoder, tokens: int) -> Callable[[], float]:
    """Seconds of one pass over `tokens` positions with all their scores: a round's verification."""
    cache = decoder.cache(CONTEXT)
    step.write(decoder, cache, Tokens(range(100, 132)), 0)

    def run() -> float:
        cache.rewind(32)
        started = time.perf_counter()
        step.verify(decoder, cache, list(range(200, 200 + tokens)), 32)
        return time.perf_counter() - started

    return run


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median of the ratios within each turn."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def say(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    if native.module is None:
        sys.exit("the native kernels were not built here")
    set_threads(options.threads)
    results: dict[str, object] = {
        "cpu": cpu_name(), **vars(options), "format": "bf16", "kernels": native.isa()
    }  # fmt: skip

    say("building E4B")
    whole = filled(E4B)
    e2b = SubmodelViews(whole).view(Submodel.named("E2B", E4B))
    results["switch"] = switching(whole)

    count = options.new_tokens
    found = alternate(options.repeat, e4b=decoding(whole, count), e2b=decoding(e2b, count))
    results["decode_s_per_token"] = found
    results["decode E2B / E4B"] = ratio(found, "e4b", "e2b")

    found = alternate(
        options.repeat, **{f"verify_{n}": verifying(whole, n) for n in (1, 2, 3, 5, 9)}
    )
    results["verify / one token"] = {
        name: ratio(found, name, "verify_1") for name in found if name != "verify_1"
    }

    tokens, few = options.prompt_tokens, with_few_tokens(whole)
    found = alternate(
        max(1, options.repeat // 2),
        full=reading(few, tokens, whole=True),
        half=reading(few, tokens),
    )
    results["prefill_s"] = found
    results["half-depth / full prefill"] = ratio(found, "full", "half")

    found = alternate(
        options.repeat * 4,
        dense=feed_forwards(whole, range(10, 20)),  # as wide
        sparse=feed_forwards(whole, range(10)),
    )
    results["sparse_ffn_s"] = {name: statistics.median(values) for name, values in found.items()}
    results["sparse / dense feed-forward"] = ratio(found, "dense", "sparse")

    say("building Gemma 3 4B")
    e4b_reading = reading(whole, 512)
    other = filled(GEMMA3_4B)
    found = alternate(options.repeat, gemma3_4b=reading(other, 512), e4b=e4b_reading)
    results["prefill_512_s"] = found
    results["prefill E4B / Gemma 3 4B"] = ratio(found, "gemma3_4b", "e4b")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
