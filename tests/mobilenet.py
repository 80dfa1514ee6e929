"""Stages of a tiny MobileNet-V5."""

from __future__ import annotations

from gemelo.config.mobilenet import Bottleneck, Edge, MultiQuery

# Every kind of block, with and without each of its parts.
TINY_STAGES = (
    (Edge(16, 4, kernel=3, stride=2), Edge(16, 4, kernel=3)),
    (Bottleneck(24, 6, start=3, mid=5, stride=2), Bottleneck(24, 4, start=5)),
    (
        Bottleneck(32, 6, start=5, mid=5, stride=2),
        MultiQuery(32, heads=2, width=16, stride=2),
        Bottleneck(32, 2),
    ),
    (Bottleneck(48, 6, mid=5, stride=2), MultiQuery(48, heads=3, width=24), Bottleneck(48, 1)),
)
