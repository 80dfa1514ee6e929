"""What elasticity is worth: Gemma 3n in its real shapes, random weights, ratios from one run.

    python benchmarks/elastic.py --threads 2 --repeat 5 > benchmarks/results/elastic.json

Random weights say nothing of quality and everything of speed: bytes and operations are those of
the real E4B, E2B and Gemma 3 4B in bfloat16. The per-layer table is a small one that every id
maps into, because a gather of 18 KB a token is what it costs, however large the table.
Measurements alternate and medians are compared, so that a slow moment of the machine hits both
sides. Needs 16 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

from gemelo.config import Gemma3Config, Gemma3nConfig, Submodel
from gemelo.engine import step
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.kv import KVCache
from gemelo.engine.tokens import Tokens
from gemelo.evals.machine import cpu_name
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n

E4B = Gemma3nConfig(vocab_size_per_layer_input=4096)
GEMMA3_4B = Gemma3Config(
    hidden_size=2560,
    intermediate_size=10240,
    num_hidden_layers=34,
    sliding_window=1024,
    rope_scaling_factor=8.0,
)


def filled(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A model in bfloat16 whose matrices repeat one random stretch: real bytes, made quickly."""
    with torch.device("meta"):
        model = build()
    stretch = (torch.randn(1 << 22) * 0.02).bfloat16()
    for name, parameter in list(model.named_parameters()):
        count = parameter.numel()
        data = torch.empty(count, dtype=torch.bfloat16)
        for start in range(0, count, len(stretch)):
            data[start : start + len(stretch)] = stretch[: count - start]
        owner, _, leaf = name.rpartition(".")
        filled_in = torch.nn.Parameter(data.view(parameter.shape), requires_grad=False)
        model.get_submodule(owner).register_parameter(leaf, filled_in)
    return model.eval()


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


def decoding(decoder: step.Decoder, tokens: int, context: int = 32) -> Callable[[], float]:
    """Seconds a token, decoding `tokens` after a context."""
    cache = KVCache(decoder.config, 4096, dtype=torch.bfloat16)
    step.write(decoder, cache, Tokens(range(100, 100 + context)), 0)

    def run() -> float:
        cache.rewind(0, context)
        started = time.perf_counter()
        for place in range(context, context + tokens):
            step.decode(decoder, cache, [1000 + place], [place])
        return (time.perf_counter() - started) / tokens

    return run


def reading(decoder: step.Decoder, tokens: int, whole: bool = False) -> Callable[[], float]:
    """Seconds of a prompt; `whole` runs every layer for every token, as others do."""
    ids = [(i * 7919) % 4000 + 50 for i in range(tokens)]

    def run() -> float:
        cache = KVCache(decoder.config, 4096, dtype=torch.bfloat16)
        started = time.perf_counter()
        if not whole:
            step.prefill(decoder, cache, Tokens(ids), 0)
        else:
            with torch.inference_mode():
                for begin in range(0, tokens, cache.chunk):
                    part = torch.tensor([ids[begin : begin + cache.chunk]])
                    places = torch.arange(begin, begin + part.shape[1])[None]
                    hidden = decoder(part, places, cache)
                decoder.logits(hidden[0, -1])
        return time.perf_counter() - started

    return run


def feed_forward(model: Gemma3n, layer: int) -> Callable[[], float]:
    """Seconds of one feed-forward at decode; layer 0 is sparse, layer 12 as wide and dense."""
    mlp = model.layers[layer].mlp
    x = torch.randn(1, 1, 2048).bfloat16()

    @torch.inference_mode()
    def run() -> float:
        started = time.perf_counter()
        for _ in range(20):
            mlp(x, 16384)
        return (time.perf_counter() - started) / 20

    return run


def switching(model: Gemma3n) -> dict[str, float]:
    """Seconds of changing size between tokens, and what the process grew by meanwhile."""
    sizes = SubmodelViews(model)
    chosen = [sizes.parse(name) for name in ("E2B", "E4B", "E3.18B", "E2.49B")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for turn in range(200):
        started = time.perf_counter()
        sizes.view(chosen[turn % len(chosen)])
        seconds.append(time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "first_s": max(seconds[:4]),
        "median_s": statistics.median(seconds),
        "rss_growth_bytes": (after - before) * 1024,
    }


def verifying(decoder: step.Decoder, tokens: int) -> Callable[[], float]:
    """Seconds of one pass over `tokens` positions with all their scores: a round's verification."""
    cache = KVCache(decoder.config, 4096, dtype=torch.bfloat16)
    step.write(decoder, cache, Tokens(range(100, 132)), 0)

    def run() -> float:
        cache.rewind(0, 32)
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
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results: dict[str, object] = {"cpu": cpu_name(), **vars(options), "format": "bf16"}

    say("building E4B")
    whole = filled(lambda: Gemma3n(E4B))
    assert isinstance(whole, Gemma3n)
    for block in whole.layers:
        block.mlp.transpose_down_proj()  # as gemelo.load does
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

    tokens = options.prompt_tokens
    found = alternate(
        max(1, options.repeat // 2),
        full=reading(whole, tokens, whole=True),
        half=reading(whole, tokens),
    )
    results["prefill_s"] = found
    results["half-depth / full prefill"] = ratio(found, "full", "half")

    found = alternate(
        options.repeat * 4,
        dense=feed_forward(whole, 12),
        sparse=feed_forward(whole, 0),
    )
    results["sparse_ffn_s"] = {name: statistics.median(values) for name, values in found.items()}
    results["sparse / dense feed-forward"] = ratio(found, "dense", "sparse")

    say("building Gemma 3 4B")
    e4b_reading = reading(whole, 512)
    other = filled(lambda: Gemma3(dataclasses.replace(GEMMA3_4B)))
    assert isinstance(other, Gemma3)
    found = alternate(options.repeat, gemma3_4b=reading(other, 512), e4b=e4b_reading)
    results["prefill_512_s"] = found
    results["prefill E4B / Gemma 3 4B"] = ratio(found, "gemma3_4b", "e4b")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
