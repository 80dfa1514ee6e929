"""Prefix pool: sequences whose beginnings new requests may share, and which one a request takes.

A prompt mostly begins as another did: a chat sends all that was said before, many share a system
prompt. A sequence that ended stays, keys and values as they lie, until its bytes are wanted for
running ones; the least recently used goes first. One that still runs may be shared too, as a copy.
All ids are compared with each, as arrays: 64 sequences of 32,000 ids cost less than a millisecond,
and a radix tree (SGLang) or hashes of blocks (vLLM) would only save part of that.

A request takes up what it would have written itself, to the bit. A prompt is read in cells between
lines of a grid, so that is the common prefix down to the last line, in what was read as a prompt.
One beginning counts whole: if all that a sequence holds is the request's beginning, the sequence
goes on, as a chat does.

    pool.begin(sequence, key)                  # runs now; others may copy what it has read
    for evicted in pool.end(sequence): ...     # idle now; who has to go for it
    found = pool.take(tokens, key)             # of the same size, and the same salt
    if found is not None and not found.copy: ...        # the sequence is the request's own now
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gemelo.engine.grid import GRID, last_cut
from gemelo.engine.tokens import EmbeddingSpan, Tokens

_COMPARED = 4096  # ids at once: most sequences differ early, and long arrays lie in no cache

Ids = NDArray[np.int32]


class HeldSequence(Protocol):
    """A sequence, as much of it as decides who may share it."""

    @property
    def tokens(self) -> Tokens:
        """What its cache holds."""

    @property
    def on_grid(self) -> int:
        """How many leading tokens were read as a prompt, on the grid's cells."""

    @property
    def nbytes(self) -> int:
        """Bytes of its cache and snapshots."""

    def restorable(self, end: int) -> int:
        """The last position up to `end` that it can go back to: anywhere while no ring has wrapped,
        else where the ring or a snapshot has the window before it; 0 is always one."""


S = TypeVar("S", bound=HeldSequence)


class Prefix(NamedTuple, Generic[S]):
    """Where a request goes on: at `end` of a sequence that is its own now, or of a copy of it."""

    sequence: S
    end: int
    copy: bool


@dataclass
class _Entry(Generic[S]):
    """A sequence in the pool. Of one that runs `ids` are those of its prompt, as far as it is read;
    nbytes are the pool's own to give, none while it runs."""

    sequence: S
    key: Hashable
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int32))
    nbytes: int = 0
    busy: bool = True

    def grow(self, end: int) -> None:
        """Have the ids up to `end`; those of a prompt stay what they are."""
        new = self.sequence.tokens.ids[len(self.ids) : end]
        if len(new):
            self.ids = np.concatenate([self.ids, np.array(new, np.int32)])


class PrefixPool(Generic[S]):
    """Sequences by key, from the least recently used to the last. One thread's, as all that
    schedules."""

    def __init__(self, limit_bytes: int, grid: int = GRID) -> None:
        """limit_bytes are for those that ended: what running ones have is counted elsewhere
        (`plan.Admission`). grid is the one that prompts are cut on."""
        self.limit_bytes, self.grid = limit_bytes, grid
        self._entries: dict[int, _Entry[S]] = {}  # by id of the sequence; the last used is last

    @property
    def nbytes(self) -> int:
        """Bytes of the sequences that ended."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def num_idle(self) -> int:
        """Sequences that ended."""
        return sum(not entry.busy for entry in self._entries.values())

    # ---- coming and going ------------------------------------------------------------------------

    def begin(self, sequence: S, key: Hashable) -> None:
        """A sequence runs from now on, and its prompt may be copied as far as it is read.

        key says what a request has to have in common with it besides tokens: the size that writes,
        and a salt of the caller's.
        """
        assert id(sequence) not in self._entries, "it is in the pool already"
        self._entries[id(sequence)] = _Entry(sequence, key)

    def end(self, sequence: S) -> list[S]:
        """A sequence that ran is idle, with what its cache holds now; gives those evicted for it,
        or itself if it holds nothing or is larger than the limit."""
        entry = self._entries.pop(id(sequence), None)
        if entry is None:  # it had not begun
            return [sequence]
        entry.ids = np.array(sequence.tokens.ids, np.int32)  # an answer may have changed its end
        entry.nbytes, entry.busy = sequence.nbytes, False
        if not len(entry.ids) or entry.nbytes > self.limit_bytes:
            return [sequence]
        self._entries[id(sequence)] = entry
        return self.keep_within(self.limit_bytes)

    def forget(self, sequence: S) -> None:
        """A sequence is nobody's to share any more."""
        self._entries.pop(id(sequence), None)

    def forget_busy(self) -> None:
        """Those that run are none of this process's."""
        self._entries = {at: entry for at, entry in self._entries.items() if not entry.busy}

    def keep_within(self, limit_bytes: int) -> list[S]:
        """Change the limit; gives the idle sequences that had to go, the least recently used
        first."""
        self.limit_bytes = limit_bytes
        over, evicted = self.nbytes - max(0, limit_bytes), list[S]()
        for entry in self._entries.values():
            if over > 0 and not entry.busy:
                over -= entry.nbytes
                evicted.append(entry.sequence)
        for sequence in evicted:
            self.forget(sequence)
        return evicted

    # ---- finding ---------------------------------------------------------------------------------

    def take(self, tokens: Tokens, key: Hashable) -> Prefix[S] | None:
        """The longest prefix of tokens, all but the last at most, that a sequence of that key has.

        An idle sequence leaves the pool with it if the prefix is half of what it holds, or more; it
        stays, to be copied, if that is less, or while it runs.
        """
        ids = np.array(tokens.ids, np.int32)
        best: tuple[int, bool, _Entry[S]] | None = None
        for entry in reversed(self._entries.values()):  # of equals, the last used
            if entry.key != key:
                continue
            if entry.busy:
                entry.grow(entry.sequence.on_grid)
            end = self._usable(entry, tokens, ids, best[0] if best else 0)
            moves = not entry.busy and 2 * end >= len(entry.ids)
            if end and (best is None or (end, moves) > best[:2]):
                best = end, moves, entry
        return self._taken(*best) if best else None

    def supersede(self, tokens: Tokens, key: Hashable) -> S | None:
        """An idle sequence of whose prompt half or more is how tokens begin, though less than a
        cell of the grid: to be begun anew, since nobody else would go on with it."""
        ids = np.array(tokens.ids, np.int32)
        for entry in reversed(self._entries.values()):
            if entry.key == key and not entry.busy:
                spans = entry.sequence.tokens.spans
                common = _common_prefix(entry.ids, spans, ids, tokens.spans)
                if 1 < common and entry.sequence.on_grid <= 2 * common:
                    self.forget(entry.sequence)
                    return entry.sequence
        return None

    def _taken(self, end: int, moves: bool, entry: _Entry[S]) -> Prefix[S]:
        found = self._entries.pop(id(entry.sequence))
        if not moves:
            self._entries[id(entry.sequence)] = found  # used last
        return Prefix(entry.sequence, end, copy=not moves)

    def _usable(self, entry: _Entry[S], tokens: Tokens, ids: Ids, least: int) -> int:
        """How many leading tokens of a request a sequence can go on behind; 0 if `least` is more.

        What a ring or a snapshot goes back to may lie off the grid, and the line before it further
        back than the ring.
        """
        sequence, held = entry.sequence, len(entry.ids)
        if least and (held < least or entry.ids[least - 1] != ids[least - 1]):
            return 0  # as most are told from the best yet, without a look at the rest
        common = _common_prefix(entry.ids, sequence.tokens.spans, ids, tokens.spans)
        if not entry.busy and common == held < len(ids):
            return held
        end = min(common, sequence.on_grid, len(ids) - 1)
        while end >= max(1, least):
            back = min(last_cut(end, tokens.blocks, self.grid), sequence.restorable(end))
            if back == end:
                return end
            end = back
        return 0


def _common_prefix(
    held: Ids, held_spans: Sequence[EmbeddingSpan], ids: Ids, spans: Sequence[EmbeddingSpan]
) -> int:
    """`Tokens.common_prefix`, with ids as arrays."""
    limit = min(len(held), len(ids))
    for a, b in zip_longest(held_spans, spans):
        if a is None or b is None or not a.same(b):
            limit = min([limit, *(span.begin for span in (a, b) if span is not None)])
            break
    for begin in range(0, limit, _COMPARED):
        part = slice(begin, min(begin + _COMPARED, limit))
        differ = held[part] != ids[part]
        if differ.any():
            return begin + int(differ.argmax())
    return limit
