"""Parallel sampling: n continuations of one prompt, which is read once.

The cache that holds the prompt is copied for each continuation, and all go on together: one step
decodes a token of each that has not ended. The session keeps the prompt, and none of the answers.

    yield from pieces_of(rows, scores, decoder, cache, position=len(ids))

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemelo.engine import step
from gemelo.engine.continuation import Continuation, Piece
from gemelo.engine.decoder import Decoder, StepPiece
from gemelo.engine.kv import KVCache
from gemelo.kernels.quants import Floats


def pieces_of(
    rows: Sequence[Continuation], scores: Floats, decoder: Decoder, held: KVCache, position: int
) -> Iterator[Piece]:
    """The pieces of all continuations of what `held` holds, up to `position`; scores (V,) are those
    of the first token of each."""
    caches = [held.copy() for _ in rows]
    together = [scores] * len(rows)
    while True:
        for row, row_scores in zip(rows, together, strict=True):
            yield row.choose(row_scores, last=position >= held.context)
        live = [place for place, row in enumerate(rows) if row.finish_reason is None]
        rows, caches = [rows[place] for place in live], [caches[place] for place in live]
        if not rows:
            return
        found = step.forward(
            decoder,
            [
                StepPiece(cache, row.ids[-1:], position)
                for row, cache in zip(rows, caches, strict=True)
            ],
        )
        together = [row_scores[0] for row_scores in found]
        position += 1
