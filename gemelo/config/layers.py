"""Decoder layers: their types, and the facts of one layer.

A layer attends within a sliding window or fully, and each type has its own rotary embedding. In
Gemma 3n the upper layers borrow keys and values of a lower one of their type (the donor), and the
first feed-forwards keep the neurons whose gate lies far above the mean (Gaussian top-k).

    config.layer(4).type, config.layer(4).window, config.layer(4).rope.frequencies(head_dim)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gemelo.config.rope import Rope

LayerType = Literal["sliding_attention", "full_attention"]
SLIDING: LayerType = "sliding_attention"
FULL: LayerType = "full_attention"
LAYER_TYPES: tuple[LayerType, LayerType] = (SLIDING, FULL)


@dataclass(frozen=True)
class LayerConfig:
    """The facts of one layer, which its modules and the native program read alike.

    window: how many keys a query sees, itself included; None for all. kv_donor: the layer whose
    keys and values it attends over; None if it makes its own. std_multiplier: how many standard
    deviations above the mean a gate has to lie; None for a feed-forward that is not sparse.
    """

    type: LayerType
    window: int | None
    rope: Rope
    intermediate_size: int
    kv_donor: int | None = None
    std_multiplier: float | None = None

    @property
    def owns_keys(self) -> bool:
        """Whether it makes keys and values, and a cache has a place for them."""
        return self.kv_donor is None


def alternating(num_layers: int, pattern: int) -> tuple[LayerType, ...]:
    """Layer i attends fully iff (i + 1) is a multiple of `pattern`; 6 is five local, one global."""
    return tuple(FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(num_layers))
