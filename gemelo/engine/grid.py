"""Grid: where a prompt is cut into the pieces of steps, by absolute positions alone.

The bits that a token gets may depend on the piece it is in: more than `FEW_TOKENS` tokens take
another path than few, and attention goes by blocks of queries counted from a piece's first. So
pieces follow from positions, and not from how many tokens a step has room for: lines lie at every
multiple of the grid, a picture that is seen both ways is a cell of its own, whole, and what is left
of at most `FEW_TOKENS` tokens is one piece. Cells that begin on lines may be put together, as many
as there is room for: blocks of queries lie in them as in each alone.

    pieces(0, 150, limit=512)                                     # [(0, 128), (128, 150)] on 64
    pieces(0, 140, limit=512)                                     # [(0, 128), (128, 140)]

All numbers are positions; a pair is (begin, end).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from gemelo.engine.decoder import FEW_TOKENS

GRID = 64  # a multiple of attention's blocks of 32 queries

Range = tuple[int, int]


def cells(begin: int, end: int, blocks: Sequence[Range] = (), grid: int = GRID) -> Iterator[Range]:
    """From `begin` to `end`, cut at every line and around every block, of which none is cut.

    blocks are in order; `begin` may lie anywhere but inside one.
    """
    if end - begin <= min(FEW_TOKENS, grid):
        if begin < end:
            yield begin, end
        return
    at = max(0, bisect_right(blocks, (begin, begin)) - 1)
    while begin < end:
        while at < len(blocks) and blocks[at][1] <= begin:
            at += 1
        cut = (begin // grid + 1) * grid
        if at < len(blocks):
            first, last = blocks[at]
            cut = last if first <= begin else min(cut, first)
        yield begin, min(cut, end)
        begin = cut


def pieces(
    begin: int, end: int, limit: int, blocks: Sequence[Range] = (), grid: int = GRID
) -> list[Range]:
    """The next pieces of what lies from `begin` to `end`: at most `limit` tokens in all, or one
    cell where that is more."""
    taken: list[Range] = []
    for first, last in cells(begin, end, blocks, grid):
        if taken and last - begin > limit:
            break
        if taken and _join(taken[-1], (first, last), grid):
            taken[-1] = taken[-1][0], last
        else:
            taken.append((first, last))
    return taken


def last_cut(end: int, blocks: Sequence[Range] = (), grid: int = GRID) -> int:
    """The last place up to `end` where all that begins like this is cut, whatever follows: a line,
    or the end of a block."""
    line = end // grid * grid
    for first, last in reversed(blocks):
        if last <= end:
            return max(line, last)
        if first < line:
            line = first // grid * grid
    return line


def _join(piece: Range, cell: Range, grid: int) -> bool:
    """Whether every token gets the same bits in one piece of both as in two."""
    on_lines = piece[0] % grid == 0 and cell[0] % grid == 0
    return on_lines and min(piece[1] - piece[0], cell[1] - cell[0]) > FEW_TOKENS
