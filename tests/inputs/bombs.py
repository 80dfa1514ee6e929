"""Pictures that ask for far more than they hold."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

from PIL import Image

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, extra: bytes = b"", split: int = 0
) -> bytes:
    """A PNG of one grey; `extra` comes before its pixels, which are in pieces of `split` bytes."""
    row = b"\0" + b"\x55" * ((width * CHANNELS[colour] * depth + 7) // 8)
    packer = zlib.compressobj(9)
    many = max(1, min(height, 1_000_000 // len(row)))
    rows = b"".join(packer.compress(row * many) for _ in range(height // many))
    rows += packer.compress(row * (height % many)) + packer.flush()
    pieces = [rows[at : at + split] for at in range(0, len(rows), split)] if split else [rows]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    body = b"".join(chunk(b"IDAT", piece) for piece in pieces) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + palette + extra + body


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """A picture as a file of that format."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat(mode: str, width: int, height: int, format: str, **options: Any) -> bytes:
    """A picture of one value."""
    colour = 200 if len(Image.new(mode, (1, 1)).getbands()) == 1 else None
    return encoded(Image.new(mode, (width, height), colour or "teal"), format, **options)


def scanned(width: int, height: int, num_scans: int) -> bytes:
    """A progressive JPEG that goes over its picture again and again."""
    plain = flat("RGB", width, height, "JPEG", progressive=True)
    last = plain.rindex(b"\xff\xda")
    return plain[:last] + plain[last:-2] * num_scans + plain[-2:]


def tagged(tiff: bytes, **values: int) -> bytes:
    """The TIFF with other numbers in its tags: tagged(tiff, t257=1000)."""
    changed = bytearray(tiff)
    (at,) = struct.unpack_from("<I", changed, 4)
    (count,) = struct.unpack_from("<H", changed, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", changed, entry)
        if (value := values.get(f"t{tag}")) is not None:
            struct.pack_into("<HII", changed, entry + 2, 4, 1, value)
    return bytes(changed)


def counted(tiff: bytes, tag: int, count: int) -> bytes:
    """The TIFF with a table of so many numbers, wherever they are."""
    changed = bytearray(tiff)
    (at,) = struct.unpack_from("<I", changed, 4)
    (num_tags,) = struct.unpack_from("<H", changed, at)
    for entry in range(at + 2, at + 2 + 12 * num_tags, 12):
        if struct.unpack_from("<H", changed, entry)[0] == tag:
            struct.pack_into("<HII", changed, entry + 2, 4, count, 0)
    return bytes(changed)


def icon(inside: bytes) -> bytes:
    """An ICO that says 16 pixels, around any PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def wavelets(claimed: tuple[int, int], inside: tuple[int, int]) -> bytes:
    """A JP2 whose box says one size and whose stream another."""
    plain = flat("RGB", *inside, "JPEG2000")
    at = re.search(rb"ihdr", plain)
    assert at is not None
    return plain[: at.end()] + struct.pack(">II", *claimed[::-1]) + plain[at.end() + 8 :]


def tiled_wavelets(side: int, tile: int) -> bytes:
    """A JPEG 2000 that says it is in so many small tiles."""
    changed = bytearray(flat("RGB", side, side, "JPEG2000"))
    struct.pack_into(">II", changed, changed.index(b"\xff\x51") + 22, tile, tile)
    return bytes(changed)


def stripped(jpeg: bytes, width: int, height: int, num_strips: int) -> bytes:
    """A TIFF whose every strip is the same JPEG."""
    rows = height // num_strips
    plain = flat("RGB", width, height, "TIFF", compression="jpeg", tiffinfo={278: rows})
    changed = bytearray(plain)
    (at,) = struct.unpack_from("<I", changed, 4)
    (num_tags,) = struct.unpack_from("<H", changed, at)
    for entry in range(at + 2, at + 2 + 12 * num_tags, 12):
        tag, _, count, place = struct.unpack_from("<HHII", changed, entry)
        if tag == 273:
            assert count == num_strips > 1
            struct.pack_into(f"<{count}I", changed, place, *[len(plain)] * count)
    return bytes(changed) + jpeg


def noted(jpeg: bytes, num_pieces: int) -> bytes:
    """The JPEG with its EXIF in pieces."""
    piece = b"\xff\xe1" + struct.pack(">H", 40) + b"Exif\0\0" + bytes(32)
    return jpeg[:2] + piece * num_pieces + jpeg[2:]
