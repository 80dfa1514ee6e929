"""Parallel sampling: n continuations of one prompt, which is read once.

The cache that holds the prompt is copied, a row for each continuation, and all go on in step: one
forward decodes a token of each. A row that has ended is fed a padded token, whose position is -1,
until the last has ended. The session keeps the prompt, and none of the answers.

    yield from pieces_of(rows, scores, decoder, cache, position=len(ids))

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gemelo.engine import step
from gemelo.engine.continuation import Continuation, Piece
from gemelo.engine.decoder import Decoder
from gemelo.engine.kv import KVCache
from gemelo.kernels.quants import Floats


def pieces_of(
    rows: Sequence[Continuation], scores: Floats, decoder: Decoder, held: KVCache, position: int
) -> Iterator[Piece]:
    """The pieces of all continuations of what `held` holds, up to `position`; scores (V,) are those
    of the first token of each."""
    cache = held.repeat(len(rows))
    together = np.broadcast_to(scores, (len(rows), len(scores)))
    while True:
        for row, row_scores in zip(rows, together, strict=True):
            if row.finish_reason is None:
                yield row.choose(row_scores, last=position >= cache.context)
        live = [row.finish_reason is None for row in rows]
        if not any(live):
            return
        ids = [row.ids[-1] if row.ids else 0 for row in rows]
        positions = [position if alive else -1 for alive in live]
        together = step.decode(decoder, cache, ids, positions)
        position += 1
