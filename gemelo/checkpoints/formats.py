"""Formats of weights: which one each tensor of a model gets, and how it becomes another.

A model is asked for in one format, and a few of its tensors have reason to be in others: the table
of per-layer embeddings is half the file, and a token gathers one row of it; AltUp's coefficients
are a few kilobytes; "q4_0" leaves eight bits to what all streams go through, as llama.cpp's
mixtures do. A weight is `Packed` in every format, 16-bit floats and vectors included, so that to
change its format is one function, and to keep it is to hand on the file's own bytes.

    as_format(source.tensor(name), format_of(name, "q4_0"))
"""

from __future__ import annotations

from gemelo.checkpoints.source import PER_LAYER_EMBEDDING
from gemelo.config.options import WeightFormat
from gemelo.kernels.packed import matrix_shape, own_dims
from gemelo.kernels.quants import FORMATS, Packed, converted, unpack

# Few and sensitive weights that "q4_0" gives 8 bits: the embedding, which is the head too, and what
# all streams of Gemma 3n go through.
_EIGHT_BITS = ("embed_tokens.", "altup_", ".laurel.", "per_layer_model_projection.")


def is_tiny(name: str) -> bool:
    """Whether a weight is one of AltUp's coefficients, a few kilobytes a layer: such are held as
    the activations are."""
    return ".altup." in name


def keeps_eight_bits(name: str) -> bool:
    """Whether "q4_0" leaves a matrix 8 bits, as llama.cpp's mixtures do."""
    return any(part in name for part in _EIGHT_BITS)


def format_of(name: str, format: WeightFormat) -> WeightFormat:
    """The format of one matrix, given that of the whole."""
    if name == PER_LAYER_EMBEDDING:
        return "native"
    if is_tiny(name):
        return "f32"
    return "q8_0" if format == "q4_0" and keeps_eight_bits(name) else format


def as_format(weight: Packed, format: WeightFormat) -> Packed:
    """A weight in the format asked for; itself, untouched, where it is in it already.

    Raises InputError where its rows are no whole blocks, or a value is too large for the format.
    """
    return weight if format == "native" else converted(weight, FORMATS[format])


def reshaped(weight: Packed, shape: tuple[int, ...]) -> Packed:
    """The same numbers in another shape: the same bytes where they are floats; what lies in blocks,
    whose rows cannot be cut anew, becomes float32."""
    if weight.shape == shape:
        return weight
    if weight.format.block > 1:
        return Packed.of(unpack(weight).reshape(shape))
    rows, columns = matrix_shape(shape)
    blocks = weight.blocks.reshape(rows, weight.format.row_bytes(columns))
    return Packed(blocks, weight.format, own_dims(shape))
