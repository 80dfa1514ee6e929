"""Image decoding: picture files to pixels, within limits on memory and time.

A file of a few hundred bytes can ask for gigabytes, or for minutes. So a format is on a list or is
refused by name; what its decoder will take is reckoned from the header, in bytes a pixel, before
anything is decoded; scans, strips and pieces are counted first; a JPEG far larger than a tower's
input is shrunk by the decoder itself; and what is read is bounded by what its pixels can fill.

    decoded = decode("cat.jpg", file)
    decoded.image, decoded.notices
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media.image_colours import FULL_BYTES, shrunk, stored_bytes
from gemelo.inputs.media.image_headers import (
    MAX_SCANS,
    check_exif,
    check_icons,
    check_strips,
    check_tags,
    piece_bytes,
    scans,
    strip_scans,
    wavelet_size,
)

if TYPE_CHECKING:
    from PIL import Image, ImageFile

MAX_PIXELS = 120_000_000  # a phone's 108-megapixel photograph fits
HELD_BYTES = 290_000_000  # a picture as it was decoded, beside which its RGB is made
WORK_BYTES = 340_000_000  # the same with what its decoder takes
HEADER_BYTES = 64 << 20  # what is read before the size is known: profiles, tags, notes of a camera
HEADER_COPIES = 2  # of what was read of it, that are kept beside the picture
SPARE_BYTES = 8 << 20  # what may be read beside the pixels, and once more behind them
CLOCKED_READS = 5000
MAX_READ_S = 1.0  # of the processor's time, for files in very many small pieces
PIECE_BYTES = 1000  # on average, of a file in pieces as encoders make them
MAX_SCAN_PIXELS = 1_100_000_000  # scans times pixels of a progressive JPEG
MAX_SLOW_PIXELS = 1_000_000  # of decoders that are written in Python
MAX_WAVELET_PIXELS = 4_000_000  # of JPEG 2000, the slowest of all: beyond, its coarser levels
# Bytes a pixel beside the picture's own, as measured: canvases and planes inside the libraries.
BESIDE = {"WEBP": 12.8, "AVIF": 12.0, "JPEG2000": 16.0, "SGI": 1.5}
HOLDERS = ("WEBP", "AVIF")  # their decoders live on beside the picture

FORMATS = tuple("AVIF BMP DIB GIF ICO JPEG JPEG2000 PCX PNG PPM QOI SGI TGA TIFF WEBP".split())
PROGRAMS = ("EPS",)  # Pillow hands these to an interpreter to run
ALBUMS = ("MPO",)  # one photograph, and what a camera keeps beside it


class Decoded(NamedTuple):
    """The first frame, loaded and still in the file's own mode; notices: sentences on it."""

    image: Image.Image
    notices: tuple[str, ...]


def decode(name: str, file: BinaryIO) -> Decoded:
    """The picture in an open file that can be sought.

    Raises InputError for one that is too large or takes too much, UnsupportedError for a format
    that is not read; a decoder's own exceptions pass through.
    """
    metered = _Metered(name, file)
    image: Image.Image = _open(name, metered)
    check_size(name, image.size)
    notices: tuple[str, ...] = ()
    if image.format not in ALBUMS and getattr(image, "is_animated", False):
        notices = ("it has several frames: the first is used",)
    full = image.size
    _prepare(name, image, file, HEADER_COPIES * metered.num_bytes)
    metered.allow(full[0] * full[1] * 8 + SPARE_BYTES)
    _load(image, metered)
    if full not in (image.size, image.size[::-1]):  # TIFF turns itself
        notices += (shrunk(full, image.size),)
    if image.format == "TIFF":
        notices += _cut_short(image)
    if image.format in HOLDERS:
        image = image.copy()
    return Decoded(image, notices)


def _load(image: Any, file: _Metered) -> None:
    """Decode, and allow less once there are all pixels: of notes behind them every byte is kept."""
    end = image.load_end

    def bounded() -> None:
        file.allow(SPARE_BYTES)
        end()

    image.load_end = bounded
    try:
        image.load()
    finally:
        del image.load_end  # which would keep the picture until the garbage is collected


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raises InputError for no pixels, or more than MAX_PIXELS."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels: a picture needs one at least")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width} x {height} = {width * height:,} pixels: the limit is "
            f"{MAX_PIXELS:,}; make it smaller"
        )


def _cut_short(image: Image.Image) -> tuple[str, ...]:
    """Faxes and JPEGs within a TIFF may end before their strip does, and no decoder says so."""
    height = image.size[1]
    box = image.getbbox(alpha_only=False)
    empty = height - (0 if box is None else box[3])
    if box is None or empty * 2 < height or height < 8:
        return ()
    return (f"its last {empty:,} of {height:,} rows are empty: it may have been cut short",)


# ---- opening -------------------------------------------------------------------------------------


class _Metered:
    """An open file that hands out so many bytes and then refuses, as it does when it is read in
    so many small pieces that time passes."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name, self.file = name, file
        self.left, self.num_reads, self.num_bytes = HEADER_BYTES, 0, 0
        self.until_s = time.thread_time() + MAX_READ_S

    def __getattr__(self, attribute: str) -> Any:  # fileno or getvalue, where the file has it
        return getattr(self.file, attribute)

    def allow(self, num_bytes: int) -> None:
        self.left = num_bytes

    def read(self, size: int = -1, /) -> bytes:
        wanted = size if size >= 0 else self.left + 1
        data = self.file.read(min(wanted, self.left + 1))
        self.left -= len(data)
        self.num_reads += 1
        self.num_bytes += len(data)
        if self.left < 0:
            raise InputError(
                f"{self.name} holds far more bytes than its picture can need: save it again "
                "without layers, thumbnails and notes"
            )
        if self.num_reads % CLOCKED_READS == 0 and self._dawdles():
            raise InputError(
                f"{self.name} takes too long to read, in over {self.num_reads:,} pieces: "
                "convert it to PNG"
            )
        return data

    def _dawdles(self) -> bool:
        small = self.num_bytes < PIECE_BYTES * self.num_reads
        return small and time.thread_time() > self.until_s

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        """The file is borrowed."""


def _open(name: str, file: _Metered) -> ImageFile.ImageFile:
    """A picture of which only the header has been read."""
    from PIL import Image, UnidentifiedImageError

    check_tags(name, file.file)
    check_icons(name, file.file)
    check_exif(name, file.file)
    file.seek(0)
    Image.init()
    formats = [format for format in FORMATS if format in Image.OPEN]
    try:
        return Image.open(cast(BinaryIO, file), formats=formats)
    except UnidentifiedImageError:
        _refuse_by_name(name, file)
        raise


def _refuse_by_name(name: str, file: _Metered) -> None:
    """Raises UnsupportedError for a format that Pillow knows and is not on our list."""
    from PIL import Image

    file.seek(0)
    start = file.read(16)
    for format, (_, accepts) in Image.OPEN.items():
        if format in FORMATS or accepts is None or accepts(start) is not True:
            continue
        if format in PROGRAMS:
            raise UnsupportedError(f"{name} is PostScript, a program: convert it to PNG first")
        raise UnsupportedError(f"{name} is {format}, which is not read: convert it to PNG")
    if start[4:8] == b"ftyp" and start[8:10] in (b"he", b"mi", b"ms"):
        raise UnsupportedError(f"{name} is HEIF, which is not read: convert it to JPEG or PNG")


# ---- what it will take ---------------------------------------------------------------------------


def _prepare(name: str, image: Any, file: BinaryIO, header_bytes: int) -> None:
    """Refuse what would take too much, after asking the decoder for less where it can give it."""
    full, beside_bytes = image.size, 0.0
    _check_slow(name, image)
    if image.format in ("JPEG", "MPO"):
        beside_bytes = _shrink_jpeg(name, image, file)
    elif image.format == "JPEG2000":
        beside_bytes = _coarsen(name, image, file)
    elif image.format == "TIFF":
        check_strips(name, image.tag_v2)
        if strip_scans(name, file, image.tag_v2) > MAX_SCAN_PIXELS:
            raise InputError(
                f"{name} goes over its {full[0] * full[1]:,} pixels in too many scans: "
                "convert it to PNG"
            )
        if any(tile[0] == "libtiff" for tile in image.tile):  # else rows go to their place
            beside_bytes = piece_bytes(image.tag_v2)
    else:
        beside_bytes = BESIDE.get(image.format, 0.0) * full[0] * full[1]
    held_bytes = stored_bytes(image.mode, *image.size)
    for needed, limit in (
        (held_bytes, HELD_BYTES),
        (held_bytes + beside_bytes + header_bytes, WORK_BYTES),
    ):
        if needed > limit:
            raise InputError(
                f"{name} cannot be read as a picture: {full[0]} x {full[1]} pixels in this kind of "
                f"{image.format} take {needed / 1e6:,.0f} MB, and the limit is "
                f"{limit / 1e6:,.0f} MB; make it smaller"
            )


def _check_slow(name: str, image: Any) -> None:
    """Some decoders are written in Python."""
    from PIL import Image

    slow = any(tile[0] in Image.DECODERS for tile in image.tile)
    if slow and image.size[0] * image.size[1] > MAX_SLOW_PIXELS:
        raise InputError(
            f"{name} is {image.size[0] * image.size[1]:,} pixels in a kind of {image.format} that "
            f"is slow to read: the limit is {MAX_SLOW_PIXELS:,}; convert it to PNG"
        )


def _shrink_jpeg(name: str, image: Any, file: BinaryIO) -> float:
    """Ask for fewer pixels of a large JPEG; the bytes of its coefficients, if it keeps them."""
    width, height = image.size
    position = file.tell()
    count, kept = scans(file)
    file.seek(position)
    if count > MAX_SCANS or count * width * height > MAX_SCAN_PIXELS:
        raise InputError(
            f"{name} goes over its {width * height:,} pixels in {count:,} scans: the limit is "
            f"{MAX_SCANS:,}, and {MAX_SCAN_PIXELS:,} pixels in all of them; convert it to PNG"
        )
    full = stored_bytes(image.mode, width, height)
    scale = next((s for s in (1, 2, 4) if full <= FULL_BYTES * s * s), 8)
    if 1 < scale <= min(width, height):
        image.draft(None, (width // scale, height // scale))
    if not kept:
        return 0.0
    sampling = [(across, down) for _, across, down, _ in image.layer]
    whole = max(a for a, _ in sampling) * max(d for _, d in sampling)
    return float(2 * width * height * sum(a * d for a, d in sampling) / whole)


def _coarsen(name: str, image: Any, file: BinaryIO) -> float:
    """Ask for a coarser level of a large JPEG 2000; the bytes that it takes beside its picture."""
    width, height = image.size
    position = file.tell()
    size = wavelet_size(name, file)
    file.seek(position)
    if size != image.size:
        raise InputError(f"{name} is {width} x {height} pixels, and its content is not: {size}")
    levels = 0
    while (width * height) >> (2 * levels) > MAX_WAVELET_PIXELS:
        levels += 1
    image.reduce = levels
    return float(BESIDE["JPEG2000"] * ((width * height) >> (2 * levels)))
