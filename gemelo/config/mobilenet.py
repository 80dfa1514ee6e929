"""MobileNet-V5-300M as a table: its stages and their blocks, the vision tower of Gemma 3n.

Four stages of MobileNet-V4's blocks (arXiv 2404.10518): edge residuals, inverted bottlenecks, and
multi-query attention. The network and its parameters' shapes are both made from this.

    scaled(STAGES, config.channel_multiplier);  stem_channels(config.channel_multiplier)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Edge:
    """An edge residual: `kernel` x `kernel` to `expand` times its input's channels, and back."""

    channels: int
    expand: int
    kernel: int
    stride: int = 1


@dataclass(frozen=True)
class Bottleneck:
    """An inverted bottleneck, with depthwise kernels before and inside it where they are not 0."""

    channels: int
    expand: int
    start: int = 0
    mid: int = 0
    stride: int = 1


@dataclass(frozen=True)
class MultiQuery:
    """Attention of `heads` heads of `width` over one head of keys, taken every `stride` pixels."""

    channels: int
    heads: int
    width: int
    stride: int = 1


Spec = Edge | Bottleneck | MultiQuery
Stages = Sequence[Sequence[Spec]]
STEM = 64  # channels that the first convolution makes
_FINE = (MultiQuery(640, heads=12, width=64, stride=2), Bottleneck(640, expand=2))
_COARSE = (MultiQuery(1280, heads=16, width=96), Bottleneck(1280, expand=2))
STAGES: Stages = (
    (Edge(128, 4, kernel=3, stride=2), Edge(128, 4, kernel=3), Edge(128, 4, kernel=3)),
    (
        Bottleneck(256, expand=6, start=3, mid=5, stride=2),
        Bottleneck(256, expand=4, start=5),
        Bottleneck(256, expand=4, start=3),
        Bottleneck(256, expand=4, start=5),
        Bottleneck(256, expand=4, start=3),
    ),
    (
        Bottleneck(640, expand=6, start=5, mid=5, stride=2),
        *(7 * (Bottleneck(640, expand=4, start=5),)),
        Bottleneck(640, expand=1),
        *(14 * _FINE),
    ),
    (
        Bottleneck(1280, expand=6, start=5, mid=5, stride=2),
        *(19 * _COARSE),
    ),
)


def scaled(stages: Stages, multiplier: float) -> Stages:
    """The same stages with their channels multiplied; heads stay as wide and as many."""
    return [
        [replace(spec, channels=channels(spec.channels * multiplier)) for spec in stage]
        for stage in stages
    ]


def stem_channels(multiplier: float) -> int:
    """Channels that the first convolution makes: never fewer than the published."""
    return STEM if multiplier < 1 else channels(STEM * multiplier)


def channels(wanted: float) -> int:
    """The multiple of 8 nearest to `wanted`, but no more than a tenth below it."""
    whole = max(8, int(wanted + 4) // 8 * 8)
    return whole + 8 if whole < 0.9 * wanted else whole
