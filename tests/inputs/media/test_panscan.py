"""Crops: for every size of picture those of the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.errors import InputError
from gemelo.inputs.media.panscan import DEFAULT, Box, PanScan, crops
from tests.inputs.reference import gemma3_pixels

SIZES = st.tuples(st.integers(1, 6000), st.integers(1, 6000))


def reference_boxes(size: tuple[int, int], options: PanScan) -> list[Box]:
    """What the reference cuts from a picture whose pixels say where they are."""
    width, height = size
    planes = (
        np.broadcast_to(np.arange(width), (1, height, width)),
        np.broadcast_to(np.arange(height)[:, None], (1, height, width)),
    )
    x, y = (
        gemma3_pixels(16).pan_and_scan(
            plane,
            options.min_crop_size,
            options.max_num_crops,
            options.min_ratio_to_activate,
        )
        for plane in planes
    )
    return [
        (int(a[0, 0, 0]), int(b[0, 0, 0]), int(a[0, 0, -1]) + 1, int(b[0, -1, 0]) + 1)
        for a, b in zip(x, y, strict=True)
    ]


@settings(max_examples=150, deadline=None)
@given(SIZES)
def test_boxes_are_the_references(size: tuple[int, int]) -> None:
    assert crops(size) == reference_boxes(size, DEFAULT)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(40, 600), st.integers(2, 6), st.floats(1, 3))
def test_boxes_are_the_references_at_other_thresholds(
    size: tuple[int, int], smallest: int, most: int, ratio: float
) -> None:
    options = PanScan(smallest, most, ratio)
    assert crops(size, options) == reference_boxes(size, options)


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(0, 40), st.integers(0, 40)), st.integers(1, 9), st.integers(2, 9))
def test_crops_tile_the_picture(size: tuple[int, int], smallest: int, most: int) -> None:
    boxes = crops(size, PanScan(smallest, most, 1.0))
    covered = np.zeros(size, int)
    for left, top, right, bottom in boxes:
        assert left < right <= size[0] and top < bottom <= size[1]
        covered[left:right, top:bottom] += 1
    assert len(boxes) <= most and (not boxes or (covered == 1).all())


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((896, 896), 0),
        ((1000, 834), 0),
        ((1000, 833), 2),
        ((640, 255), 0),
        ((640, 256), 2),
        ((1000, 400), 3),
        ((400, 1000), 3),
        ((5000, 500), 4),
        ((0, 0), 0),
    ],
)
def test_worked_values(size: tuple[int, int], count: int) -> None:
    assert len(crops(size)) == count


@pytest.mark.parametrize(
    "wrong",
    [{"min_crop_size": 0}, {"max_num_crops": 1}, {"min_ratio_to_activate": math.nan}]
    + [{"min_ratio_to_activate": 0.5}, {"max_num_crops": 2.5}],
)
def test_thresholds_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        PanScan(**wrong)
