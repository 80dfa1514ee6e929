"""Parallel sampling: n continuations of one prompt, which is read once.

The cache that holds the prompt is copied for each continuation, and all go on together: one step
decodes a token of each that has not ended. The session keeps the prompt, and none of the answers.

    yield from continue_all(rows, scores, decoder, cache, position=len(ids))      # in a task

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemelo.engine.continuation import Continuation
from gemelo.engine.decoder import Decoder
from gemelo.engine.kv import KVCache
from gemelo.engine.task import Task
from gemelo.engine.tokens import Tokens
from gemelo.engine.work import Work
from gemelo.kernels.quants import Floats


def continue_all(
    rows: Sequence[Continuation], scores: Floats, decoder: Decoder, held: KVCache, position: int
) -> Task[None]:
    """All continuations of what `held` holds, up to `position`, in step; scores (V,) are those of
    the first token of each."""
    caches = [held.copy() for _ in rows]
    together = [scores] * len(rows)
    while True:
        for row, row_scores in zip(rows, together, strict=True):
            yield row.choose(row_scores, last=position >= held.context)
        live = [place for place, row in enumerate(rows) if row.finish_reason is None]
        rows, caches = [rows[place] for place in live], [caches[place] for place in live]
        if not rows:
            return
        found = yield [
            Work(decoder, cache, Tokens(row.ids[-1:]), position, 1)
            for row, cache in zip(rows, caches, strict=True)
        ]
        together = [row_scores[0] for row_scores in found]
        position += 1
