"""Who may see whom, as functions of positions.

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

    mask = visible(positions, positions, window=512)

The tokens of a picture see each other both ways. Nothing is said of blocks: a query may bring the
last position that it sees, which is its own for text and its picture's end for a picture's token.

    mask = visible(positions, positions, window=512, reach=reach)

B rows, T queries, S keys.
"""

from __future__ import annotations

from torch import Tensor


def visible(
    queries: Tensor, keys: Tensor, window: int | None = None, reach: Tensor | None = None
) -> Tensor:
    """True where query i may attend to key j: j <= i, and j > i - window where there is a window.

    queries (B, T) and keys (B, S) are positions. Returns bool (B, 1, T, S). A window counts the
    query itself, and bounds the past alone: `reach` (B, T), the last position that each query sees,
    stands for i in the first condition only. Padded queries (-1) see every key, so that their
    unread result stays finite.
    """
    query, key = queries[:, None, :, None], keys[:, None, None, :]
    last = query if reach is None else reach[:, None, :, None]
    seen = (key >= 0) & (key <= last)
    if window is not None:
        seen &= key > query - window
    return seen | (query < 0)
