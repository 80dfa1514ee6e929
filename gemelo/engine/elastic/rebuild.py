"""KV cache rebuild after a change of sub-model: a second prefill, a few tokens a step.

What a smaller sub-model wrote to the cache is an approximation of what a larger one would have
written. A `CacheRebuild` encodes the sequence anew into a second cache, beside the running
generation; when it has caught up, that cache is a clean prefill of the active size, bit for bit in
float32, and takes the first one's place.

    rebuild = CacheRebuild(decoder, cache, clean_tokens=0)
    rebuild.advance(tokens, 8)      # until rebuild.done == len(tokens)
"""

from __future__ import annotations

from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.kv import KVCache
from gemelo.engine.slots import RewindError
from gemelo.engine.tokens import Tokens
from gemelo.engine.work import Work


class CacheRebuild:
    """A cache on its way to being what `decoder` alone would have written for a sequence."""

    def __init__(self, decoder: Decoder, stale: KVCache, clean_tokens: int) -> None:
        """The first `clean_tokens` positions of `stale` are kept, if sliding layers still hold what
        they saw."""
        self.decoder = decoder
        self.cache = stale.copy()
        self.done = 0
        self._keep(clean_tokens)

    def rewind(self, end: int) -> None:
        """Keep what was encoded of the first `end` tokens, after which others come."""
        if end < self.done:
            self._keep(end)

    def _keep(self, end: int) -> None:
        try:
            self.cache.rewind(end)
            self.done = end
        except RewindError:
            self.cache.clear()
            self.done = 0

    def work(self, tokens: Tokens, count: int) -> Work:
        """To encode up to `count` more of tokens; `done` == len(tokens) is caught up."""
        end = min(self.done + min(count, self.cache.chunk), len(tokens))
        part = tokens[self.done : end]
        return Work(self.decoder, self.cache, part, self.done, held=self._hold)

    def advance(self, tokens: Tokens, count: int) -> int:
        """Do that work alone; how many tokens it was."""
        work = self.work(tokens, count)
        step.run(work)
        return work.read

    def _hold(self, end: int) -> None:
        self.done = end
