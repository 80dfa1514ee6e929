"""GGUF files written: the header at once, then one tensor after another.

A tensor is asked for when its turn comes and encoded a few MiB at a time, so the peak is the
largest tensor and not the model. Blocks that already have the wanted format pass through byte for
byte. The usual writer takes every array up front and needs its own package at run time; this one is
the inverse of `GGUFFile` and nothing else.

    tensors = [("token_embd.weight", (262144, 640), FORMATS["q8_0"], lambda: embedding)]
    write_gguf("model.gguf", {"general.architecture": "gemma3"}, tensors)
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemelo.errors import InputError
from gemelo.kernels.quants import Format, Packed
from gemelo.weights.files import byte_pieces, check_shape, replaced
from gemelo.weights.gguf_header import (
    ALIGNMENTS,
    DEFAULT_ALIGNMENT,
    LENGTH_BYTES,
    MAGIC,
    MAX_DIMENSIONS,
    is_alignment,
)
from gemelo.weights.gguf_values import MAX_KEY_BYTES, KeyValues, encoded, string

VERSION = 3
MAX_WRITTEN_NAME_BYTES = 63  # what llama.cpp accepts

TensorToWrite = tuple[str, tuple[int, ...], Format, Callable[[], Packed]]


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorToWrite],
    progress: Callable[[int], None] | None = None,
    overwrite: bool = True,
) -> None:
    """Write a GGUF file, replacing `path` only when it is complete.

    metadata: `KeyValues` (entries stored as they were), or a mapping of bool, int, float (stored as
    f32 where that can hold it), str, bytes, lists of one kind of them, lists of lists, `Strings`,
    numpy scalars and 1-D arrays (stored with their own type). tensors: (name, PyTorch-order shape,
    format, maker); what a maker gives is encoded on the way where its format is another. progress:
    called with the bytes just written. Raises InputError for what GGUF cannot hold and, without
    overwrite, for a file that is there by the end; UnsupportedError for formats that are only read;
    UnavailableError when the disk refuses.
    """
    tensors = list(tensors)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not is_alignment(alignment):
        raise InputError(f"general.alignment is {alignment!r:.40}; it must be {ALIGNMENTS}")
    header = _header(metadata, tensors, alignment)
    with replaced(Path(path), overwrite) as target:
        target.write(header)
        for name, shape, format, make in tensors:
            weight = make()
            check_shape(name, weight, shape)
            for piece in byte_pieces(weight, format):
                target.write(piece)
                if progress is not None:
                    progress(len(piece))
            target.write(bytes(-_nbytes(shape, format) % alignment))


def _header(metadata: Mapping[str, Any], tensors: list[TensorToWrite], alignment: int) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key in metadata:
        parts += [_name(key, MAX_KEY_BYTES), _entry(metadata, key)]
    offset, seen = 0, set[str]()
    for name, shape, format, _ in tensors:
        if name in seen:
            raise InputError(f"tensor {name!r} is given twice")
        seen.add(name)
        if len(shape) > MAX_DIMENSIONS or 0 in shape:
            raise InputError(
                f"GGUF cannot hold tensor {name!r} of shape {shape}: shapes have 0 to "
                f"{MAX_DIMENSIONS} sizes above zero"
            )
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [
            _name(name, MAX_WRITTEN_NAME_BYTES),
            sizes,
            struct.pack("<IQ", format.ggml_id, offset),
        ]
        offset += -(-_nbytes(shape, format) // alignment) * alignment
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment)


def _name(name: str, most: int) -> bytes:
    raw = string(name.encode("utf-8", "surrogatepass"))
    if len(raw) - LENGTH_BYTES > most:
        raise InputError(f"GGUF cannot hold the name {name!r:.80}: it has more than {most} bytes")
    return raw


def _entry(metadata: Mapping[str, Any], key: str) -> bytes:
    return metadata.encoded(key) if isinstance(metadata, KeyValues) else encoded(key, metadata[key])


def _nbytes(shape: tuple[int, ...], format: Format) -> int:
    columns = shape[-1] if shape else 1
    return format.row_bytes(columns) * int(np.prod(shape[:-1], dtype=np.int64))
