"""The header of one GGUF file: key-values, and where its tensors lie.

Every claim is checked against the file before anything is allocated from it, and the whole is
bounded in bytes and in counts, so that no header takes seconds or fills memory. The readers of
other packages build an object for every one of a vocabulary's 262,144 entries, which takes seconds;
here an array of strings stays one run of bytes. Versions 2 and 3, little-endian, are read.

    header = read_header(map_file(path), path)
    header.values["gemma3.block_count"], header.tensors["token_embd.weight"].start
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import FileFormatError, GemeloError, UnsupportedError
from gemelo.kernels.quants import Format
from gemelo.string_table import Strings
from gemelo.weights.gguf_other_files import SEEN_BYTES, stranger
from gemelo.weights.gguf_tensor_types import format_of
from gemelo.weights.gguf_values import ARRAY, MAX_KEY_BYTES, NUMBER_TYPES, STRING, KeyValues

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16  # of a page or a few; what lies between two tensors is held at once
ALIGNMENTS = f"a power of two, 8 to {MAX_ALIGNMENT}"
MAX_DIMENSIONS = 4
# Of any header. A Gemma's has 8 MiB, 262,144 strings, and up to 1,600 tensors with all towers.
MAX_HEADER_BYTES = 32 << 20
MAX_STRINGS = 1 << 20
MAX_ARRAYS = 1 << 12  # inside of arrays
MAX_DEPTH = 4  # of arrays in arrays
MAX_COUNTS = {"metadata entries": 1 << 14, "tensors": 1 << 14}
MIN_ENTRY_BYTES = {"metadata entries": 8 + 4 + 1, "tensors": 8 + 4 + 4 + 8}
LENGTH_BYTES = 8
MAX_SHORT_BYTES = LENGTH_BYTES + 255  # a string with its length, of which one byte says all
FEW_STRINGS = 256  # are not worth a look at a window
WINDOW_BYTES = 1 << 18  # looked at as a whole; it and what is made of it stay in cache


def is_alignment(value: Any) -> bool:
    """Whether a file's tensors may lie at multiples of this."""
    return type(value) is int and 8 <= value <= MAX_ALIGNMENT and not value & (value - 1)


class TensorInfo(NamedTuple):
    """Where a tensor lies: PyTorch-order shape, format, first byte in the file."""

    shape: tuple[int, ...]
    format: Format
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.format.block * self.format.block_bytes


class Header(NamedTuple):
    """All that a file says of itself; `unclaimed` bytes of it belong to no tensor."""

    values: KeyValues
    alignment: int
    tensors: dict[str, TensorInfo]
    unclaimed: int


def read_header(source: mmap.mmap, path: Path) -> Header:
    """The header of a mapped file. Raises FileFormatError where it is broken, naming what and
    where, UnsupportedError for what is well-formed and not read."""
    cursor = _Cursor(source, path)
    tensor_count, entry_count = cursor.preamble()
    values = cursor.metadata(entry_count)
    alignment = cursor.alignment(values)
    tensors, unclaimed = cursor.tensor_infos(tensor_count, alignment)
    return Header(values, alignment, tensors, unclaimed)


class _Cursor:
    """A place in the map that refuses to pass its end, or that of a sensible header."""

    def __init__(self, source: mmap.mmap, path: Path) -> None:
        self.source, self.path, self.size, self.position = source, path, len(source), 0
        self.strings_left, self.arrays_left = MAX_STRINGS, MAX_ARRAYS

    def fail(self, problem: str) -> NoReturn:
        raise FileFormatError(f"{self.path}, byte {self.position}: {problem}")

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes; `count` comes from the file and is checked before it is used."""
        end = self.position + count
        if end > self.size:
            self.fail(
                f"{what} needs {count} bytes, but the file ends after {self.size - self.position}"
            )
        if end > MAX_HEADER_BYTES:
            self.fail(f"{what} ends past {MAX_HEADER_BYTES} bytes, the limit of a header")
        piece = self.source[self.position : end]
        self.position = end
        return piece

    def integer(self, layout: str, what: str) -> int:
        size = struct.calcsize(layout)
        (value,) = struct.unpack(layout, self.take(size, what))
        return int(value)

    def name(self, what: str) -> str:
        length = self.integer("<Q", f"the length of a {what}")
        if length > MAX_KEY_BYTES:
            self.fail(f"a {what} of {length} bytes (at most {MAX_KEY_BYTES})")
        return self.text(self.take(length, f"a {what}"), what)

    def text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8: {raw[:40]!r}")

    def preamble(self) -> tuple[int, int]:
        """(number of tensors, number of metadata entries), after magic and version."""
        magic = self.take(len(MAGIC), "the magic number")
        if magic != MAGIC:
            what = stranger(self.source[:SEEN_BYTES])
            instead = f", but {what}" if what else f": it begins with {magic!r}, not {MAGIC!r}"
            cure = "" if what else "; a model is a GGUF file or a directory"
            raise FileFormatError(f"{self.path} is not a GGUF file{instead}{cure}")
        version = self.integer("<I", "the version")
        if version not in VERSIONS:
            self.refuse_version(version)
        tensors, entries = (self.integer("<Q", "a count") for _ in range(2))
        for count, what in ((tensors, "tensors"), (entries, "metadata entries")):
            if count * MIN_ENTRY_BYTES[what] > self.size - self.position:
                self.fail(f"the header claims {count} {what}, more than the file has room for")
            if count > MAX_COUNTS[what]:
                self.fail(f"the header claims {count} {what} (at most {MAX_COUNTS[what]})")
        return tensors, entries

    def refuse_version(self, version: int) -> NoReturn:
        order = " (big-endian)" if version and version & 0xFFFF == 0 else ""
        number = version >> 24 if order else version
        raise UnsupportedError(
            f"{self.path} is GGUF version {number}{order}; little-endian versions 2 and 3 are "
            "read, convert the original again with a current converter"
        )

    # ---- key-values ------------------------------------------------------------------------------

    def metadata(self, count: int) -> KeyValues:
        values, entries = dict[str, Any](), dict[str, bytes]()
        for _ in range(count):
            key = self.name("metadata key")
            if key in values:
                self.fail(f"metadata key {key[:80]!r} appears twice")
            start = self.position
            values[key] = self.value(key, self.integer("<I", "a metadata type"))
            entries[key] = self.source[start : self.position]
        return KeyValues(values, entries)

    def value(self, key: str, kind: int) -> Any:
        what = f"metadata {key[:80]!r}"
        if kind == ARRAY:
            return self.array(what, 1)
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

    def array(self, what: str, depth: int) -> Any:
        kind, count = self.integer("<I", what), self.integer("<Q", what)
        if kind == STRING:
            return self.strings(count, what)
        if kind != ARRAY:
            return self.numbers(kind, count, what)
        self.arrays_left -= count
        if depth >= MAX_DEPTH or self.arrays_left < 0:
            self.fail(
                f"{what} is an array of {count} arrays; at most {MAX_ARRAYS} are read, one in "
                f"another at most {MAX_DEPTH} deep"
            )
        return tuple(self.array(what, depth + 1) for _ in range(count))

    def strings(self, count: int, what: str) -> Strings:
        """An array of strings; a vocabulary has 262,144 of them, nearly always short."""
        self.strings_left -= count
        if self.strings_left < 0:
            self.fail(f"{what} has {count} strings; at most {MAX_STRINGS} are read")
        texts, lengths, done = list[bytes](), list[NDArray[np.int64]](), 0
        while count - done > FEW_STRINGS and len(more := self.short_strings(count - done, texts)):
            lengths.append(more)
            done += len(more)
        rest = self.any_strings(what, done, count)  # from near one on that is empty or long
        texts += [b"\0" + string for string in rest]
        lengths.append(np.array([len(string) for string in rest], np.int64))
        return Strings(b"".join([*texts, b"\0"])[1:], np.cumsum(np.concatenate(lengths) + 1) - 1)

    def any_strings(self, what: str, first: int, count: int) -> list[bytes]:
        """The strings from the `first` to the last of `count`, one after the other."""
        source, end, position = self.source, min(self.size, MAX_HEADER_BYTES), self.position
        strings = list[bytes]()
        for index in range(first, count):
            start = position + LENGTH_BYTES
            position = start + int.from_bytes(source[position:start], "little")
            if position > end:
                past = "the end of the file" if end == self.size else f"{end} bytes of header"
                self.fail(f"{what}, string {index} of {count}, runs past {past}")
            strings.append(source[start:position])
        self.position = position
        return strings

    def short_strings(self, most: int, texts: list[bytes]) -> NDArray[np.int64]:
        """Lengths of the strings from here on, as many as a window of the file shows; none if one
        of them is empty or has more than 255 bytes.

        Their bytes, a NUL before each, are one more of `texts`. Seven zeros in a row are where a
        length may be. Those that begin exactly where the one before has ended are lengths, for the
        first is; so nothing is guessed, and no string waits for another.
        """
        room = min(WINDOW_BYTES, most * MAX_SHORT_BYTES, max(0, MAX_HEADER_BYTES - self.position))
        window = np.frombuffer(self.source, np.uint8)[self.position :][:room]
        nothing = np.empty(0, np.int64)
        if len(window) < LENGTH_BYTES:
            return nothing
        zero = window == 0
        two = zero[:-1] & zero[1:]
        four = two[:-2] & two[2:]
        starts = np.flatnonzero(four[:-3] & four[3:]) - 1
        lengths = window[starts].astype(np.int64)
        ends = starts + LENGTH_BYTES + lengths
        follows = starts == np.concatenate(([0], ends[:-1]))[: len(starts)]
        whole = int(np.argmin(np.append(follows & (ends <= len(window)), False)))
        whole = min(whole, most)
        if not whole or whole < most and ends[whole - 1] + MAX_SHORT_BYTES <= len(window):
            return nothing
        stay = np.ones(ends[whole - 1], np.bool_)
        eights = np.ndarray((len(stay) - LENGTH_BYTES + 1,), "V8", stay, strides=(1,))
        eights[starts[:whole]] = np.void(b"\0\0\0\0\0\0\0\1")  # of a length, its last zero
        texts.append(window[: len(stay)][stay].tobytes())
        self.position += len(stay)
        return lengths[:whole]

    def alignment(self, values: Mapping[str, Any]) -> int:
        value = values.get("general.alignment", DEFAULT_ALIGNMENT)
        if not is_alignment(value):
            shown = value if type(value) is int else type(value).__name__
            self.fail(f"general.alignment is {shown}; it must be {ALIGNMENTS}")
        return int(value)

    # ---- tensors ---------------------------------------------------------------------------------

    def tensor_infos(self, count: int, alignment: int) -> tuple[dict[str, TensorInfo], int]:
        """Where every tensor lies, checked to be inside the file, aligned and without overlap; and
        how many bytes from the first one on are neither a tensor's nor padding."""
        relative: dict[str, TensorInfo] = {}
        for _ in range(count):
            name, info = self.tensor_info(alignment)
            if name in relative:
                self.fail(f"tensor {name[:80]!r} appears twice")
            relative[name] = info
        base = -(-self.position // alignment) * alignment
        infos = {n: TensorInfo(p.shape, p.format, base + p.start) for n, p in relative.items()}
        end, before, unclaimed = base, "", 0
        for name, info in sorted(infos.items(), key=lambda item: item[1].start):
            if info.start < end:
                self.fail(f"tensor {name[:80]!r} overlaps {before[:80]!r}")
            unclaimed += info.start - -(-end // alignment) * alignment
            end, before = info.start + info.nbytes, name
            if end > self.size:
                self.fail(
                    f"tensor {name[:80]!r} needs bytes {info.start} to {end}, but the file has "
                    f"{self.size}: it is truncated or damaged, fetch it again"
                )
        return infos, unclaimed + max(0, self.size - -(-end // alignment) * alignment)

    def tensor_info(self, alignment: int) -> tuple[str, TensorInfo]:
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
        return name, TensorInfo(shape, format, start)

    def format(self, kind: int, what: str) -> Format:
        try:
            return format_of(kind)
        except FileFormatError as error:
            self.fail(f"{what} {error}")
        except GemeloError as error:
            raise type(error)(f"{self.path}: {what} {error}") from None
