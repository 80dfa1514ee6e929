"""Image headers: scans, strips, tiles, EXIF tags and icons, counted before anything is decoded.

Pillow trusts some of them: a TIFF's list of strips may be as long as memory, and shorter than the
picture; a progressive JPEG may go over its picture ten thousand times; an icon holds pictures of
other sizes than it says. So they are counted here, before a decoder is let at them.

    check_tags(name, file), check_icons(name, file), check_exif(name, file)  # before it is opened
    scans(file), check_strips(name, tags), wavelet_size(file)  # before its picture is loaded
"""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from gemelo.errors import InputError

MAX_SCANS = 500  # of a JPEG; encoders write ten or so
MAX_SEGMENTS = 20_000
MAX_EXIF = 64  # segments of it; cameras write one, and Pillow copies them all for each more
MAX_TILES = 4096  # of JPEG 2000, each of which takes memory before there is anything in it
MAX_NUMBERS = 500_000  # in one table of a TIFF; its strips and tiles are thousands
MAX_TAGS = 5000
MAX_ICONS, MAX_ICON_SIDE = 256, 1024  # the format says 256 pixels
MAX_PLACE = 1 << 62  # what a file can be asked to seek to
MAX_COUNT_S = 1.0  # of the processor's time
CHUNK_BYTES = 1 << 16

# A marker of a JPEG: no stuffed zero, no restart.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_SCAN, _END, _EXIF = 0xDA, 0xD9, 0xE1
_ONE_PASS = (0xC0, 0xC1)  # baseline and extended sequential, Huffman
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ARITHMETIC = 8  # how much longer such a scan takes at least

_TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_NUMBERS = {3, 4, 5, 8, 9, 10, 11, 12, 13, 16, 17, 18}  # types that are more than bytes
_COMPRESSION, _JPEGS = 259, (6, 7)
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _PLANES = 256, 257, 258, 277, 284
_STRIPS, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 273, 278, 322, 323, 324


class Bytes(Protocol):
    """An open file."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...


class Scans(NamedTuple):
    """How often a JPEG goes over its picture, and whether it is kept as coefficients meanwhile."""

    num_scans: int
    kept: bool


# ---- JPEG ----------------------------------------------------------------------------------------


def check_exif(name: str, file: Bytes) -> None:
    """Refuse a JPEG whose EXIF is in many pieces."""
    file.seek(0)
    if file.read(3) != b"\xff\xd8\xff":
        return
    count = 0
    for code, body in _segments(file, 0):
        if code == _SCAN:
            return
        count += code == _EXIF and body[:4] == b"Exif"
        if count > MAX_EXIF:
            raise InputError(
                f"{name} has its EXIF in more than {MAX_EXIF} pieces: save it again without"
            )


def scans(file: Bytes, begin: int = 0) -> Scans:
    """The scans of the JPEG that begins at an offset of a file, counted to MAX_SCANS at most."""
    count, weight, one_pass, num_components = 0, 1, False, 0
    for code, body in _segments(file, begin):
        if code in _FRAMES:
            one_pass = code in _ONE_PASS
            weight = _ARITHMETIC if code > 0xC8 else 1
            num_components = body[5] if len(body) > 5 else 0
        elif code == _SCAN:
            count += weight
            if one_pass and body[:1] == bytes([num_components]):
                return Scans(1, False)  # the decoder stops after it
            if count > MAX_SCANS:
                break
    return Scans(count, True)


def _segments(file: Bytes, begin: int) -> Iterator[tuple[int, bytes]]:
    """Code and beginning of every segment up to the end of the picture."""
    offset = begin + 2
    for _ in range(MAX_SEGMENTS):
        marker = _next_marker(file, offset)
        if marker is None or marker[0] == _END:
            return
        code, offset = marker
        file.seek(offset)
        body = file.read(10)
        yield code, body[2:]
        offset += int.from_bytes(body[:2], "big")
    raise InputError(f"it is a JPEG of more than {MAX_SEGMENTS:,} segments: convert it to PNG")


def _next_marker(file: Bytes, offset: int) -> tuple[int, int] | None:
    """The code of the first marker from an offset on, and the offset after it."""
    while True:
        file.seek(offset)
        chunk = file.read(CHUNK_BYTES)
        if marker := _MARKER.search(chunk):
            return marker[1][0], offset + marker.end()
        if len(chunk) < CHUNK_BYTES:
            return None
        offset += CHUNK_BYTES - 1  # a marker may be cut in two


# ---- TIFF ----------------------------------------------------------------------------------------


def check_tags(name: str, file: Bytes) -> None:
    """Refuse a TIFF with a table of more numbers than a picture of any size has strips."""
    file.seek(0)
    start = file.read(16).ljust(16, b"\0")
    order = _TIFF.get(start[:4])
    if order is None:
        return
    big = b"+" in start[:4]
    (offset,) = (
        struct.unpack_from(f"{order}Q", start, 8)
        if big
        else struct.unpack_from(f"{order}I", start, 4)
    )
    file.seek(min(offset, MAX_PLACE))
    entry = struct.Struct(f"{order}HHQ8x" if big else f"{order}HHI4x")
    num_tags = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
    if num_tags > MAX_TAGS:
        raise InputError(f"{name} is a TIFF of {num_tags:,} tags, and {MAX_TAGS:,} is the limit")
    table = file.read(num_tags * entry.size)
    for tag, type, count in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        if type in _NUMBERS and count > MAX_NUMBERS:
            raise InputError(
                f"{name} is a TIFF with {count:,} numbers in tag {tag}: the limit is "
                f"{MAX_NUMBERS:,}; convert it to PNG"
            )


def check_strips(name: str, tags: Mapping[int, Any]) -> None:
    """Refuse a TIFF whose strips or tiles are fewer than its rows need: the rest would be black."""
    width, height = tags[_WIDTH], tags[_HEIGHT]
    across, down = _piece(tags)
    needed = math.ceil(width / across) * math.ceil(height / down)
    if tags.get(_PLANES, 1) == 2:
        needed *= tags.get(_SAMPLES, 1)
    there = len(tags.get(_TILES if _TILES in tags else _STRIPS, ()))
    if there < needed:
        what = "tiles" if _TILES in tags else "strips"
        raise InputError(
            f"{name} claims {width} x {height} pixels in {needed:,} {what}, and has {there:,}: "
            "it is broken or cut short"
        )


def strip_scans(name: str, file: Bytes, tags: Mapping[int, Any]) -> int:
    """Pixels of a TIFF times the scans of the JPEGs that its strips or tiles are.

    Raises InputError for more of them than are counted in MAX_COUNT_S.
    """
    if tags.get(_COMPRESSION) not in _JPEGS:
        return 0
    across, down = _piece(tags)
    offsets = tags.get(_TILES if _TILES in tags else _STRIPS, ())
    total, until_s = 0, time.thread_time() + MAX_COUNT_S
    for offset in offsets:
        total += across * down * scans(file, min(offset, MAX_PLACE)).num_scans
        if time.thread_time() > until_s:
            raise InputError(
                f"{name} is a TIFF of {len(offsets):,} JPEGs, more than are looked at: convert it "
                "to PNG"
            )
    return total


def piece_bytes(tags: Mapping[int, Any]) -> int:
    """What one strip or tile takes, decoded."""
    across, down = _piece(tags)
    bits = tags.get(_BITS, (1,))
    per_pixel = sum(bits) if len(bits) > 1 else bits[0] * tags.get(_SAMPLES, 1)
    return int(down * math.ceil(across * per_pixel / 8))


def _piece(tags: Mapping[int, Any]) -> tuple[int, int]:
    """Width and height of a tile, or of a strip."""
    if _TILES in tags:
        return max(1, tags[_TILE_WIDTH]), max(1, tags[_TILE_HEIGHT])
    width, height = tags[_WIDTH], tags[_HEIGHT]
    return max(1, width), max(1, min(tags.get(_ROWS, height), height))


# ---- formats that hold a picture of another size than they say -----------------------------------


def check_icons(name: str, file: Bytes) -> None:
    """Refuse an ICO with a picture that is no icon; Pillow decodes the largest as it opens one."""
    file.seek(0)
    start = file.read(6)
    if start[:4] != b"\0\0\1\0":
        return
    count = int.from_bytes(start[4:], "little")
    table = file.read(16 * min(count, MAX_ICONS))
    for (offset,) in struct.iter_unpack("<12xI", table[: len(table) // 16 * 16]):
        file.seek(offset)
        width, height = _icon_size(file.read(24).ljust(24, b"\0"))
        if count > MAX_ICONS or max(width, height // 2) > MAX_ICON_SIDE:
            raise InputError(
                f"{name} is a set of {count} icons, one of {width} x {height} pixels: the limit "
                f"is {MAX_ICONS} icons of {MAX_ICON_SIDE} pixels; convert it to PNG"
            )


def _icon_size(start: bytes) -> tuple[int, int]:
    if start.startswith(b"\x89PNG"):
        width, height = struct.unpack_from(">II", start, 16)
        return width, height
    form = "<HH" if start[0] == 12 else "<ii"
    width, height = struct.unpack_from(form, start, 4)
    return abs(width), abs(height)


def wavelet_size(name: str, file: Bytes) -> tuple[int, int] | None:
    """The size in a JPEG 2000's codestream, whatever the boxes around it say.

    Raises InputError for too many tiles.
    """
    file.seek(0)
    start = file.read(CHUNK_BYTES)
    offset = start.find(b"\xff\x4f\xff\x51")
    if offset < 0 or offset + 40 > len(start):
        return None
    right, bottom, left, top, across, down = struct.unpack_from(">6I", start, offset + 8)
    num_tiles = math.ceil(right / max(1, across)) * math.ceil(bottom / max(1, down))
    if num_tiles > MAX_TILES:
        raise InputError(
            f"{name} is in {num_tiles:,} tiles of {across} x {down} pixels: the limit is "
            f"{MAX_TILES:,}; convert it to PNG"
        )
    return right - left, bottom - top
