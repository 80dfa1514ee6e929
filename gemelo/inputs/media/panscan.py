"""Pan & Scan: crops of an elongated image beside the image itself.

Every view is resized to the same square, so an elongated picture loses detail along its long
side. Gemma 3 was given such pictures as the original followed by two to four crops that tile it
along that side. Which crops is a function of the picture's width and height alone; the prompt says
that there are crops. It is off unless asked for, and every view costs as many tokens as a picture.

    crops((1200, 500), PanScan())    # [(0, 0, 600, 500), (600, 0, 1200, 500)]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemelo.errors import InputError

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside, in pixels

# What the prompt says around the original and its crops.
BEFORE_ORIGINAL = "Here is the original image "
BEFORE_CROPS = " and here are some crops to help you see better "
BETWEEN_CROPS = " "


@dataclass(frozen=True)
class PanScan:
    """When to crop: sides in pixels, ratio of the long side to the short one."""

    min_crop_size: int = 256
    max_num_crops: int = 4
    min_ratio_to_activate: float = 1.2

    def __post_init__(self) -> None:
        sizes = ("min_crop_size", self.min_crop_size, 1), ("max_num_crops", self.max_num_crops, 2)
        for name, value, lowest in sizes:
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise InputError(f"{name} is {value!r}: give a whole number from {lowest} up")
        ratio = self.min_ratio_to_activate
        if not isinstance(ratio, int | float) or not 1 <= ratio < math.inf:
            raise InputError(f"min_ratio_to_activate is {ratio!r}: give a number from 1 up")


DEFAULT = PanScan()


def crops(size: tuple[int, int], options: PanScan = DEFAULT) -> list[Box]:
    """The boxes to cut from a picture of (width, height), none where it is not worth it.

    They tile the picture along its long side; the last may be smaller by a few pixels.
    """
    width, height = size
    if no_crops_reason(size, options):
        return []
    long, step = max(size), _step(size, options)
    starts = range(0, long, step)  # rounding up may leave nothing for the last of `count`
    if width >= height:
        return [(start, 0, min(start + step, width), height) for start in starts]
    return [(0, start, width, min(start + step, height)) for start in starts]


def no_crops_reason(size: tuple[int, int], options: PanScan = DEFAULT) -> str:
    """Why nothing is cut from a picture of (width, height), with the numbers; "" if crops are."""
    long, short = max(size), min(size)
    if short < 1:
        return "it is empty"
    ratio, limit = long / short, options.min_ratio_to_activate
    if ratio < limit:
        shown = math.floor(ratio * 100) / 100  # never rounded up to the limit
        return f"its sides have a ratio of {shown:.4g}, under {limit:g} (min_ratio_to_activate)"
    side = min(_step(size, options), short)
    if side < options.min_crop_size:
        return (
            f"it is long enough, {ratio:.3g} to 1 (min_ratio_to_activate {limit:g}), but its crops "
            f"would have a side of {side} pixels, under {options.min_crop_size} (min_crop_size)"
        )
    return ""


def _step(size: tuple[int, int], options: PanScan) -> int:
    """The length of a crop along the long side."""
    long, short = max(size), min(size)
    count = min(long // options.min_crop_size, math.floor(long / short + 0.5))
    return math.ceil(long / min(max(count, 2), options.max_num_crops))
