"""GGUF files written: the header at once, then one tensor after another.

A tensor is asked for when its turn comes and encoded a few MiB at a time, so the peak is the
largest tensor and not the model. Blocks that already have the wanted format pass through byte for
byte. The usual writer takes every array up front and needs its own package at run time; this one is
the inverse of `GGUFFile` and nothing else.

    tensors = [("token_embd.weight", (262144, 640), FORMATS["q8_0"], lambda: embedding)]
    write_gguf("model.gguf", {"general.architecture": "gemma3"}, tensors)
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemelo.errors import InputError
from gemelo.kernels.formats import Format, Packed, pack
from gemelo.strings import Strings
from gemelo.weights.files import byte_pieces, float_parts, replaced
from gemelo.weights.gguf import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    NUMBER_TYPES,
    STRING,
    TORCH_DTYPES,
)

VERSION = 3
MAX_WRITTEN_NAME_BYTES = 63  # what llama.cpp accepts
NUMBER_CODES = {dtype: code for code, dtype in NUMBER_TYPES.items()}

TensorToWrite = tuple[str, tuple[int, ...], Format, Callable[[], Tensor | Packed]]


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorToWrite],
    progress: Callable[[int], None] | None = None,
    overwrite: bool = True,
) -> None:
    """Write a GGUF file, replacing `path` only when it is complete.

    metadata: bool, int, float (stored as f32), str, bytes, lists of one kind of them, `Strings`,
    numpy scalars and 1-D arrays (stored with their own type). tensors: (name, PyTorch-order shape,
    format, maker); a maker gives a float Tensor, encoded on the way, or a Packed matrix. progress:
    called with the bytes just written. Raises InputError for what GGUF cannot hold and, without
    overwrite, for a file that is there by the end; UnavailableError when the disk refuses.
    """
    tensors = list(tensors)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise InputError(f"general.alignment {alignment!r} must be a power of two, at least 8")
    header = _header(metadata, tensors, alignment)
    with replaced(Path(path), overwrite) as target:
        target.write(header)
        for name, shape, format, make in tensors:
            for piece in _encoded(name, make(), shape, format):
                target.write(piece)
                if progress is not None:
                    progress(len(piece))
            target.write(bytes(-_nbytes(shape, format) % alignment))


def _header(metadata: Mapping[str, Any], tensors: list[TensorToWrite], alignment: int) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    offset, seen = 0, set[str]()
    for name, shape, format, _ in tensors:
        if name in seen:
            raise InputError(f"tensor {name!r} is given twice")
        seen.add(name)
        if len(name.encode()) > MAX_WRITTEN_NAME_BYTES or len(shape) > MAX_DIMENSIONS or 0 in shape:
            raise InputError(
                f"GGUF cannot hold tensor {name!r} of shape {shape}: names have at most "
                f"{MAX_WRITTEN_NAME_BYTES} bytes, shapes 0 to {MAX_DIMENSIONS} sizes above zero"
            )
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [_string(name), sizes, struct.pack("<IQ", format.ggml_id, offset)]
        offset += -(-_nbytes(shape, format) // alignment) * alignment
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment)


def _nbytes(shape: tuple[int, ...], format: Format) -> int:
    columns = shape[-1] if shape else 1
    return format.row_bytes(columns) * int(np.prod(shape[:-1], dtype=np.int64))


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    """A metadata value with its type in front."""
    if isinstance(value, str | bytes):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list | tuple | Strings) and value and isinstance(value[0], str | bytes):
        if not all(isinstance(item, str | bytes) for item in value):
            raise InputError(f"GGUF metadata cannot hold {key!r}: not all of it is text")
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    array = _numbers(key, value)
    code = NUMBER_CODES.get(array.dtype.newbyteorder("<"))
    if code is None or array.ndim > 1:
        raise InputError(
            f"GGUF metadata cannot hold {key!r}: {array.ndim}-dimensional {array.dtype}"
        )
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    if array.ndim == 0:
        return struct.pack("<I", code) + raw
    return struct.pack("<IIQ", ARRAY, code, len(array)) + raw


def _numbers(key: str, value: Any) -> np.ndarray[Any, Any]:
    """Numbers as readers expect them: numpy keeps its type; an int is u32, a list i32 if it can."""
    if isinstance(value, np.generic | np.ndarray):
        return np.asarray(value)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"GGUF metadata cannot hold {key!r}: {error}") from error
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind != "i":
        return array
    smallest, largest = int(array.min(initial=0)), int(array.max(initial=0))
    lists, scalars = (np.int32, np.int64), (np.uint32, np.int32, np.uint64, np.int64)
    choices = scalars if array.ndim == 0 else lists
    return array.astype(
        next(t for t in choices if np.iinfo(t).min <= smallest and largest <= np.iinfo(t).max)
    )


def _encoded(
    name: str, value: Tensor | Packed, shape: tuple[int, ...], format: Format
) -> Iterator[memoryview]:
    """The bytes of one tensor in `format`, a few MiB at a time."""
    if tuple(value.shape) != tuple(shape):
        raise InputError(
            f"tensor {name!r} has shape {tuple(value.shape)}, but {tuple(shape)} was announced"
        )
    if isinstance(value, Packed) and value.format == format:
        yield from byte_pieces(value.blocks, torch.uint8)
    elif format.name in TORCH_DTYPES:
        yield from byte_pieces(value, TORCH_DTYPES[format.name])
    else:
        matrix = value if isinstance(value, Packed) else value.reshape(-1, shape[-1])
        for part in float_parts(matrix):
            yield from byte_pieces(pack(part, format).blocks, torch.uint8)
