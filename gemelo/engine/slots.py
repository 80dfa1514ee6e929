"""Slots of a KV cache: which position of a sequence lies in which slot, for every kind of layer.

Full layers keep every position; sliding layers keep a ring of window + chunk - 1 slots, which is
the least that lets the first query of a chunk find its window after the chunk's last key is
written. Position p lives in slot p mod capacity, and each kind of layer keeps one table of the
absolute position in every slot (-1 = empty). The mask is a function of those positions, so nothing
is ever unrolled, trimmed or kept in temporal order: rewinding marks slots empty.

Tables are integers of the host, whoever computes with them: the native program by address, modules
as tensors of their device.

    slots = Slots(config, context=4096, chunk=512)
    slots.place(positions)                     # where there is room: see `KVCache.make_room`
    slots.rewind(end=100)                      # forget positions 100 and up; raises if it cannot

T tokens of a step, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemelo.config import LAYER_TYPES, LayerType, ModelConfig, kv_slots
from gemelo.errors import ContextLengthError, GemeloError, InputError

Integers = NDArray[np.int64]
_GROWTH = 256  # slots; full layers grow by doubling, from here


class RewindError(GemeloError):
    """The ring no longer holds the window before the place asked for; encode from the start."""


class Table(NamedTuple):
    """The positions in the slots of one kind of layer, (capacity,), and how many are in use."""

    positions: Integers
    used: int

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Address, capacity, used; good as long as the table is held."""
        address: int = self.positions.__array_interface__["data"][0]
        return address, len(self.positions), self.used


def check_context(config: ModelConfig, context: int) -> None:
    """Raise ContextLengthError unless the model was trained for `context` tokens."""
    if not isinstance(context, Integral):
        raise InputError(f"context = {context!r:.80}; expected a whole number of tokens")
    if not 0 < context <= config.max_position_embeddings:
        raise ContextLengthError(
            f"a context of {context} tokens is outside 1 to {config.max_position_embeddings}, "
            "which is what the model was trained for"
        )


class Slots:
    """Positions in the slots of one sequence of up to `context` tokens."""

    def __init__(self, config: ModelConfig, context: int, chunk: int) -> None:
        """chunk is the most tokens that one step may write."""
        check_context(config, context)
        self.config, self.context, self.chunk = config, context, chunk
        self.tables: dict[LayerType, Integers] = {
            kind: np.empty(0, np.int64) for kind in LAYER_TYPES
        }
        self.used: dict[LayerType, int] = dict.fromkeys(LAYER_TYPES, 0)

    def capacity(self, kind: LayerType, length: int) -> int:
        """Slots of one kind of layer for a sequence of `length` tokens."""
        return kv_slots(self.config, kind, min(length, self.context), self.chunk)

    def table(self, kind: LayerType) -> Table:
        """Of one kind of layer, until it grows."""
        return Table(self.tables[kind], self.used[kind])

    def check_room(self, tokens: int, length: int) -> None:
        """Raise for a step of so many tokens that ends at `length`, if there is no room for it."""
        if tokens > self.chunk:
            raise InputError(f"a step of {tokens} tokens; the cache takes {self.chunk}")
        if length > self.context:
            raise ContextLengthError(
                f"{length} tokens do not fit the context of {self.context}; shorten the prompt or "
                f"raise the context (the model takes {self.config.max_position_embeddings})"
            )

    def growth(self, length: int) -> dict[LayerType, int]:
        """What has to grow for `length` tokens, and to how many slots: the double, mostly."""
        grown = {}
        for kind, table in self.tables.items():
            capacity, needed = len(table), self.capacity(kind, length)
            if needed > capacity:
                grown[kind] = self.capacity(kind, max(needed, 2 * capacity, _GROWTH))
        return grown

    def grow(self, kind: LayerType, capacity: int) -> None:
        """A ring that has not wrapped yet lies in order, so growing keeps every slot's place."""
        old = self.tables[kind]
        grown = np.full(capacity, -1, np.int64)
        grown[: len(old)] = old
        self.tables[kind] = grown

    def use(self, length: int) -> None:
        """From now on `length` tokens are attended over, or as many as before."""
        for kind in LAYER_TYPES:
            self.used[kind] = max(self.used[kind], self.capacity(kind, length))

    def mapping(self, kind: LayerType, positions: Integers) -> Integers:
        """The slot (T,) of every position."""
        return positions % max(1, len(self.tables[kind]))

    def place(self, positions: Integers) -> None:
        """Note positions (T,) of a step in the tables."""
        for kind, table in self.tables.items():
            table[self.mapping(kind, positions)] = positions

    def rewind(self, end: int) -> None:
        """Forget positions `end` and up, so that the next token may be written there.

        Raises `RewindError`, changing nothing, when a ring has overwritten part of the window
        before `end`: it reaches chunk - 1 tokens back from the furthest position ever written.
        """
        self.check_held(end)
        self.mark_empty(end)

    def first_seen(self, kind: LayerType, end: int) -> int:
        """The first position that a token at `end` sees in one kind of layer."""
        window = self.config.window(kind)
        return 0 if window is None else max(0, end - window + 1)

    def check_held(self, end: int, kinds: Sequence[LayerType] = LAYER_TYPES) -> None:
        """Raise `RewindError` unless all that a token at `end` sees before it is in the tables."""
        for kind in kinds:
            table = self.tables[kind]
            window, first = self.config.window(kind), self.first_seen(kind, end)
            num_held = int(((table >= first) & (table < end)).sum())
            if num_held < end - first:
                raise RewindError(
                    f"position {end} is too far back: the ring of window {window} and chunk "
                    f"{self.chunk} holds {num_held} of the {end - first} keys before it"
                )

    def holds_window(self, end: int) -> bool:
        """Whether rings hold all that a token at `end` sees. That does not follow from how many
        tokens there are, since a ring that was rewound or restored has only what was left."""
        for kind, table in self.tables.items():
            if self.config.window(kind) is not None and len(table):
                seen = np.arange(self.first_seen(kind, end), end)
                if not np.array_equal(table[self.mapping(kind, seen)], seen):
                    return False
        return True

    def keeps_window(self, end: int, length: int) -> bool:
        """Whether rings that hold it will still when `length` tokens are written."""
        return all(
            length - self.capacity(kind, self.context) <= self.first_seen(kind, end)
            for kind in LAYER_TYPES
        )

    def clear(self) -> None:
        """Forget all positions."""
        self.mark_empty(0)

    def mark_empty(self, end: int) -> None:
        """Forget positions `end` and up, whether what remains can be gone on with or not."""
        for table in self.tables.values():
            table[table >= end] = -1
        self._shrink()

    def _shrink(self) -> None:
        """Attend no further than the last slot that holds something: as if the rest never was."""
        for kind, table in self.tables.items():
            filled = np.flatnonzero(table >= 0)
            self.used[kind] = int(filled[-1]) + 1 if len(filled) else 0

    def copy_from(self, other: Slots) -> None:
        """Become what `other` is, whose tables are of the same sizes."""
        for kind, table in self.tables.items():
            table[:] = other.tables[kind]
        self.used = dict(other.used)
