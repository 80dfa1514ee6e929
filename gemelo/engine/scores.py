"""Scores of next tokens, with the largest of every 64 of them beside.

A native step finds these maxima while it looks whether all scores are finite. With them a sampler
reads a fraction of the vocabulary: whether there is a likeliest token is in 4,096 maxima and not in
262,144 scores, and the few largest lie in the few blocks whose maxima are largest.

It is an array like any other; only the rows of what a step gave carry maxima, and whatever is
computed from them has none, unless it says at which ids it differs (`with_maxima_of`).

    scores = Scores.empty(rows=2, vocab_size=262144)
    scores[0].maxima.shape                        # (4096,)

N rows, V vocabulary.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gemelo.kernels.quants import Floats

BLOCK = 64  # scores that one maximum is of, the extension's MAXIMA_BLOCK
_LEAST_BYTES = 1 << 25  # of scores whose memory is kept: less malloc keeps itself
_MOST_BYTES = 1 << 26

if TYPE_CHECKING:
    FloatArray = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]
else:
    FloatArray = np.ndarray


class Scores(FloatArray):
    """Scores (N, V) or (V,) in float32; `maxima` (N, ceil(V / BLOCK)) or of one row, or None."""

    maxima: Floats | None

    @classmethod
    def empty(cls, rows: int, vocab_size: int) -> Scores:
        """Scores and maxima yet to be written."""
        return cls.over(np.empty((rows, vocab_size), np.float32))

    @classmethod
    def over(cls, array: Floats) -> Scores:
        """The same in memory that there is already, (N, V)."""
        rows, vocab_size = array.shape
        scores: Scores = array.view(cls)
        scores.maxima = np.empty((rows, -(-vocab_size // BLOCK)), np.float32)
        return scores

    def __array_finalize__(self, source: object) -> None:
        self.maxima = None

    def __getitem__(self, key: Any) -> Any:
        """As an array does; a row, or some rows, of those that a step gave, keep their maxima."""
        part = super().__getitem__(key)
        if self.maxima is not None and self.ndim == 2 and isinstance(key, int | slice):
            part.maxima = self.maxima[key]
        return part


class ScoreMemory:
    """The memory of large steps' scores, used again when nobody holds any of them: what malloc has
    from the system for so much is cleared page by page first, and given back after every step.

    Lots are buffers and no arrays, so that all views of what is given refer to that one array, and
    it is gone when the last of them is.
    """

    def __init__(self) -> None:
        self._lots: list[tuple[memoryview, weakref.ref[Floats]]] = []  # and who holds them
        self._lock = threading.Lock()

    def empty(self, rows: int, vocab_size: int) -> Scores:
        """Scores (rows, V) and maxima yet to be written."""
        size = rows * vocab_size
        if not _LEAST_BYTES <= 4 * size <= _MOST_BYTES:
            return Scores.empty(rows, vocab_size)
        with self._lock:
            return Scores.over(self._array(size)[:size].reshape(rows, vocab_size))

    def _array(self, size: int) -> Floats:
        """At least so many numbers that nobody holds; the two lots that came last are kept."""
        free = (room for room, holder in self._lots if holder() is None and len(room) >= size)
        found = next(free, None)
        room = np.empty(size, np.float32).data if found is None else found
        array: Floats = np.frombuffer(room, np.float32)
        others = [lot for lot in self._lots if lot[0] is not room]
        self._lots = [*others[-1:], (room, weakref.ref(array))]
        return array


def leading(scores: Floats, count: int) -> Floats:
    """The first `count` of scores (V,), with the maxima of those."""
    if len(scores) == count:
        return scores
    part = scores[:count]
    maxima = maxima_of(scores)
    if maxima is not None and isinstance(part, Scores):
        kept = maxima[: -(-count // BLOCK)]
        if count % BLOCK:
            kept = kept.copy()
            kept[-1] = part[count // BLOCK * BLOCK :].max()
        part.maxima = kept
    return part


def maxima_of(scores: Floats) -> Floats | None:
    """The maxima that scores (V,) carry; None where they have none."""
    return scores.maxima if isinstance(scores, Scores) else None


def with_maxima_of(changed: Floats, scores: Floats, ids: Iterable[int]) -> Floats:
    """`changed` (V,) with maxima, where `scores` (V,) have some: theirs, but anew of the blocks of
    `ids`, outside of which nothing differs. Ids that are not below V are nobody's."""
    maxima = maxima_of(scores)
    if maxima is None:
        return changed
    part = changed.view(Scores)
    part.maxima = maxima.copy()
    blocks = np.array([*{token // BLOCK for token in ids if token < len(changed)}], np.int64)
    places = (blocks[:, None] * BLOCK + np.arange(BLOCK)).clip(max=len(changed) - 1)
    part.maxima[blocks] = changed[places].max(1)  # of a last one that is shorter the end, again
    return part


def read_only(scores: Floats) -> Floats:
    """The same scores as a plain array that cannot be written: maxima beside would not follow."""
    plain = scores.view(np.ndarray)
    plain.flags.writeable = False
    return plain
