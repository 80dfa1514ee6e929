"""Options of a run that are one word of a few: weight formats, KV cache formats, and placements.

Each list stands here once. The library checks its arguments against it, the command line shows it,
and a type checker knows it. The words are llama.cpp's and transformers' where they have one.

    def load(model: str, *, format: WeightFormat = "native") -> Model: ...
    if format not in get_args(WeightFormat): ...
"""

from __future__ import annotations

from typing import Literal, get_args

from gemelo.errors import InputError, shown

WeightFormat = Literal["native", "bf16", "f32", "q8_0", "q4_0"]  # native: as in the file
TargetFormat = Literal["native", "bf16", "f16", "f32", "q8_0", "q4_0"]  # of a converted model
KVFormat = Literal["plain", "bf16", "int8"]  # plain: in the model's own dtype
TablePlacement = Literal["disk", "ram", "device"]  # of Gemma 3n's per-layer embeddings
RebuildMode = Literal["off", "lazy", "now"]  # of keys and values that another sub-model wrote
FinishReason = Literal["stop", "length", "cancelled"]

MAX_THREADS = 1024
TARGET_FORMATS: tuple[TargetFormat, ...] = get_args(TargetFormat)
_READ_ONLY = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_1", "q5_0", "q5_1", "iq4_nl")


def checked_target(format: str, what: str = "format") -> TargetFormat:
    """A format of a converted model, in any case.

    Raises InputError, which says `what` was given, for what is none, or is only read.
    """
    for known in TARGET_FORMATS:
        if format.lower() == known:
            return known
    if format.lower().startswith(_READ_ONLY):
        raise InputError(
            f"{what} {format} is read, not written: gemelo writes q8_0 and q4_0, whose scales need "
            "no search; for others give llama.cpp's llama-quantize a GGUF in bf16"
        )
    raise InputError(f"{what} {format!r} is not one of {', '.join(TARGET_FORMATS)}")


def checked_rebuild(mode: RebuildMode) -> RebuildMode:
    """A rebuild mode as it is; InputError for what is none."""
    if mode not in get_args(RebuildMode):
        raise InputError(f"rebuild = {shown(mode)}; expected {', '.join(get_args(RebuildMode))}")
    return mode
