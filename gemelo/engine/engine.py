"""The engine and its sessions: whole token lists in, a stream of pieces out.

An `Engine` is a loaded decoder with the settings of a run; a `Session` is one timeline on it.
Callers are stateless: they pass the full list of tokens every time, and the session finds the
longest prefix it already holds, rewinds to it and reads only the rest. A turn that was
interrupted anywhere leaves the session usable, because what it claims to hold is only what a
finished step has written.

    session = engine.session()
    for piece in session.stream(ids, Sampling(temperature=0)):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemelo.engine import step
from gemelo.engine.kv import KVCache, KVFormat, RewindError
from gemelo.engine.row import Piece, Row
from gemelo.engine.sampling import Sampling
from gemelo.errors import ContextLengthError, InputError
from gemelo.inputs.tokenizer import Tokenizer
from gemelo.models.gemma3 import Gemma3

Progress = Callable[[int, int], None]  # tokens read, tokens in all


@dataclass
class Timings:
    """Seconds and tokens of one turn. Loading the model is part of its first turn only."""

    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reused_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0

    @property
    def time_to_first_token_s(self) -> float:
        return self.load_s + self.prefill_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


class Engine:
    """A decoder and a tokenizer, with the context, chunk and cache format of a run."""

    def __init__(
        self,
        decoder: Gemma3,
        tokenizer: Tokenizer,
        context: int | None = None,
        chunk: int = 512,
        kv_format: KVFormat = "plain",
    ) -> None:
        """context None is all that the model was trained for; the cache grows as it is used."""
        self.decoder, self.tokenizer = decoder, tokenizer
        self.context = context or decoder.config.max_position_embeddings
        self.chunk, self.kv_format = chunk, kv_format

    def cache(self) -> KVCache:
        """An empty cache of one row."""
        embed = self.decoder.embed_tokens
        device = self.decoder.norm.weight.device
        return KVCache(
            self.decoder.config, self.context, 1, self.chunk, embed.dtype, device, self.kv_format
        )

    def session(self) -> Session:
        """A new timeline, empty."""
        return Session(self)

    def score(self, ids: Sequence[int]) -> Tensor:
        """Next-token scores at every position, (T, V) float32."""
        self.check(ids)
        return step.score(self.decoder, self.cache(), ids)

    def check(self, ids: Sequence[int]) -> None:
        """Raise unless ids can be run: not empty, all in the vocabulary, within the context."""
        if not ids:
            raise InputError("the prompt is empty; give at least one token")
        for token in (min(ids), max(ids)):
            if not 0 <= token < self.decoder.config.vocab_size:
                raise InputError(
                    f"token id {token} is outside 0 to {self.decoder.config.vocab_size - 1}"
                )
        if len(ids) > self.context:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the context holds {self.context} "
                f"(the model takes {self.decoder.config.max_position_embeddings})"
            )

    def run(self, cache: KVCache, rows: Sequence[Row], scores: Tensor) -> Iterator[Piece]:
        """Continue rows whose prompt the cache holds, scores (B, V) being what follows it."""
        position = len(rows[0].prompt)
        while True:
            for row, row_scores in zip(rows, scores, strict=True):
                if row.finish_reason is None:
                    yield row.choose(row_scores, last=position >= self.context)
            live = [row.finish_reason is None for row in rows]
            if not any(live):
                return
            tokens = [row.ids[-1] if row.ids else 0 for row in rows]
            places = [position if alive else -1 for alive in live]
            scores = step.decode(self.decoder, cache, tokens, places)
            position += 1


class Session:
    """One timeline: the tokens held, the cache they are in, and the timings of the last turn."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = engine.cache()
        self.ids: list[int] = []
        self.timings = Timings()
        self.seed = 0

    def stream(
        self, ids: Sequence[int], sampling: Sampling, progress: Progress | None = None
    ) -> Iterator[Piece]:
        """Continue `ids`, reusing what the session holds of them. Close it, or stop, at any time.

        With sampling.n > 1 the prompt is read once and its cache copied; the session keeps the
        prompt and none of the answers.
        """
        self.engine.check(ids)
        self.timings = timings = Timings()
        started = time.perf_counter()
        scores = self.read(ids, progress)
        rows = [Row(self.engine.tokenizer, ids, sampling, i) for i in range(sampling.n)]
        self.seed = rows[0].sampler.seed
        cache = self.cache if sampling.n == 1 else self.cache.repeat(sampling.n)
        clock = time.perf_counter()
        timings.prefill_s = clock - started
        for piece in self.engine.run(cache, rows, scores.expand(sampling.n, -1)):
            if sampling.n == 1:
                self.ids[len(ids) :] = rows[0].ids[:-1]  # the last one is not in the cache yet
            timings.decode_tokens = sum(max(0, len(row.ids) - 1) for row in rows)
            timings.decode_s += time.perf_counter() - clock
            yield piece
            clock = time.perf_counter()  # what the caller did meanwhile is not ours

    @torch.inference_mode()
    def read(self, ids: Sequence[int], progress: Progress | None = None) -> Tensor:
        """Bring the cache to hold `ids`, reusing a common prefix; scores (V,) of what follows."""
        keep = min(common_prefix(self.ids, ids), len(ids) - 1)
        try:
            self.cache.rewind(0, keep)
        except RewindError:
            self.cache.clear()
            keep = 0
        del self.ids[keep:]
        self.timings.reused_tokens, self.timings.prefill_tokens = keep, len(ids) - keep

        def done(position: int) -> None:
            self.ids[:] = ids[:position]
            if progress is not None:
                progress(position - keep, len(ids) - keep)

        return step.prefill(self.engine.decoder, self.cache, ids, keep, done)


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many leading tokens the two have in common."""
    for index, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return index
    return min(len(held), len(wanted))
