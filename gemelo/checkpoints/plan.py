"""Conversion plans: every tensor's name, shape and format, and a way to get it.

A list of targets is a plan. Making it checks the source's names and shapes against the network, so
that what cannot be loaded is refused before a byte is written; the weights themselves are asked for
one at a time, by the writer. Block formats are for matrices; what is not one, or is tiny, becomes
float32 in GGUF, as llama.cpp has it.

    for target in gguf_targets(source, "q8_0"): target.name, target.format, target.weight()

D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gemelo.checkpoints.destination import shown_size
from gemelo.checkpoints.formats import is_tiny, keeps_eight_bits, reshaped
from gemelo.checkpoints.mmproj_gemma3n import file_shape
from gemelo.checkpoints.parameter_check import check_parameters
from gemelo.checkpoints.slice import dead_keys, without_padding
from gemelo.checkpoints.source import (
    DECODER,
    PER_LAYER_EMBEDDING,
    Source,
    architecture,
    shifted,
)
from gemelo.config.options import TargetFormat
from gemelo.errors import InputError
from gemelo.kernels.quants import FORMATS, Format, Packed, converted, unpacked_chunks
from gemelo.weights import names

_HALF_MAX = 65504.0
CLIP = "clip"  # the architecture of an mmproj file
_PROJECTION = "multi_modal_projector.mm_input_projection"


@dataclass(frozen=True)
class Target:
    """One tensor to write: its canonical name, PyTorch shape, format, and how to get it."""

    name: str
    shape: tuple[int, ...]
    format: Format
    weight: Callable[[], Packed]

    @property
    def nbytes(self) -> int:
        *rows, columns = self.shape
        return math.prod(rows) * self.format.row_bytes(columns)


# ---- a Hugging Face directory --------------------------------------------------------------------


def hf_targets(source: Source, format: TargetFormat) -> Iterator[Target]:
    """Every tensor as it is called and shaped; Gemma 3n's towers byte for byte."""
    check_parameters(source)
    for name, shape in source.shapes.items():
        chosen = _hf_format(source, name, format)
        yield Target(name, shape, chosen, _checked(source, name, chosen))


def _hf_format(source: Source, name: str, format: TargetFormat) -> Format:
    if format in ("q8_0", "q4_0"):
        raise InputError(f"safetensors cannot hold {format}; choose bf16, f16, f32 or native")
    own = _held_format(source, name)
    if format == "native" or names.is_tower_3n(name):
        return own if own.block == 1 else FORMATS["f32"]
    return FORMATS[format]


# ---- GGUF ----------------------------------------------------------------------------------------


def gguf_targets(source: Source, format: TargetFormat) -> Iterator[Target]:
    """Matrices in the format asked for, all else in float32; stacks as one, dead keys as zeros."""
    check_parameters(without_padding(source))
    kind = architecture(source.config)
    for name, shape in source.shapes.items():
        stack = names.stack_of(name)
        if stack is not None:
            if name == names.parts_of(stack, 1)[0]:
                yield _stack_target(source, stack, format)
        elif len(shape) == 2 and not is_tiny(name):
            chosen = _gguf_format(source, name, format)
            yield Target(name, shape, chosen, _checked(source, name, chosen))
        else:
            shift = names.norm_shift(name, kind)
            yield Target(name, shape, FORMATS["f32"], _shifted(source, name, shift))
    yield from _dead_targets(source, format)


def _gguf_format(source: Source, name: str, format: TargetFormat) -> Format:
    if format == "native":
        return _held_format(source, name)
    return FORMATS["q8_0" if format == "q4_0" and keeps_eight_bits(name) else format]


def _stack_target(source: Source, stack: str, format: TargetFormat) -> Target:
    """Matrices (D, D) that GGUF holds as one tensor (n, D, D), which stays a float."""
    parts = names.parts_of(stack, source.config.altup_num_inputs - 1)
    shape = (len(parts), *source.shapes[parts[0]])
    own = _held_format(source, parts[0])
    chosen = own if format == "native" else FORMATS[format]
    chosen = chosen if chosen.block == 1 else FORMATS["f32"]
    makers = [_checked(source, part, chosen) for part in parts]

    def whole() -> Packed:
        rows, columns = shape[1:]
        stacked = np.empty((len(parts) * rows, chosen.row_bytes(columns)), np.uint8)
        for number, make in enumerate(makers):
            stacked[number * rows :][:rows] = converted(make(), chosen).blocks
        return Packed(stacked, chosen, shape)

    return Target(stack, shape, chosen, whole)


def _dead_targets(source: Source, format: TargetFormat) -> Iterator[Target]:
    """Zeros for the keys and values of layers that borrow theirs: llama.cpp wants the tensors to be
    there, and never reads them."""
    for name in dead_keys(source.config):
        alive = f"{DECODER}layers.0.self_attn.{name.rpartition('self_attn.')[2]}"
        shape = source.shapes[alive]
        chosen = _gguf_format(source, alive, format) if len(shape) == 2 else FORMATS["f32"]
        chosen = chosen if chosen.block == 1 else FORMATS["q8_0"]
        yield Target(name, shape, chosen, _zeros(shape))


def _zeros(shape: tuple[int, ...]) -> Callable[[], Packed]:
    return lambda: Packed.of(np.zeros(shape, np.float32))


# ---- the towers' own file ------------------------------------------------------------------------


def tower_targets(source: Source, format: TargetFormat) -> Iterator[Target]:
    """Towers and what joins them to the decoder: matrices in the format asked for, vectors in
    float32, and all but Gemma 3n's convolutions.

    A matrix whose rows are no whole blocks is float16.
    """
    check_parameters(source)
    for name in source.shapes:
        if not name.startswith(DECODER):
            target = _target_3n if names.is_tower_3n(name) else _siglip
            yield target(source, name, format)


def _siglip(source: Source, name: str, format: TargetFormat) -> Target:
    """The projection is float16, as readers insist."""
    shape, chosen = source.shapes[name], FORMATS["f32"]
    if name.startswith(_PROJECTION):
        chosen = FORMATS["f16"]
    elif len(shape) == 2 and ".layers." in name:
        chosen = _in_blocks(source, name, format)
    shift = names.norm_shift(name, CLIP)
    make = _shifted(source, name, shift) if shift else _checked(source, name, chosen)
    return Target(name, shape, chosen, make)


def _target_3n(source: Source, name: str, format: TargetFormat) -> Target:
    """Convolutions of MobileNet are matrices of a kind; those of its stem and of the audio encoder
    are small, and readers want them in float32."""
    shape = source.shapes[name]
    is_small = len(shape) > 2 and (name.startswith("audio_tower.") or ".conv_stem." in name)
    chosen = FORMATS["f32"]
    if len(shape) > 1 and not is_small:
        chosen = _in_blocks(source, name, format)
    written, make = file_shape(name, shape), _checked(source, name, chosen)
    if written == shape:
        return Target(name, shape, chosen, make)
    return Target(name, written, chosen, lambda: reshaped(make(), written))


def _in_blocks(source: Source, name: str, format: TargetFormat) -> Format:
    """The format of a tower's matrix; float16 where its rows are no whole blocks."""
    chosen = _held_format(source, name) if format == "native" else FORMATS[format]
    return FORMATS["f16"] if source.shapes[name][-1] % chosen.block else chosen


# ---- what a plan costs ---------------------------------------------------------------------------


def quantisation_notices(
    source: Source, targets: Sequence[Target], format: TargetFormat
) -> Iterator[str]:
    """What to know of weights that are in blocks already: that they grow, or lose once more."""
    widened, again = set[str](), set[str]()
    for target in targets:
        if target.name not in source.shapes or target.name == PER_LAYER_EMBEDDING:
            continue  # a sub-model's table is put together anew at every look
        held = _held_format(source, target.name)
        if held.block > 1 and target.format.block == 1:
            widened.add(held.name.upper())
        elif held.block > 1 and target.format != held:
            again.add(held.name.upper())
    if widened and format == "native" and all(t.format.block == 1 for t in targets):
        total = shown_size(sum(target.nbytes for target in targets))
        yield (
            f"a directory cannot hold {', '.join(sorted(widened))}: float32 is written, {total} in "
            "all; format bf16 halves it"
        )
    if again:
        yield (
            f"weights in {', '.join(sorted(again))} are quantised again, to {format}: quality "
            "falls; convert from the 16-bit original"
        )


# ---- weights -------------------------------------------------------------------------------------


def _held_format(source: Source, name: str) -> Format:
    return source.tensor(name).format


def _shifted(source: Source, name: str, shift: float) -> Callable[[], Packed]:
    """A weight by GGUF's convention, for a writer to encode as it goes."""
    return lambda: shifted(source.tensor(name), shift)


def _checked(source: Source, name: str, format: Format) -> Callable[[], Packed]:
    """A weight for a writer to encode as it goes; refused where float16 would overflow."""

    def weight() -> Packed:
        held = source.tensor(name)
        if format.name == "f16" and held.format.name in ("f32", "bf16"):
            largest = _largest(held)
            if not largest <= _HALF_MAX:
                raise InputError(f"a weight of {largest:g} passes f16's {_HALF_MAX:g}; choose bf16")
        return held

    return weight


def _largest(weight: Packed) -> float:
    """The largest magnitude; NaN if there is one."""
    ends = [(values.max(), -values.min()) for _, values in unpacked_chunks(weight)]
    return float(np.max(ends, initial=0.0))
