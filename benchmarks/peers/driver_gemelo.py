"""gemelo, through the two regimes of its engine, on the same GGUF file.

step.prefill fills a cache, KVCache.copy makes one for each row, step.forward adds tokens to all
"""

from __future__ import annotations

import time
from statistics import median

from protocol import serve

from gemelo import __version__
from gemelo.api import load
from gemelo.engine import step
from gemelo.engine.decoder import StepPiece
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
        # The rows of a batch are the first prompt, repeated; decoding cannot tell.
        caches = [cache, *(cache.copy() for _ in range(rows - 1))]
        started = time.perf_counter()
        for position in range(count, count + new):
            pieces = [StepPiece(c, [id], position) for c, id in zip(caches, tokens, strict=True)]
            tokens = [int(found.argmax()) for found in step.forward(decoder, pieces)]
        return prefill_s, time.perf_counter() - started

    def read(self) -> float:
        decoder = self.engine.decoder
        if not isinstance(decoder, NativeDecoder) or decoder.panels is None:
            return 0.0
        room = decoder.panels.room
        return median(read_speeds(room[: len(room) // 256 * 256]))


if __name__ == "__main__":
    serve(Gemelo())
