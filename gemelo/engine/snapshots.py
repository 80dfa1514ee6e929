"""Snapshots of a KV cache: what sliding layers held of their window before one position.

Full layers keep every position, so a cache may go on and be rewound; a ring overwrites its window
after chunk - 1 more tokens. A copy of the window, taken in time, is all that is needed to go back:
the bytes of window - 1 slots of the sliding layers, however long the sequence is.

    snapshot = cache.snapshot(end=1000)        # at a prompt's end
    cache.restore(snapshot)                    # after thousands of tokens more
    other = cache.copy_prefix(1000, snapshot)  # or for somebody else, while its owner goes on

S slots, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gemelo.config import LayerType
from gemelo.engine.slots import Integers


class Store(Protocol):
    """Keys or values of one layer, in S slots."""

    @property
    def nbytes(self) -> int: ...
    def grow(self, capacity: int) -> None: ...
    def copy_slots(self, to: Integers | slice, other: Any, of: Integers | slice) -> None: ...


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The window before `end`: for each type of layer that has one the positions (S,) held, and
    keys and values of its layers in slots of their own, in that order."""

    end: int
    positions: Mapping[LayerType, Integers]
    stores: Mapping[int, tuple[Store, Store]]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(k.nbytes + v.nbytes for k, v in self.stores.values())


def as_slice(slots: Integers) -> Integers | slice:
    """The same slots as a slice, if they lie one behind the other: to copy these is faster."""
    if (
        len(slots)
        and int(slots[-1]) - int(slots[0]) == len(slots) - 1
        and (np.diff(slots) == 1).all()
    ):
        return slice(int(slots[0]), int(slots[-1]) + 1)
    return slots
