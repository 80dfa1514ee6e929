"""Options of a run that are one word of a few: weight formats, KV cache formats, and placements.

Each list stands here once. The library checks its arguments against it, the command line shows it,
and a type checker knows it. The words are llama.cpp's and transformers' where they have one.

    def load(model: str, *, format: WeightFormat = "native") -> Model: ...
    if format not in get_args(WeightFormat): ...
"""

from __future__ import annotations

from typing import Literal

WeightFormat = Literal["native", "bf16", "f32", "q8_0", "q4_0"]  # native: as in the file
TargetFormat = Literal["native", "bf16", "f16", "f32", "q8_0", "q4_0"]  # of a converted model
KVFormat = Literal["plain", "bf16", "int8"]  # plain: in the model's own dtype
TablePlacement = Literal["disk", "ram", "device"]  # of Gemma 3n's per-layer embeddings
RebuildMode = Literal["off", "lazy", "now"]  # of keys and values that another sub-model wrote
FinishReason = Literal["stop", "length", "cancelled"]

MAX_THREADS = 1024
