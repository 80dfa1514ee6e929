"""GGUF files read: a header of facts and tensor places, and the tensors as views of one memory map.

Opening parses the header only and checks every claim in it against the file, so that nothing is
allocated from a number in the file and nothing outside it is ever read; a tensor is a view, made
when asked for. The readers of other packages build an object for every one of a vocabulary's
262,144 entries, which takes seconds; here an array of strings stays one run of bytes. Versions 2
and 3, little-endian, are read.

    file = GGUFFile("model.gguf")
    file.metadata["gemma3.block_count"], file.tensor("token_embd.weight")
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.kernels.formats import FORMATS, FORMATS_BY_ID, Format, Packed
from gemelo.strings import Strings
from gemelo.weights.mapped import map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65535
LENGTH_BYTES = 8
MAX_SHORT_BYTES = LENGTH_BYTES + 255  # a string with its length, of which one byte says all
WINDOW_BYTES = 1 << 18  # looked at as a whole; it and what is made of it stay in cache
MIN_ENTRY_BYTES = {"metadata entries": 8 + 4 + 1, "tensors": 8 + 4 + 4 + 8}

STRING, ARRAY = 8, 9
NUMBER_TYPES: dict[int, np.dtype[Any]] = {  # metadata value types; 7 is a bool in one byte
    code: np.dtype(name)
    for code, name in enumerate(
        ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "", "", "<u8", "<i8", "<f8")
    )
    if name
}
TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
UNREAD_FORMATS = {  # types that exist but that no kernel here expands, for the message
    16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs",
    24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0",
    39: "mxfp4",
}  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: PyTorch-order shape, format, first byte in the file."""

    shape: tuple[int, ...]
    format: Format
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.format.block * self.format.block_bytes


class GGUFFile:
    """One open GGUF file. Raises FileFormatError where the file is broken, naming what and where.

    `metadata` holds numbers, strings and bools as Python values, arrays of numbers as read-only
    numpy arrays, and arrays of strings as `Strings` (a vocabulary is decoded by the tokenizer that
    wants it).
    """

    path: Path
    metadata: Mapping[str, Any]
    alignment: int

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = map_file(self.path)
        header = _Header(self._map, self.path)
        tensor_count, entry_count = header.preamble()
        self.metadata = header.metadata(entry_count)
        self.alignment = header.alignment(self.metadata)
        self._places = header.places(tensor_count, self.alignment)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def names(self) -> list[str]:
        """Tensor names, in the file's order."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in PyTorch order (rows first)."""
        return self._place(name).shape

    def format(self, name: str) -> Format:
        """How the tensor's elements are stored."""
        return self._place(name).format

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""
        return self._place(name).nbytes

    def tensor(self, name: str) -> Tensor | Packed:
        """The tensor as a view of the map: a float tensor, or a Packed matrix for block formats.

        A stack (n, rows, columns) in a block format is one matrix of n * rows.
        """
        place = self._place(name)
        data = self._bytes[place.start : place.start + place.nbytes]
        if place.format.name in TORCH_DTYPES:
            return data.view(TORCH_DTYPES[place.format.name]).view(place.shape)
        if len(place.shape) not in (2, 3):
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} is {place.format.name} with shape {place.shape}; "
                "block formats are read as matrices and stacks of them; store it as f32 or f16"
            )
        return Packed(data.view(math.prod(place.shape[:-1]), -1), place.format)

    def _place(self, name: str) -> _Place:
        place = self._places.get(name)
        if place is None:
            raise FileFormatError(
                f"{self.path} has no tensor {name!r} (it holds {len(self._places)})"
            )
        return place


class _Header:
    """A cursor over the map that refuses to pass its end."""

    def __init__(self, source: mmap.mmap, path: Path) -> None:
        self.source, self.path, self.size, self.position = source, path, len(source), 0

    def fail(self, problem: str) -> NoReturn:
        raise FileFormatError(f"{self.path}, byte {self.position}: {problem}")

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes; `count` comes from the file and is checked before it is used."""
        end = self.position + count
        if end > self.size:
            self.fail(
                f"{what} needs {count} bytes, but the file ends after {self.size - self.position}"
            )
        piece = self.source[self.position : end]
        self.position = end
        return piece

    def integer(self, layout: str, what: str) -> int:
        size = struct.calcsize(layout)
        (value,) = struct.unpack(layout, self.take(size, what))
        return int(value)

    def name(self, what: str) -> str:
        length = self.integer("<Q", f"the length of a {what}")
        if length > MAX_NAME_BYTES:
            self.fail(f"a {what} of {length} bytes (at most {MAX_NAME_BYTES})")
        return self.text(self.take(length, f"a {what}"), what)

    def text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8: {raw[:40]!r}")

    def preamble(self) -> tuple[int, int]:
        """(number of tensors, number of metadata entries), after magic and version."""
        magic = self.take(4, "the magic number")
        if magic != MAGIC:
            raise FileFormatError(
                f"{self.path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}"
            )
        version = self.integer("<I", "the version")
        if version not in VERSIONS:
            order = " (big-endian)" if version & 0xFFFF == 0 else ""
            raise UnsupportedError(
                f"{self.path} is GGUF version {version if not order else version >> 24}{order}; "
                "little-endian versions 2 and 3 are read, convert it again with a current converter"
            )
        tensors, entries = (self.integer("<Q", "a count") for _ in range(2))
        for count, what in ((tensors, "tensors"), (entries, "metadata entries")):
            if count * MIN_ENTRY_BYTES[what] > self.size - self.position:
                self.fail(f"the header claims {count} {what}, more than the file has room for")
        return tensors, entries

    def metadata(self, count: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self.name("metadata key")
            if key in entries:
                self.fail(f"metadata key {key[:80]!r} appears twice")
            entries[key] = self.value(key, self.integer("<I", "a metadata type"))
        return entries

    def value(self, key: str, kind: int) -> Any:
        what = f"metadata {key[:80]!r}"
        if kind == ARRAY:
            return self.array(what)
        if kind == STRING:
            return self.text(self.take(self.integer("<Q", what), what), what)
        return self.numbers(kind, 1, what)[0].item()

    def numbers(self, kind: int, count: int, what: str) -> NDArray[Any]:
        dtype = NUMBER_TYPES.get(kind)
        if dtype is None:
            self.fail(f"{what} has the unknown type {kind}")
        raw = self.take(count * dtype.itemsize, what)
        if dtype == np.bool_:  # any byte but 0 is true
            flags: NDArray[Any] = np.frombuffer(raw, np.uint8) != 0
            return flags
        return np.frombuffer(raw, dtype)

    def array(self, what: str) -> Any:
        kind, count = self.integer("<I", what), self.integer("<Q", what)
        if kind == STRING:
            return self.strings(count, what)
        if kind == ARRAY:
            raise UnsupportedError(
                f"{self.path}: {what} is an array of arrays, which no model file needs"
            )
        return self.numbers(kind, count, what)

    def strings(self, count: int, what: str) -> Strings:
        """An array of strings; a vocabulary has 262,144 of them, nearly always short."""
        texts, lengths, done = list[bytes](), list[NDArray[np.int64]](), 0
        while done < count and len(found := self.short_strings(count - done, texts)):
            lengths.append(found)
            done += len(found)
        places = range(done, count)  # from near the first one on that is empty or long
        rest = [self.string(f"{what}, string {place} of {count},") for place in places]
        texts += [b"\0" + string for string in rest]
        lengths.append(np.array([len(string) for string in rest], np.int64))
        return Strings(b"".join([*texts, b"\0"])[1:], np.cumsum(np.concatenate(lengths) + 1) - 1)

    def string(self, what: str) -> bytes:
        if self.position + 8 <= self.size:
            length = self.integer("<Q", what)
            if length <= self.size - self.position:
                return self.take(length, what)
        self.fail(f"{what} runs past the end of the file")

    def short_strings(self, most: int, texts: list[bytes]) -> NDArray[np.int64]:
        """Lengths of the strings from here on, as many as a window of the file shows; none if one
        of them is empty or has more than 255 bytes.

        Their bytes, a NUL before each, are one more of `texts`. Seven zeros in a row are where a
        length may be. Those that begin exactly where the one before has ended are lengths, for the
        first is; so nothing is guessed, and no string waits for another.
        """
        room = min(WINDOW_BYTES, most * MAX_SHORT_BYTES)
        window = np.frombuffer(self.source, np.uint8)[self.position :][:room]
        nothing = np.empty(0, np.int64)
        if len(window) < LENGTH_BYTES:
            return nothing
        zero = window == 0
        two = zero[:-1] & zero[1:]
        four = two[:-2] & two[2:]
        places = np.flatnonzero(four[:-3] & four[3:]) - 1
        lengths = window[places].astype(np.int64)
        ends = places + LENGTH_BYTES + lengths
        follows = places == np.concatenate(([0], ends[:-1]))[: len(places)]
        whole = int(np.argmin(np.append(follows & (ends <= len(window)), False)))
        whole = min(whole, most)
        if not whole or whole < most and ends[whole - 1] + MAX_SHORT_BYTES <= len(window):
            return nothing
        stay = np.ones(ends[whole - 1], np.bool_)
        eights = np.ndarray((len(stay) - LENGTH_BYTES + 1,), "V8", stay, strides=(1,))
        eights[places[:whole]] = np.void(b"\0\0\0\0\0\0\0\1")  # of a length, its last zero
        texts.append(window[: len(stay)][stay].tobytes())
        self.position += len(stay)
        return lengths[:whole]

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(value) is not int or value < 8 or value & (value - 1):
            shown = value if type(value) is int else type(value).__name__
            self.fail(f"general.alignment is {shown}; it must be a power of two, at least 8")
        return value

    def places(self, count: int, alignment: int) -> dict[str, _Place]:
        """Where every tensor lies, checked to be inside the file, aligned and without overlap."""
        relative: dict[str, _Place] = {}
        for _ in range(count):
            name, place = self.place(alignment)
            if name in relative:
                self.fail(f"tensor {name[:80]!r} appears twice")
            relative[name] = place
        base = -(-self.position // alignment) * alignment
        places = {n: _Place(p.shape, p.format, base + p.start) for n, p in relative.items()}
        end, before = base, ""
        for name, place in sorted(places.items(), key=lambda item: item[1].start):
            if place.start < end:
                self.fail(f"tensor {name[:80]!r} overlaps {before[:80]!r}")
            end, before = place.start + place.nbytes, name
            if end > self.size:
                self.fail(
                    f"tensor {name[:80]!r} needs bytes {place.start} to {end}, but the file has "
                    f"{self.size}: it is truncated or damaged, fetch it again"
                )
        return places

    def place(self, alignment: int) -> tuple[str, _Place]:
        name = self.name("tensor name")
        what = f"tensor {name[:80]!r}"
        dimensions = self.integer("<I", what)
        if dimensions > MAX_DIMENSIONS:
            self.fail(f"{what} has {dimensions} dimensions (at most {MAX_DIMENSIONS})")
        shape = tuple(self.integer("<Q", what) for _ in range(dimensions))[::-1]
        format = self.format(self.integer("<I", what), what)
        start = self.integer("<Q", what)
        if 0 in shape or math.prod(shape) > 8 * self.size * format.block:
            self.fail(f"{what} has the impossible shape {shape}")
        if format.block > 1 and (not shape or shape[-1] % format.block):
            self.fail(
                f"{what} has shape {shape}: {format.name} rows are whole blocks of {format.block}"
            )
        if start % alignment:
            self.fail(f"{what} begins at {start}, which is not a multiple of {alignment}")
        return name, _Place(shape, format, start)

    def format(self, kind: int, what: str) -> Format:
        format = FORMATS_BY_ID.get(kind)
        if format is not None:
            return format
        if kind in UNREAD_FORMATS:
            raise UnsupportedError(
                f"{self.path}: {what} is {UNREAD_FORMATS[kind]}; gemelo reads {', '.join(FORMATS)}"
            )
        self.fail(f"{what} has the unknown type {kind}")
