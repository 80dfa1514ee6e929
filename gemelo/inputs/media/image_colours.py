"""Colour conversion: every mode of Pillow's to 8-bit RGB, a band at a time.

Transparent parts are laid on white, as the reference processor does. Greys of more than 8 bits are
read by their range (`image_grey`). Only one band is ever held in a mode between, and a picture far
larger than a vision tower takes is shrunk band by band: it takes the memory of what comes out.

    image, notices = to_rgb(image)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemelo.inputs.media.image_grey import grey_reader, is_deep

if TYPE_CHECKING:
    from PIL import Image

FULL_BYTES = 100_000_000  # of RGB as Pillow holds it; up to here, 24 megapixels, all pixels stay
KEPT_BYTES = 50_000_000  # of a larger picture: four views of 896 pixels hold no more
FINE_SIDE = 1792  # a side is not shrunk below twice a tower's image size, if the other can be
BAND_PIXELS = 1_000_000
BAND_ROWS = 1 << 17
NEARLY_BLACK = 8  # of 255

_BYTES = {"1": 1, "L": 1, "P": 1}  # Pillow's bytes a pixel; four where nothing is said


class BandConverter(NamedTuple):
    """From a band to L, RGB or RGBa, which can be shrunk, and from there to RGB."""

    ready: Callable[[Image.Image], Image.Image]
    finish: Callable[[Image.Image], Image.Image]


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """A loaded picture in RGB, a new one, and what there is to say about it."""
    converter, notices = _converter(image)
    across, down = shrinking(image.size)
    converted = _converted(image, converter, across, down)
    if (across, down) != (1, 1):
        notices += (shrunk(image.size, converted.size),)
    if (most := brightest(converted)) < NEARLY_BLACK:
        notices += (f"it is nearly black: its brightest value is {most} of 255",)
    return converted, notices


def brightest(image: Image.Image) -> int:
    """The greatest value of a picture in RGB, of 255."""
    return int(np.asarray(image.getextrema()).max())


def stored_bytes(mode: str, width: int, height: int) -> int:
    """What Pillow takes to hold a picture: rows of whole words, and where each of them is."""
    pixel = 2 if mode.startswith("I;16") else _BYTES.get(mode, 4)
    return height * (8 + (width * pixel + 3) // 4 * 4)


def shrinking(size: tuple[int, int]) -> tuple[int, int]:
    """How many pixels across and down become one."""
    width, height = size
    full_bytes = stored_bytes("RGB", width, height)
    if full_bytes <= FULL_BYTES:
        return 1, 1
    factor = math.ceil(math.sqrt(full_bytes / KEPT_BYTES))
    across = max(1, min(factor, width // FINE_SIDE))
    down = max(1, min(factor, height // FINE_SIDE))
    while stored_bytes("RGB", math.ceil(width / across), math.ceil(height / down)) > KEPT_BYTES:
        across, down = (across + 1, down) if width >= height else (across, down + 1)
    return across, down


def shrunk(full: tuple[int, int], read: tuple[int, int]) -> str:
    """The sentence on a picture that was shrunk as it was read."""
    return f"its {full[0]} x {full[1]} pixels are read as {read[0]} x {read[1]}"


def bands_of(image: Image.Image) -> Iterator[Image.Image]:
    """The picture in pieces of a bounded size."""
    for box in _boxes(*image.size, 1, 1):
        yield image.crop(box)


def _converted(image: Image.Image, converter: BandConverter, across: int, down: int) -> Image.Image:
    from PIL import Image

    width, height = image.size
    canvas = Image.new("RGB", (math.ceil(width / across), math.ceil(height / down)))
    for box in _boxes(width, height, across, down):
        band = converter.ready(image.crop(box))
        if (across, down) != (1, 1):
            band = band.reduce((across, down))
        canvas.paste(converter.finish(band), (box[0] // across, box[1] // down))
    return canvas


def _boxes(width: int, height: int, across: int, down: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover a picture, each a whole number of blocks of `across` x `down`."""
    columns = max(1, min(width, BAND_PIXELS) // across) * across
    rows = max(1, min(BAND_PIXELS // min(width, columns), BAND_ROWS) // down) * down
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _converter(image: Image.Image) -> tuple[BandConverter, tuple[str, ...]]:
    if is_deep(image):
        read, notices = grey_reader(image, bands_of(image))
        return BandConverter(read, _rgb), notices
    if image.has_transparency_data or "a" in image.getbands():
        if any(_alpha(band).getextrema() != (255, 255) for band in bands_of(image)):
            large = shrinking(image.size) != (1, 1)
            converter = BandConverter(_premultiplied if large else _layer, _on_white)
            return converter, ("its transparent parts are shown as white",)
        return BandConverter(lambda band: _rgb(_layer(band)), _rgb), ()
    return BandConverter(_grey if image.mode in ("1", "L") else _rgb, _rgb), ()


def _rgb(band: Image.Image) -> Image.Image:
    return band if band.mode == "RGB" else band.convert("RGB")


def _grey(band: Image.Image) -> Image.Image:
    return band.convert("L")


def _layer(band: Image.Image) -> Image.Image:
    if band.mode == "RGBA":
        return band
    straight = band.convert("LA") if band.mode == "La" else band
    return straight.convert("RGBA")


def _premultiplied(band: Image.Image) -> Image.Image:
    """As it has to be for pixels to be averaged."""
    return _layer(band).convert("RGBa")


def _alpha(band: Image.Image) -> Image.Image:
    return _layer(band).getchannel("A")


def _on_white(band: Image.Image) -> Image.Image:
    from PIL import Image

    layer = _layer(band)
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")
