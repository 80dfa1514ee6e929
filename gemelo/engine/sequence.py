"""Cached sequence: token ids, the KV cache that holds them, and what can be taken back of it.

Callers are stateless: they pass all tokens every time, and the sequence finds the longest prefix
that it already holds, rewinds to it and asks for the rest to be read. What it claims to hold is
what a finished step has written, so that an interrupt anywhere leaves it usable.

A prefix that ends inside what is held is rounded down to the grid on which prompts are cut
(`grid`): so the rest is read in the same pieces as by a fresh sequence, to the bit. Sliding layers
forget what lies behind their window. So two snapshots are kept of them, at the end of the prompt
and at the last beginning that was shared: regenerating an answer and editing a message cost a few
tokens also after the rings have wrapped.

    scores = yield from sequence.read(decoder, writer, tokens)      # in a task (`work`)
    sequence.forget(100)                                            # hold 100 tokens at most

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemelo.config import Submodel
from gemelo.engine.decoder import FEW_TOKENS, Decoder
from gemelo.engine.grid import GRID, last_cut
from gemelo.engine.kv import KVCache
from gemelo.engine.slots import RewindError
from gemelo.engine.snapshots import Snapshot
from gemelo.engine.task import Task, Works
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.engine.work import Work
from gemelo.kernels.quants import Floats

Held = Callable[[int], None]  # told up to where the cache holds tokens
SHARED_TOKENS = 256  # of a shared beginning that is worth a snapshot


class CachedSequence:
    """`ids` is what the cache holds, `spans` the embeddings among them, `writers` the sub-model
    that wrote each position; `num_written` counts what was ever written."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.ids: list[int] = []
        self.spans: list[EmbeddingSpan] = []
        self.writers: list[Submodel | None] = []
        self._prompt_end = 0
        self._prompt_mark = self._shared_mark = 0  # positions that a snapshot is wanted of
        self.snapshots: dict[int, Snapshot] = {}

    @property
    def tokens(self) -> Tokens:
        """What the cache holds."""
        return Tokens(self.ids, self.spans)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache and its snapshots."""
        return self.cache.nbytes + sum(kept.nbytes for kept in self.snapshots.values())

    def _last_cut(self, tokens: Tokens, end: int) -> int:
        """The last place up to `end` where any prompt that begins like tokens is cut."""
        return last_cut(end, tokens.blocks, min(GRID, self.cache.chunk))

    @property
    def on_grid(self) -> int:
        """How many leading tokens belong to the last prompt, and are what they are."""
        return min(len(self.ids), self._prompt_end)

    def restorable(self, end: int) -> int:
        """The last position up to `end` that it can go back to; 0 is always one."""
        if self.cache.slots.holds_window(end):
            return end
        return max((at for at in self.snapshots if at <= end), default=0)

    # ---- what is taken back ----------------------------------------------------------------------

    def usable_prefix(self, tokens: Tokens, limit: int) -> int:
        """How many leading tokens need not be read again: those in common, at most `limit`, on
        the grid unless they are all that is held."""
        shared = min(self.tokens.common_prefix(tokens), limit)
        if shared < len(self.ids):
            shared = self._last_cut(tokens, shared)
        return tokens.uncut(shared)

    def rewind_to(self, tokens: Tokens, limit: int) -> int:
        """Forget what is held beyond the usable prefix of tokens; its length."""
        self.forget(self.usable_prefix(tokens, limit))
        self.spans = list(tokens.spans)
        if len(self.ids) >= SHARED_TOKENS:
            self._shared_mark = len(self.ids)
        return len(self.ids)

    def forget(self, end: int) -> None:
        """Hold `end` tokens and no more; fewer, if the rings do not reach back so far: as many as
        a snapshot has, or none."""
        try:
            self.cache.rewind(end)
        except RewindError:
            end = self.restorable(end)
            if end:
                self.cache.restore(self.snapshots[end])
            else:
                self.cache.clear()
        self.snapshots = {at: kept for at, kept in self.snapshots.items() if at <= end}
        del self.ids[end:], self.writers[end:]

    def copy(self, end: int) -> CachedSequence:
        """Another sequence that holds the first `end` tokens of this one, or as many as a snapshot
        has, or none. Between two steps of this one only."""
        end = self.restorable(end)
        exact = self.cache.slots.holds_window(end)
        other = CachedSequence(self.cache.copy_prefix(end, None if exact else self.snapshots[end]))
        other.ids, other.writers = self.ids[:end], self.writers[:end]
        other.spans, other._prompt_end = list(self.spans), min(end, self._prompt_end)
        other.snapshots = {at: kept for at, kept in self.snapshots.items() if at <= end}
        return other

    def replace_cache(self, cache: KVCache, writer: Submodel | None) -> None:
        """Another cache that holds the same tokens, all written by `writer`."""
        self.cache, self.writers, self.snapshots = cache, [writer] * len(self.ids), {}

    # ---- what is written -------------------------------------------------------------------------

    def read(
        self,
        decoder: Decoder,
        writer: Submodel | None,
        tokens: Tokens,
        told: Held = lambda position: None,
    ) -> Task[Floats]:
        """Hold tokens, of which a prefix is held; scores (V,) of what follows the last."""
        self._prompt_end, self._prompt_mark = len(tokens), self._last_cut(tokens, len(tokens) - 1)
        [scores] = yield [self._work(decoder, writer, tokens, 1, told)]
        last: Floats = scores[-1]
        return last

    def write(self, decoder: Decoder, writer: Submodel | None, tokens: Tokens) -> Task[None]:
        """Hold tokens, of which a prefix is held, and score nothing."""
        if len(tokens) > len(self.ids):
            yield [self._work(decoder, writer, tokens, 0)]

    def extend(self, decoder: Decoder, writer: Submodel | None, more: Tokens) -> Task[None]:
        """Write more tokens after those that are held, and score nothing; at a cost that does not
        grow with these."""
        begun = len(self.ids)
        while self.spans and self.spans[-1].end > begun:  # of a prompt that was not read whole
            span = self.spans.pop()
            if span.begin < begun:
                self.spans.append(span.within(0, begun))
        self.spans.extend(span.moved(begun) for span in more.spans)

        def held(position: int) -> None:
            self.hold(more.ids[len(self.ids) - begun : position - begun], writer)

        yield [Work(decoder, self.cache, more, begun, 0, held)]

    def append(
        self, decoder: Decoder, writer: Submodel | None, ids: Sequence[int], beside: Works
    ) -> Task[Floats]:
        """Write the last token, and guesses after it: scores (T, V) after each. Works `beside` go
        in the same steps."""
        begun = len(self.ids)

        def held(position: int) -> None:
            self.hold(ids[len(self.ids) - begun : position - begun], writer)

        work = Work(decoder, self.cache, Tokens(ids), begun, None, held)
        scores: Floats = (yield [work, *beside])[0]
        return scores

    def _work(
        self,
        decoder: Decoder,
        writer: Submodel | None,
        tokens: Tokens,
        logits_to_keep: int,
        told: Held = lambda position: None,
    ) -> Work:
        """What is left to read of tokens."""
        begin = len(self.ids)

        def held(position: int) -> None:
            self.hold(tokens.ids[len(self.ids) : position], writer, len(tokens) - position)
            told(position)

        return Work(decoder, self.cache, tokens[begin:], begin, logits_to_keep, held)

    def hold(self, ids: Sequence[int], writer: Submodel | None, to_come: int = FEW_TOKENS) -> None:
        """Note what a finished step has written, and who did. Ids come last: what they claim is
        what counts, wherever an interrupt comes."""
        self.writers[len(self.ids) :] = [writer] * len(ids)
        self.ids.extend(ids)
        self._keep_marks(min(to_come, self.cache.chunk))

    def _keep_marks(self, to_come: int) -> None:
        """Take the snapshots that are wanted, when a step of so many tokens would end the rings'
        reach back to them."""
        marks = {self._prompt_mark, self._shared_mark} - {0}
        if not marks <= self.snapshots.keys():
            slots, length = self.cache.slots, len(self.ids)
            for mark in marks - self.snapshots.keys():
                going = mark <= length and not slots.keeps_window(mark, length + to_come)
                if going and slots.holds_window(mark):
                    self.snapshots[mark] = self.cache.snapshot(mark)
        for old in self.snapshots.keys() - marks:
            del self.snapshots[old]
