"""MP4 and QuickTime boxes: sample counts, held against the bytes that there are.

The decoding library believes these numbers and makes an entry of 24 bytes or more for every sample
before it looks for one, so that a file of a kilobyte takes gigabytes. Here they are compared with
the size of the file first, wherever the library would look for them.

    check_boxes("talk.m4a", file)       # which is then at its beginning again
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from gemelo.errors import InputError

FIRST = frozenset(b"ftyp moov mdat free skip wide moof styp sidx pnot uuid".split())
HOLDERS = frozenset(
    b"moov trak mdia minf stbl edts mvex moof traf udta meta wave dinf tref free skip hoov".split()
)
COUNTED = frozenset(b"stsz stz2 trun elst cmov tkhd tfhd".split())
MOST_TRACK_ID = (1 << 31) - 1  # beyond, the library looks for it among all numbers
MOST_DEPTH = 16
MOST_BYTES = 128 << 20  # of all that is described: a film of a day has a tenth
MOST_INDEX = 8_000_000  # entries of an index that edits repeat
SOME_SAMPLES = 4096  # that any file may have
PACKED = 32  # samples in a byte, where a table counts those of a compressed sound one by one


@dataclass
class Counts:
    """What the boxes of a file of `size` bytes say, in all and of the last track."""

    name: str
    size: int
    samples: int = 0
    track_samples: int = 0
    track_edits: int = 0

    def add(self, type: bytes, fields: bytes) -> None:
        """Count what a box says. Raises InputError for what cannot be."""
        if type == b"trak":
            self.track_samples = self.track_edits = 0
        elif type in (b"tkhd", b"tfhd"):
            offset = 4 if type == b"tfhd" else 20 if fields[:1] == b"\1" else 12
            number = int.from_bytes(fields[offset : offset + 4], "big")
            if number > MOST_TRACK_ID:
                raise InputError(f"{self.name} has a track of the number {number}: it is broken")
        elif type == b"cmov":
            raise InputError(f"{self.name} has a compressed header: convert it to WAV first")
        elif type == b"elst":
            self.track_edits = max(self.track_edits, int.from_bytes(fields[4:8], "big"))
        else:
            self.samples += _samples(type, fields)
            self.track_samples += _samples(type, fields)
        self._compare()

    def _compare(self) -> None:
        most = max(SOME_SAMPLES, self.size)
        if self.samples > most:
            raise InputError(
                f"{self.name} claims {self.samples:,} samples or more in its {self.size:,} bytes: "
                "it is broken"
            )
        if self.track_edits * self.track_samples > max(MOST_INDEX, 2 * most):
            raise InputError(
                f"{self.name} has {self.track_edits:,} edits of {self.track_samples:,} samples: "
                "more than are followed; convert it to WAV first"
            )


def is_boxes(head: bytes) -> bool:
    """Whether a file that begins with these 8 bytes is made of boxes."""
    return head[4:8] in FIRST


def check_boxes(name: str, file: BinaryIO) -> None:
    """Raise InputError where a file claims more samples than it has bytes for."""
    file.seek(0)
    if is_boxes(file.read(8)):
        counts = Counts(name, file.seek(0, 2))
        for type, content in _described(file, counts):
            for inner, fields in _counted(type, content, 0):
                counts.add(inner, fields)
    file.seek(0)


def _described(file: BinaryIO, counts: Counts) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the outermost boxes, but for those of the samples themselves."""
    begin = read = 0
    while begin + 8 <= counts.size:
        file.seek(begin)
        head = file.read(16)
        type, inner, length = _head(head, counts.size - begin)
        if type in HOLDERS | COUNTED and (type not in (b"free", b"skip") or length < 1 << 20):
            read += length
            if read > MOST_BYTES:
                raise InputError(
                    f"{counts.name} has a header of {read:,} bytes: at most {MOST_BYTES:,} are "
                    "read; convert it to WAV first"
                )
            yield type, head[inner:length] + file.read(max(0, length - len(head)))
        begin += length


def _counted(type: bytes, content: bytes, depth: int) -> Iterator[tuple[bytes, bytes]]:
    """Type and fields of every box in a box that counts something, and of every track."""
    if type in COUNTED or type == b"trak":
        yield type, content[:24]
    if type == b"stsd":  # its entries hold boxes behind fields of many lengths
        yield from _found(content)
    if type not in HOLDERS or depth > MOST_DEPTH:
        return
    begin = max(0, content.find(b"hdlr", 0, 64) - 4) if type == b"meta" else 0
    while begin + 8 <= len(content):
        inner, first, length = _head(content[begin : begin + 16], len(content) - begin)
        yield from _counted(inner, content[begin + first : begin + length], depth + 1)
        begin += length


def _found(held: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The same in bytes without an order."""
    for type in COUNTED:
        at = held.find(type)
        while at >= 0:
            yield type, held[at + 4 : at + 28]
            at = held.find(type, at + 4)


def _head(head: bytes, most: int) -> tuple[bytes, int, int]:
    """Type of a box, where its content begins, and its length, of the bytes that there are."""
    length, type = struct.unpack(">I4s", head[:8])
    inner = 8
    if length == 1 and len(head) >= 16:
        (length,) = struct.unpack(">Q", head[8:16])
        inner = 16
    return type, inner, most if length < inner else min(most, length)


def _samples(type: bytes, held: bytes) -> int:
    """How many samples a box says there are."""
    if type == b"trun":
        return int.from_bytes(held[4:8], "big")
    number = int.from_bytes(held[8:12], "big")
    return number // PACKED if held[4:8] == b"\0\0\0\1" else number
