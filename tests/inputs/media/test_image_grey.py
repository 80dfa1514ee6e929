"""Greys of more than 8 bits: as the reference shows them, or read by their range, and said."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemelo.errors import InputError
from gemelo.inputs.media.image import pixel_values, read_image
from tests.inputs.bombs import encoded
from tests.inputs.reference import gemma3_pixels

RAMP = np.tile(np.arange(256), (16, 1))


def shown(source: Any) -> list[int]:
    """The first row."""
    return [int(value) for value in np.asarray(read_image(source).image)[0, :, 0]]


def deep(values: Any, dtype: str) -> Image.Image:
    return Image.fromarray(np.array([values]).astype(dtype))


def of_mode(mode: str, values: list[int]) -> Image.Image:
    order = ">u2" if mode == "I;16B" else "<u2"
    return Image.frombytes(mode, (len(values), 1), np.array(values).astype(order).tobytes())


# ---- 8 bits in more ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int16", "uint32"])
@pytest.mark.parametrize("kind", ["array", "image", "TIFF"])
def test_0_to_255_is_8_bits_as_in_the_reference(dtype: str, kind: str) -> None:
    image = Image.fromarray(RAMP.astype(dtype))
    sources = {"array": RAMP.astype(dtype), "image": image}
    picture = read_image(sources[kind] if kind in sources else encoded(image, kind))
    assert np.array_equal(np.asarray(picture.image), np.asarray(image.convert("RGB")))
    assert picture.notices == ()
    wanted = gemma3_pixels(64)(Image.fromarray(RAMP.astype(dtype)))["pixel_values"][0]
    ours = pixel_values(picture.resized(64), 0.5, 0.5)
    assert float(np.abs(ours - np.array(wanted)).max()) < 1e-6


def test_fractions_are_cut_as_in_pillow() -> None:
    image = deep([0.2, 0.9, 1.5, 99.99, 254.6, 255], "float32")
    assert shown(image) == np.asarray(image.convert("RGB"))[0, :, 0].tolist()


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_8_bits_in_16_are_read_as_8_and_it_is_said(mode: str) -> None:
    image = of_mode(mode, [0, 1, 100, 255])
    assert shown(image) == [0, 1, 100, 255] == np.asarray(image.convert("RGB"))[0, :, 0].tolist()
    assert read_image(image).notices == (
        "its 16-bit greys go up to 255 only: they are read as 8 bits",
    )


def test_a_few_numbers_that_resampling_pushed_out_are_clipped() -> None:
    values = np.linspace(0, 255, 1000)
    values[[3, 500]] = -4.5, 259.0
    image = deep(values, "float32")
    assert shown(image) == np.asarray(image.convert("RGB"))[0, :, 0].tolist()
    (notice,) = read_image(image).notices
    assert notice == "2 of its greys, from -4.5 to 259, are cut to 0 to 255"


def test_arrays_that_are_no_picture_are_refused_in_one_line() -> None:
    colours = np.full((4, 4, 3), 90, np.uint8)
    assert np.array_equal(np.asarray(read_image(colours).image), colours)
    for array in (colours / 255, RAMP.astype(np.complex64), np.zeros((2, 2, 2, 2)), np.array(3)):
        with pytest.raises(InputError, match="cannot be read as a picture|needs one at least"):
            read_image(array)


# ---- 12, 16 and any ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("source", ["image", "PNG", "TIFF"])
def test_12_bits_in_16_are_read_as_12_and_it_is_said(mode: str, source: str) -> None:
    image = of_mode(mode, [0, 16, 2048, 4095])
    if source == "PNG" and mode == "I;16B":
        image = of_mode("I;16", [0, 16, 2048, 4095])
    picture = read_image(image if source == "image" else encoded(image, source))
    assert np.asarray(picture.image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert picture.notices == ("its 16-bit greys go up to 4095 only: they are read as 12 bits",)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_are_scaled_by_their_range(mode: str) -> None:
    assert shown(of_mode(mode, [0, 257, 32768, 65535])) == [0, 1, 128, 255]
    assert read_image(of_mode(mode, [0, 257, 32768, 65535])).notices == ()
    assert shown(of_mode(mode, [0, 4096])) == [0, 16]


@pytest.mark.parametrize("most", [4095, 65535, 1023, 255])
def test_a_pgm_says_its_range_itself(most: int) -> None:
    order = ">u2" if most > 255 else ">u1"
    body = np.array([0, most // 2, most]).astype(order).tobytes()
    picture = read_image(f"P5 3 1 {most}\n".encode() + body)
    middle = [127, 128]
    low, mid, high = np.asarray(picture.image)[0, :, 0].tolist()
    assert (low, high) == (0, 255) and mid in middle and picture.notices == ()


@pytest.mark.parametrize(
    ("values", "dtype", "wanted", "notice"),
    [
        ([0, 2048, 4095], "int32", [0, 128, 255], "up to 4095: they are read as 12 bits"),
        ([0, 1000.5, 4095], "float32", [0, 62, 255], "up to 4095: they are read as 12 bits"),
        ([0, 32768, 65535], "int32", [0, 128, 255], "up to 65535: they are read as 16 bits"),
        ([0, 32768, 65535], "float32", [0, 128, 255], "up to 65535: they are read as 16 bits"),
        ([0, 0.5, 1], "float32", [0, 128, 255], "from 0 to 1: they are read as black to white"),
        ([-1, 0, 1], "float32", [0, 128, 255], "from -1 to 1 are stretched"),
        ([-1000, 0, 1000], "int32", [0, 128, 255], "from -1000 to 1000 are stretched"),
        ([-1024, 3071], "int16", [0, 255], "from -1024 to 3071 are stretched"),
        ([0, 1e6], "float32", [0, 255], "from 0 to 1e+06 are stretched"),
        ([-3e38, 3e38], "float32", [0, 255], "are stretched"),
        ([0, 2**31 - 1], "int32", [0, 255], "are stretched"),
    ],
)
def test_other_numbers_are_a_guess_and_it_is_said(
    values: list[float], dtype: str, wanted: list[int], notice: str
) -> None:
    picture = read_image(deep(values, dtype))
    assert np.asarray(picture.image)[0, :, 0].tolist() == wanted
    assert notice in picture.notices[0] and len(picture.notices) == 1


# ---- what is no number, or no light --------------------------------------------------------------


def test_numbers_that_are_none() -> None:
    picture = read_image(deep([np.nan, np.inf, -np.inf, 100, 255], "float32"))
    assert np.asarray(picture.image)[0, :, 0].tolist() == [0, 255, 0, 100, 255]
    assert picture.notices == ("3 of its values are NaN or infinite",)
    nothing = read_image(deep([np.nan, np.nan], "float32"))
    assert (np.asarray(nothing.image) == 0).all()
    assert nothing.notices[0] == "2 of its values are NaN or infinite"
    assert "nearly black" in nothing.notices[1]


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint16"])
@pytest.mark.parametrize("value", [0, 1, 100, 255, 300, 5000, 70000])
def test_pictures_of_one_value(dtype: str, value: int) -> None:
    if dtype == "uint16" and value > 65535:
        return
    picture = read_image(deep([value] * 4, dtype))
    values = np.unique(np.asarray(picture.image))
    assert len(values) == 1
    assert values[0] >= 8 or any("nearly black" in notice for notice in picture.notices)
    if 1 < value <= 255:
        assert values[0] == value


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "F"])
def test_a_picture_that_is_nearly_black_is_said_to_be(mode: str) -> None:
    dark = {"CMYK": (0, 0, 0, 250), "RGB": (2, 5, 0), "RGBA": (2, 5, 0, 255)}.get(mode, 0)
    picture = read_image(Image.new(mode, (4, 4), dark))
    brightest = int(np.asarray(picture.image).max())
    assert picture.notices == (f"it is nearly black: its brightest value is {brightest} of 255",)
    assert brightest < 8


# ---- other modes ---------------------------------------------------------------------------------


def test_premultiplied_grey_with_alpha() -> None:
    straight = Image.merge("LA", [Image.new("L", (1, 1), v) for v in (100, 128)])
    wanted = np.asarray(read_image(straight).image).astype(int)
    picture = read_image(straight.convert("La"))
    assert abs(np.asarray(picture.image) - wanted).max() <= 1
    assert picture.notices == ("its transparent parts are shown as white",)


def test_a_palette_with_alpha_for_each_colour() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    for place in range(3):
        image.putpixel((place, 0), place)
    written = encoded(image, "PNG", transparency=bytes([0, 128, 255]))
    picture = read_image(written)
    assert np.asarray(picture.image)[0].tolist() == [[255, 255, 255], [227, 127, 127], [0, 200, 0]]


def test_transparent_grey_of_16_bits_is_white() -> None:
    image = deep([300, 70, 50000], "uint16")
    written = encoded(image, "PNG", transparency=70)
    with Image.open(io.BytesIO(written)) as opened:
        assert opened.info["transparency"] == 70
    assert shown(written) == [1, 255, 195]


def test_inks_of_a_press_are_the_right_way_round() -> None:
    """Photoshop's marker says that a JPEG's inks are inverted; Pillow writes it."""
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    written = encoded(ink, "JPEG", quality=100)
    assert struct.pack(">H", 0xFFEE) in written
    red, green, blue = np.asarray(read_image(written).image)[8, 8]
    assert red < 10 and green > 245 and blue > 245
