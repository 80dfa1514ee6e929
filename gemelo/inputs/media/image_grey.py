"""Grey images of more than 8 bits: black point, white point, and conversion to 8 bits.

Sixteen bits have a range of their own, 0 to 65535. Numbers in 32 bits, whole or not, have none: 0
to 255 are the 8 bits that Pillow's `convert("RGB")` and with it the reference processor takes them
for, and the rest is a guess: 0 to 1, 12 bits, 16 bits, or else stretched from least to most.
Sixteen bits that hold 8 or 12 (of a medical picture or a camera in a factory) are read as what they
hold. Every guess is said.

    read, notices = grey_reader(image, bands)
    read(band)     # L
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

DECLARED = ("PPM", "PNG")  # formats whose greys in 32 bits are 16 bits, scaled by the file's range
MOST_8_BITS, MOST_12_BITS, MOST_16_BITS = 255, 4095, 65535
STRAYS = 0.01  # share of the values that resampling may have pushed out of 0 to 255


@dataclass(frozen=True)
class ValueRange:
    """What the numbers of a grey picture are; low and high are those that are finite."""

    low: float
    high: float
    num_values: int
    num_strays: int  # finite, below 0 or above 255
    num_broken: int  # NaN or infinite


@dataclass(frozen=True)
class GreyRange:
    """Which number is black and which is white; notices: sentences, where it is a guess."""

    black: float
    white: float
    notices: tuple[str, ...] = ()


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey, in more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def grey_reader(
    image: Image.Image, bands: Iterable[Image.Image]
) -> tuple[Callable[[Image.Image], Image.Image], tuple[str, ...]]:
    """What makes 8 bits of a band of a deep grey picture, and what there is to say about it."""
    numbers = _value_range(bands)
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in DECLARED)
    declared = image.mode == "I" and image.format == "PPM"  # Pillow has scaled them to 16 bits
    if declared:
        grey_range = GreyRange(0, MOST_16_BITS)
    else:
        grey_range = _sixteen(numbers) if sixteen else _without_range(numbers, image.mode)
    transparent = image.info.get("transparency")
    unseen = transparent if isinstance(transparent, int) else None
    notices = grey_range.notices
    if numbers.num_broken:
        notices += (f"{numbers.num_broken:,} of its values are NaN or infinite",)

    def read(band: Image.Image) -> Image.Image:
        return _in_8_bits(np.asarray(band), grey_range, unseen)

    return read, notices


def _value_range(bands: Iterable[Image.Image]) -> ValueRange:
    low, high = np.inf, -np.inf
    num_values = num_strays = num_broken = 0
    for band in bands:
        values = np.asarray(band)
        num_values += values.size
        if not np.isfinite(float(values.min()) + float(values.max())):  # of one NaN both are made
            finite = values[np.isfinite(values)]
            num_broken += values.size - finite.size
            values = finite
        if values.size:
            least, most = float(values.min()), float(values.max())
            low, high = min(low, least), max(high, most)
            if least < 0 or most > MOST_8_BITS:
                num_strays += int(np.count_nonzero((values < 0) | (values > MOST_8_BITS)))
    if num_broken == num_values:
        low = high = 0.0
    return ValueRange(low, high, num_values, num_strays, num_broken)


def _sixteen(numbers: ValueRange) -> GreyRange:
    """Of 16 bits; a picture that uses a 16th of them or less holds 8 or 12."""
    high = numbers.high
    if high == 0 or high > MOST_12_BITS:
        return GreyRange(0, MOST_16_BITS)
    white = MOST_8_BITS if high <= MOST_8_BITS else MOST_12_BITS
    bits = white.bit_length()
    return GreyRange(
        0, white, (f"its 16-bit greys go up to {high:g} only: they are read as {bits} bits",)
    )


def _without_range(numbers: ValueRange, mode: str) -> GreyRange:
    """Of 32-bit numbers, from what they are."""
    low, high = numbers.low, numbers.high
    if mode == "F" and low >= 0 and 0 < high <= 1:
        return GreyRange(0, 1, ("its greys are all from 0 to 1: they are read as black to white",))
    if low >= 0 and high <= MOST_8_BITS:
        return GreyRange(0, MOST_8_BITS)
    if _strays(numbers):
        notice = (
            f"{numbers.num_strays:,} of its greys, from {low:g} to {high:g}, are cut to 0 to 255"
        )
        return GreyRange(0, MOST_8_BITS, (notice,))
    if low >= 0 and high <= MOST_16_BITS:
        most = MOST_12_BITS if high <= MOST_12_BITS else MOST_16_BITS
        notice = f"its 32-bit greys go up to {high:g}: they are read as {most.bit_length()} bits"
        return GreyRange(0, most, (notice,))
    notice = f"its greys from {low:g} to {high:g} are stretched from black to white"
    return GreyRange(low, high, (notice,))


def _strays(numbers: ValueRange) -> bool:
    """Whether it is 0 to 255 but for a few that sharpening or resizing has pushed out."""
    near = numbers.low >= -MOST_8_BITS and numbers.high <= 2 * MOST_8_BITS
    many = numbers.high > 2  # else these are numbers around 0, not around the middle of 255
    return near and many and numbers.num_strays <= STRAYS * numbers.num_values


def _in_8_bits(values: NDArray[Any], grey_range: GreyRange, unseen: int | None) -> Image.Image:
    from PIL import Image

    if values.dtype.itemsize == 2:  # a table is quicker than sums
        grey = _levels(np.arange(1 << 16), grey_range)[values]
    else:
        grey = _levels(values, grey_range)
    if unseen is not None:
        grey[values == unseen] = MOST_8_BITS
    return Image.fromarray(grey)


def _levels(values: NDArray[Any], grey_range: GreyRange) -> NDArray[np.uint8]:
    """From numbers to 0 to 255."""
    span = (grey_range.white - grey_range.black) or 1.0
    with np.errstate(invalid="ignore"):
        scaled = (values.astype(np.float64) - grey_range.black) * (MOST_8_BITS / span)
    np.nan_to_num(scaled, copy=False, nan=0.0)
    np.clip(scaled, 0, MOST_8_BITS, out=scaled)
    # Numbers that are levels already lose their fractions, as in Pillow.
    if (grey_range.black, grey_range.white) != (0, MOST_8_BITS):
        np.rint(scaled, out=scaled)
    return scaled.astype(np.uint8)
