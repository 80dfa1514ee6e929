"""Attention masks from positions: causal, sliding window, and bidirectional within an image.

A cache slot, a padded batch and a plain sequence all look the same here: queries and keys carry
absolute positions, and -1 marks what is not there (an empty slot, a padded token). No mask is ever
stored, sliced or kept in step with a cache; it is computed from the positions that the cache hands
back. For a window of 3 over positions 0..4 (rows are queries):

    causal            sliding, window 3
    # . . . .         # . . . .
    # # . . .         # # . . .
    # # # . .         # # # . .
    # # # # .         . # # # .
    # # # # #         . . # # #

    mask = attention_mask(positions, positions, window=512)

The tokens of a picture see each other both ways. Nothing is said of blocks: a query may bring the
last position that it sees, which is its own for text and its picture's end for a picture's token.

    mask = attention_mask(positions, positions, window=512, attend_until=ends)

B rows, T queries, S keys.
"""

from __future__ import annotations

from torch import Tensor


def attention_mask(
    queries: Tensor, keys: Tensor, window: int | None = None, attend_until: Tensor | None = None
) -> Tensor:
    """True where query i may attend to key j: j <= i, and j > i - window where there is a window.

    queries (B, T) and keys (B, S) are positions. Returns bool (B, 1, T, S). A window counts the
    query itself, and bounds the past alone: `attend_until` (B, T), the last position that each
    query sees, stands for i in the first condition only. Padded queries (-1) see every key, so that
    their unread result stays finite.
    """
    query, key = queries[:, None, :, None], keys[:, None, None, :]
    end = query if attend_until is None else attend_until[:, None, :, None]
    seen = (key >= 0) & (key <= end)
    if window is not None:
        seen &= key > query - window
    return seen | (query < 0)
