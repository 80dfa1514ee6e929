"""Pictures: pixels of the reference, every format upright and in RGB, and bad files in one line."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from gemelo.errors import GemeloError, InputError, UnsupportedError
from gemelo.inputs.media.image import (
    MAX_PIXELS,
    ORIENTATION,
    Picture,
    pixel_values,
    read_image,
    views,
)
from gemelo.inputs.media.panscan import crops
from tests.inputs.reference import gemma3_pixels, gemma3n_pixels
from tests.multimodal import photograph

SIZES = [(1, 1), (5, 90), (90, 5), (64, 64), (63, 65), (301, 200), (700, 40)]
SAMPLE = photograph(40, 30)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def array(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)


def header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 8)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + rows


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_references(size: tuple[int, int]) -> None:
    image = photograph(*size)
    wanted = np.array(gemma3_pixels(64)(image)["pixel_values"][0])
    ours = pixel_values(read_image(image).resized(64), 0.5, (0.5, 0.5, 0.5))
    assert ours.shape == wanted.shape and ours.dtype == np.float32 and ours.flags.c_contiguous
    assert float(np.abs(ours - wanted).max()) < 1e-6
    wanted = np.array(gemma3n_pixels(64)(image)["pixel_values"][0])
    ours = pixel_values(read_image(image).resized(64), 0.0, 1.0)
    assert float(np.abs(ours - wanted).max()) < 1e-6


@pytest.mark.parametrize("side", [256, 896])
def test_pixels_at_the_size_of_a_tower(side: int) -> None:
    image = photograph(1000, 700)
    wanted = np.array(gemma3_pixels(side)(image)["pixel_values"][0])
    ours = pixel_values(read_image(image).resized(side), 0.5, 0.5)
    assert float(np.abs(ours - wanted).max()) < 1e-6


def test_views_are_what_the_reference_crops() -> None:
    image = photograph(1000, 400)
    wanted = gemma3_pixels(64)(
        image,
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )["pixel_values"]
    seen = views(read_image(image), crops(image.size))
    assert len(seen) == len(wanted) == 4
    for view, one in zip(seen, wanted, strict=True):
        ours = pixel_values(view.resized(64), 0.5, 0.5)
        assert float(np.abs(ours - np.array(one)).max()) < 1e-6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_modes_become_rgb_as_in_the_reference(mode: str) -> None:
    image = photograph(20, 20).convert(mode)
    if "A" in mode:
        image.putalpha(photograph(20, 20, seed=1).convert("L"))
    wanted = np.array(gemma3_pixels(20)(image)["pixel_values"][0])
    ours = pixel_values(read_image(image).resized(20), 0.5, 0.5)
    assert float(np.abs(ours - wanted).max()) < 1e-6


@pytest.mark.parametrize(
    "format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "GIF", "ICO", "WEBP", "JPEG"]
)
def test_formats_from_everything_that_holds_bytes(format: str, tmp_path: Path) -> None:
    written = encoded(SAMPLE.resize((32, 32)), format)
    path = tmp_path / "picture.any"
    path.write_bytes(written)
    wanted = np.asarray(Image.open(io.BytesIO(written)).convert("RGB"))
    with path.open("rb") as file:
        file.seek(5)
        for source in (written, path, str(path), file, io.BytesIO(written)):
            picture = read_image(source)
            assert picture.size == (32, 32) and picture.notices == ()
            assert (array(picture) == wanted).all()
        assert not file.closed


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_turns_it_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    written = encoded(SAMPLE, format, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(written))).convert("RGB")
    picture = read_image(written)
    assert picture.size == ((30, 40) if orientation > 4 else (40, 30))
    assert (array(picture) == np.asarray(wanted)).all()


def test_what_is_transparent_is_white_and_said() -> None:
    picture = read_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG"))
    assert (array(picture) == 255).all()
    assert picture.notices == ("its transparent parts are shown as white",)
    assert read_image(encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 255)), "PNG")).notices == ()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_clipped(format: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    picture = read_image(encoded(Image.fromarray(ramp), format))
    assert (array(picture)[..., 0] == np.arange(256).reshape(16, 16)).all()
    assert picture.notices == ()


def test_numbers_without_a_range_are_stretched_and_it_is_said() -> None:
    unit = Image.fromarray(np.array([[0, 0.5], [1, np.nan]], np.float32))
    assert array(read_image(unit))[..., 0].tolist() == [[0, 128], [255, 0]]
    signed = read_image(Image.fromarray(np.array([[-100, -60], [100, 50]], np.int32)))
    assert array(signed)[..., 0].tolist() == [[0, 51], [255, 191]]
    assert "from -100 to 100 are stretched" in signed.notices[0]
    assert (array(read_image(Image.new("F", (2, 2), 1e30))) == 0).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {} if format in ("GIF", "TIFF") else {"lossless": True}
    written = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    picture = read_image(written)
    assert picture.notices == ("it has several frames: the first is used",)
    assert (array(picture) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "the picture is empty: it has 0 bytes"),
        (b"nonsense" * 9, "its format is none of those that are read; save it as PNG"),
        (encoded(SAMPLE, "JPEG")[:400], "(?i)truncated"),
        (encoded(SAMPLE, "PNG")[:200], "(?i)truncated"),
        (header(0, 0), "cannot be read as a picture|needs one at least"),
        (header(9, 9), "cannot be read as a picture"),
        (header(12001, 10000), f"120,010,000 pixels: the limit is {MAX_PIXELS:,}; make it"),
        (header(20000, 20000), f"larger than {MAX_PIXELS:,} pixels, which is the limit; make"),
        (header(12000, 9999), "cannot be read as a picture"),
        ("no/such/file.png", "cannot read no/such/file.png: no such file"),
        (3, "give a path, bytes or a file"),
        (None, "give a path, bytes or a file"),
    ],
)
def test_bad_pictures_in_one_line(source: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_image(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_program_is_not_run() -> None:
    with pytest.raises(UnsupportedError, match="PostScript"):
        read_image(encoded(SAMPLE, "EPS"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "PCX"])
def test_damaged_files_end_in_a_picture_or_one_line(
    format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(7)
    whole = bytearray(encoded(photograph(24, 24), format))
    for _ in range(60):
        damaged = whole.copy()
        for place in random.integers(0, min(len(damaged), 300), 4):
            damaged[place] = random.integers(256)
        try:
            read_image(bytes(damaged[: random.integers(1, len(damaged) + 1)]))
        except GemeloError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")


def test_what_the_decoder_logs_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    tiff = bytearray(encoded(SAMPLE, "TIFF"))
    samples_per_pixel = tiff.index(struct.pack("<HHI", 277, 3, 1)) + 8
    tiff[samples_per_pixel : samples_per_pixel + 2] = struct.pack("<H", 2048)
    with pytest.raises(InputError):
        read_image(bytes(tiff))
    assert capfd.readouterr() == ("", "") and not logging.getLogger("PIL").handlers


def test_what_the_decoder_warns_of_is_a_notice() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    picture = read_image(encoded(SAMPLE, "JPEG", exif=exif))
    assert picture.size == SAMPLE.size
    assert all("EXIF" in notice for notice in picture.notices) and len(picture.notices) == 1


def test_the_picture_of_a_caller_is_left_alone() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert read_image(image).image is not image
    assert image.mode == "RGBA"
    picture = read_image(image)
    assert read_image(picture) is picture
