"""From every mode of Pillow's to RGB in 8 bits, a band at a time.

Transparent parts are laid on white, as the reference processor does. Greys of more than 8 bits are
read by their range (`gemelo.inputs.grey`). Only one band is ever held in a mode between, and a
picture far larger than a tower sees is shrunk band by band: the memory it takes is that of what
comes out.

    image, notices = to_rgb(image)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gemelo.inputs.grey import grey_reader, is_deep

if TYPE_CHECKING:
    from PIL import Image

FULL_PIXELS = 24_000_000  # up to this size every pixel is kept
KEPT_PIXELS = 12_000_000  # of a larger picture: four views of 896 pixels see no more
FINE_SIDE = 1792  # a side is not shrunk below twice what a tower sees
BAND_PIXELS = 4_000_000
NEARLY_BLACK = 8  # of 255

Painter = Callable[["Image.Image"], "Image.Image"]


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """A loaded picture in RGB, a new one, and what there is to say about it."""
    paint, notices = _painter(image)
    across, down = shrinking(image.size)
    painted = _painted(image, paint, across, down)
    if (across, down) != (1, 1):
        notices += (shrunk(image.size, painted.size),)
    brightest = max(high for _, high in painted.getextrema())
    if brightest < NEARLY_BLACK:
        notices += (f"it is nearly black: its brightest value is {brightest} of 255",)
    return painted, notices


def shrinking(size: tuple[int, int]) -> tuple[int, int]:
    """How many pixels across and down become one."""
    width, height = size
    if width * height <= FULL_PIXELS:
        return 1, 1
    factor = math.ceil(math.sqrt(width * height / KEPT_PIXELS))
    across = max(1, min(factor, width // FINE_SIDE))
    down = max(1, min(factor, height // FINE_SIDE))
    if width >= height:  # what the short side keeps, the long one gives
        return max(across, math.ceil(width * math.ceil(height / down) / KEPT_PIXELS)), down
    return across, max(down, math.ceil(height * math.ceil(width / across) / KEPT_PIXELS))


def shrunk(full: tuple[int, int], read: tuple[int, int]) -> str:
    """The sentence on a picture that was shrunk as it was read."""
    return f"its {full[0]} x {full[1]} pixels are read as {read[0]} x {read[1]}"


def _painted(image: Image.Image, paint: Painter, across: int, down: int) -> Image.Image:
    from PIL import Image

    width, height = image.size
    if (across, down) == (1, 1) and width * height <= BAND_PIXELS:
        return paint(image)
    canvas = Image.new("RGB", (math.ceil(width / across), math.ceil(height / down)))
    for box in _bands(width, height, across, down):
        band = paint(image.crop(box))
        if (across, down) != (1, 1):
            band = band.reduce((across, down))
        canvas.paste(band, (box[0] // across, box[1] // down))
    return canvas


def _bands(width: int, height: int, across: int, down: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover a picture, each a whole number of blocks of `across` x `down`."""
    columns = max(1, min(width, BAND_PIXELS) // across) * across
    rows = max(1, BAND_PIXELS // min(width, columns) // down) * down
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _painter(image: Image.Image) -> tuple[Painter, tuple[str, ...]]:
    """What makes RGB of a band of the picture."""
    if is_deep(image):
        return grey_reader(image, bands_of(image))
    if image.has_transparency_data or "a" in image.getbands():
        if any(_alpha(band).getextrema() != (255, 255) for band in bands_of(image)):
            return _on_white, ("its transparent parts are shown as white",)
        return (lambda band: _layer(band).convert("RGB")), ()
    return (lambda band: band.convert("RGB")), ()


def bands_of(image: Image.Image) -> Iterator[Image.Image]:
    """The picture in pieces of a bounded size."""
    for box in _bands(*image.size, 1, 1):
        yield image.crop(box)


def _layer(band: Image.Image) -> Image.Image:
    straight = band.convert("LA") if band.mode == "La" else band
    return straight.convert("RGBA")


def _alpha(band: Image.Image) -> Image.Image:
    return _layer(band).getchannel("A")


def _on_white(band: Image.Image) -> Image.Image:
    from PIL import Image

    layer = _layer(band)
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")
