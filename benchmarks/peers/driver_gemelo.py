"""gemelo, through the two regimes of its engine, on the same GGUF file.

step.prefill fills a cache of one row, KVCache.repeat makes rows of it, step.decode adds tokens
"""

from __future__ import annotations

import time
from statistics import median

from protocol import serve

from gemelo import __version__
from gemelo.api import load
from gemelo.engine import step
from gemelo.engine.kv import KVCache
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.tokens import Tokens
from gemelo.evals.machine import read_speeds
from gemelo.kernels.native import isa


class Gemelo:
    """A loaded model; every turn has a cache of its own, as a session has."""

    version = f"gemelo {__version__}, kernels {isa()}"

    def load(self, file: str, threads: int, context: int) -> None:
        self.engine = load(file, threads=threads, context=context).engine

    def turn(self, ids: list[list[int]], new: int) -> tuple[float, float]:
        decoder, rows, count = self.engine.decoder, len(ids), len(ids[0])
        cache = self.engine.cache()
        decoder.prepare(count + new)
        started = time.perf_counter()
        scores = step.prefill(decoder, cache, Tokens(ids[0]), 0)
        tokens = [int(scores.argmax())] * rows
        prefill_s = time.perf_counter() - started
        cache = cache if rows == 1 else widened(cache, rows)
        started = time.perf_counter()
        for position in range(count, count + new):
            scores = step.decode(decoder, cache, tokens, [position] * rows)
            tokens = scores.argmax(-1).tolist()
        return prefill_s, time.perf_counter() - started

    def read(self) -> float:
        decoder = self.engine.decoder
        if not isinstance(decoder, NativeDecoder) or decoder.panels is None:
            return 0.0
        room = decoder.panels.room
        return median(read_speeds(room[: len(room) // 256 * 256]))


def widened(cache: KVCache, rows: int) -> KVCache:
    """The rows of a batch: the first prompt, repeated; decoding cannot tell."""
    return cache.repeat(rows)


if __name__ == "__main__":
    serve(Gemelo())
