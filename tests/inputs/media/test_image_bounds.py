"""Pictures that ask for too much: a picture or one line, within seconds and 600 megabytes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media import image_colours, image_decoding, image_headers
from gemelo.inputs.media.image import read_image
from gemelo.inputs.media.image_colours import FULL_BYTES, shrinking, stored_bytes
from tests.inputs.bombs import (
    chunk,
    counted,
    encoded,
    flat,
    icon,
    noted,
    png,
    scanned,
    stripped,
    tagged,
    tiled_wavelets,
    wavelets,
)
from tests.multimodal import photograph

MOST_BYTES = 600_000_000
MOST_S = 6.0  # of the processor; on a quiet machine all take less than 1.5
READER = """
import json, re, sys, time
from pathlib import Path
from gemelo.errors import GemeloError
from gemelo.inputs.media.image import pixel_values, read_image
begun_s = time.process_time()
try:
    picture = read_image(sys.argv[1])
    said = [list(picture.size), *picture.notices]
    pixel_values(picture.resized(896), 0.5, 0.5)
except GemeloError as error:
    said = str(error)
peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([said, peak, time.process_time() - begun_s]))
"""


def read_apart(path: Path) -> Any:
    """What a process of its own says of a picture, within the limits."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, timeout=120, check=True
    )
    said, peak_bytes, used_s = json.loads(done.stdout)
    assert peak_bytes < MOST_BYTES and used_s < MOST_S, (said, peak_bytes, used_s)
    return said


LARGE: dict[str, Callable[[], bytes]] = {
    "grey in 16 bits": lambda: png(12000, 10000, 16, 0),
    "grey": lambda: png(12000, 10000, 8, 0),
    "one bit": lambda: png(12000, 10000, 1, 0),
    "palette": lambda: png(12000, 10000, 8, 3),
    "palette with alpha": lambda: png(12000, 10000, 8, 3, chunk(b"tRNS", b"\x80" * 256)),
    "colour": lambda: png(12000, 10000, 8, 2),
    "colour that fits": lambda: png(10000, 7200, 8, 2),
    "alpha": lambda: png(12000, 10000, 8, 6),
    "alpha that fits": lambda: png(10000, 7200, 8, 6),
    "grey with alpha": lambda: png(12000, 10000, 16, 4),
    "a column": lambda: png(1, 24_000_000, 8, 0),
    "a longer column": lambda: png(1, 119_000_000, 8, 0),
    "a line": lambda: png(119_000_000, 1, 8, 0),
    "float": lambda: flat("F", 10000, 10000, "TIFF", compression="tiff_adobe_deflate"),
    "float that fits": lambda: flat("F", 10000, 7200, "TIFF", compression="tiff_adobe_deflate"),
    "integers": lambda: flat("I", 10000, 10000, "TIFF", compression="tiff_adobe_deflate"),
    "16 bits in strips": lambda: flat("I;16", 12000, 10000, "TIFF", compression="tiff_lzw"),
    "one strip": lambda: flat(
        "RGB", 9000, 6000, "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 6000}
    ),
    "fax": lambda: encoded(Image.new("1", (12000, 10000), 1), "TIFF", compression="group4"),
    "CMYK in TIFF": lambda: flat("CMYK", 12000, 10000, "TIFF", compression="tiff_adobe_deflate"),
    "CMYK in JPEG": lambda: flat("CMYK", 10900, 10900, "JPEG"),
    "JPEG": lambda: flat("RGB", 10900, 10900, "JPEG"),
    "progressive": lambda: flat("RGB", 10900, 10900, "JPEG", progressive=True),
    "many scans": lambda: scanned(4000, 4000, 2000),
    "scans of a large one": lambda: scanned(10900, 10900, 300),
    "WebP": lambda: flat("RGB", 10900, 10900, "WEBP", lossless=True, quality=0, method=0),
    "WebP that fits": lambda: flat("RGBA", 4700, 4000, "WEBP", lossless=True, quality=0, method=0),
    "AVIF that fits": lambda: flat("RGB", 4900, 4000, "AVIF", speed=10),
    "JPEG 2000": lambda: flat("RGB", 8000, 5000, "JPEG2000"),
    "an animation": lambda: encoded(
        Image.new("P", (12000, 10000)),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (12000, 10000), 9)],
    ),
    "many chunks": lambda: png(9, 9, extra=chunk(b"abCd", b"") * 2_000_000),
    "many texts": lambda: png(9, 9, extra=chunk(b"tEXt", b"a\0b") * 2_000_000),
    "many pieces": lambda: png(3000, 3000, split=1),
    "notes beside a large one": lambda: png(9000, 8000, extra=chunk(b"eXIf", bytes(58 << 20))),
    "notes behind a large one": lambda: (
        png(9000, 8000)[:-12] + chunk(b"eXIf", bytes(7 << 20)) + chunk(b"IEND", b"")
    ),
    "many notes behind a large one": lambda: (
        png(9000, 8000)[:-12] + chunk(b"prVt", bytes(60_000)) * 8000 + chunk(b"IEND", b"")
    ),
    "SGI": lambda: flat("RGB", 9000, 8000, "SGI"),
    "SGI that fits": lambda: flat("RGB", 9000, 6500, "SGI"),
    "BMP": lambda: flat("RGB", 9000, 8000, "BMP"),
    "EXIF in pieces": lambda: noted(flat("RGB", 10900, 10900, "JPEG"), 15_000),
    "tiles of wavelets": lambda: tiled_wavelets(2040, 8),
    "tiles of wavelets that fit": lambda: tiled_wavelets(512, 8),
    "scans in strips": lambda: stripped(scanned(8000, 1120, 90), 8000, 8960, 8),
    "QOI": lambda: flat("RGB", 1200, 830, "QOI"),
}


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a peak of memory is read from /proc"
)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("kind", LARGE)
def test_large_pictures_stay_small(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(LARGE[kind]())
    said = read_apart(path)
    assert isinstance(said, list) or "\n" not in said


@needs_proc
@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: scanned(1500, 1500, 480), "scans"),
        (lambda: png(6000, 5000, 16, 0), [3000, 2500]),
    ],
)
def test_some_of_them_in_a_process_of_their_own(
    build: Callable[[], bytes], told: Any, tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(build())
    said = read_apart(path)
    assert told in said if isinstance(told, str) else said[0] == told


# ---- what is counted first -----------------------------------------------------------------------

ZIPPED = {"compression": "tiff_adobe_deflate"}
NOISE = photograph(64, 64)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (scanned(8, 8, 600), "in 501 scans: the limit is 500"),
        (scanned(2400, 2400, 190), "in 199 scans: the limit is 500, and 1,100,000,000 pixels"),
        (
            b"\xff\xd8" + b"\xff\xe9\0\2" * 30_000 + flat("L", 8, 8, "JPEG")[2:],
            "more than 20,000 segments",
        ),
        (tagged(encoded(NOISE, "TIFF", **ZIPPED), t257=1000), "in 16 strips, and has 1: it is br"),
        (tagged(encoded(NOISE, "TIFF"), t257=1_500_000), "23,438 strips, and has 1"),
        (tagged(encoded(NOISE, "TIFF", **ZIPPED), t257=999, t278=999), "cannot be read"),
        (tagged(encoded(NOISE, "TIFF"), t257=999, t278=999), "truncated"),
        (counted(encoded(NOISE, "TIFF"), 273, 60_000_000), "60,000,000 numbers in tag 273"),
        (icon(png(3000, 2000)), "one of 3000 x 2000 pixels: the limit is 256 icons of 1024"),
        (wavelets((64, 64), (3000, 2000)), "cannot be read|its content is not"),
        (tiled_wavelets(640, 8), "in 6,400 tiles of 8 x 8 pixels: the limit is 4,096"),
        (stripped(scanned(640, 64, 300), 640, 9600, 150), "goes over its 6,144,000 pixels in too"),
        (noted(flat("RGB", 8, 8, "JPEG"), 900), "its EXIF in more than 64 pieces"),
        (flat("RGB", 1200, 900, "QOI"), "slow to read: the limit is 1,000,000; convert it"),
        (b"P5 1300 900 100\n" + bytes(1300 * 900), "a kind of PPM that is slow to read"),
    ],
)
def test_what_is_counted_before_it_is_decoded(source: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


def test_scans_are_counted_where_they_are() -> None:
    """Not in thumbnails, not behind the end, and only where the decoder goes over them."""
    plain = flat("RGB", 64, 64, "JPEG")
    progressive = flat("RGB", 64, 64, "JPEG", progressive=True)
    assert image_headers.scans(io.BytesIO(plain)) == (1, False)
    count, kept = image_headers.scans(io.BytesIO(progressive))
    assert kept and 6 <= count <= 12
    thumbnail = b"\xff\xe1" + (len(progressive) + 2).to_bytes(2, "big") + progressive
    within = progressive[:2] + thumbnail + progressive[2:] + progressive
    assert image_headers.scans(io.BytesIO(within)) == (count, True)
    for cut in range(2, len(progressive), 7):
        assert image_headers.scans(io.BytesIO(progressive[:cut])).num_scans <= count


def test_a_fax_that_ends_early_is_said() -> None:
    fax = encoded(NOISE.convert("1"), "TIFF", compression="group4")
    picture = read_image(tagged(fax, t257=1000, t278=1000))
    assert picture.notices == ("its last 936 of 1,000 rows are empty: it may have been cut short",)
    assert read_image(fax).notices == ()


@pytest.mark.parametrize("format", ["SPIDER", "MSP", "XBM", "PDF"])
def test_other_formats_are_refused_by_name(format: str) -> None:
    image = Image.new({"SPIDER": "F", "PDF": "L"}.get(format, "1"), (16, 16))
    with pytest.raises((UnsupportedError, InputError), match="not read|none of those") as e:
        read_image(encoded(image, format))
    assert "\n" not in str(e.value)


def test_a_file_that_holds_more_than_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "HEADER_BYTES", 5000)
    with pytest.raises(InputError, match="far more bytes than its picture can need"):
        read_image(png(9, 9, extra=chunk(b"eXIf", bytes(9000))))
    assert read_image(png(9, 9)).size == (9, 9)
    monkeypatch.setattr(image_decoding, "SPARE_BYTES", 5000)
    behind = chunk(b"prVt", bytes(400)) * 20 + chunk(b"IEND", b"")
    assert read_image(png(99, 99)[:-12] + behind[4000:]).size == (99, 99)
    with pytest.raises(InputError, match="far more bytes than its picture can need"):
        read_image(png(99, 99)[:-12] + behind)


def test_time_runs_out_for_many_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "MAX_READ_S", 0.0)
    monkeypatch.setattr(image_decoding, "CLOCKED_READS", 10)
    with pytest.raises(InputError, match="takes too long to read, in over 10 pieces"):
        read_image(png(9, 9, extra=chunk(b"abCd", b"") * 50))


def test_a_large_file_in_honest_pieces_has_the_time_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_decoding, "MAX_READ_S", 0.0)
    monkeypatch.setattr(image_decoding, "CLOCKED_READS", 10)
    noise = Image.frombytes("RGB", (512, 512), np.random.default_rng(0).bytes(3 * 512 * 512))
    assert read_image(encoded(noise, "PNG", compress_level=0)).size == (512, 512)
    assert read_image(png(500, 500)).size == (500, 500)
    with pytest.raises(InputError, match="takes too long to read"):
        read_image(png(500, 500, split=1))


def test_rows_as_they_are_need_no_room_beside_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "WORK_BYTES", 64 * 72 * 4)
    one_strip = {278: 64}
    assert read_image(encoded(NOISE, "TIFF", tiffinfo=one_strip)).size == (64, 64)
    with pytest.raises(InputError, match="in this kind of TIFF"):
        read_image(encoded(NOISE, "TIFF", tiffinfo=one_strip, **ZIPPED))


def test_what_a_decoder_warns_of_is_said_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(*given: Any) -> Any:
        for number in range(1000):
            warnings.warn(f"tag {number} is odd", stacklevel=1)
        return image_decoding.Decoded(Image.new("RGB", (8, 8), "white"), ())

    monkeypatch.setattr("gemelo.inputs.media.image.decode", warns)
    notices = read_image(png(9, 9)).notices
    assert notices[0] == "the decoder warns: tag 0 is odd" and len(notices) == 5
    assert notices[4] == "the decoder has 996 more warnings"


# ---- shrinking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6000, 4000), (4000, 6000), (24_000, 1000), (1000, 24_000)])
def test_up_to_24_megapixels_every_pixel_stays(size: tuple[int, int]) -> None:
    assert shrinking(size) == (1, 1)


@pytest.mark.parametrize(
    "size", [(6001, 4200), (12_000, 10_000), (1, 29_000_000), (119_000_000, 1), (70_000, 500)]
)
def test_a_larger_one_is_shrunk_where_it_is_long(size: tuple[int, int]) -> None:
    across, down = shrinking(size)
    width, height = -(-size[0] // across), -(-size[1] // down)
    assert stored_bytes("RGB", width, height) <= FULL_BYTES // 2
    assert min(width, height) >= min(1792, *size)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_shrunk_by_bands_is_shrunk_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = photograph(203, 97).convert("L")
    if mode in ("I;16", "F"):
        deep = np.asarray(grey).astype(np.uint16) * 257 if mode == "I;16" else np.asarray(grey)
        image = Image.fromarray(deep if mode == "I;16" else deep.astype(np.float32))
    else:
        image = photograph(203, 97).convert(mode)
    if "A" in mode:
        image.putalpha(grey)
    whole = np.asarray(read_image(image).image.reduce((3, 3))).astype(int)
    monkeypatch.setattr(image_colours, "shrinking", lambda size: (3, 3))
    monkeypatch.setattr(image_colours, "BAND_PIXELS", 1300)
    picture = read_image(image)
    assert abs(np.asarray(picture.image) - whole).max() <= (3 if "A" in mode else 0)
    assert picture.notices[-1] == "its 203 x 97 pixels are read as 68 x 33"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "F", "HSV", "LAB"])
def test_bands_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode in ("I;16", "F"):
        image = Image.fromarray(
            np.arange(97 * 203).reshape(97, 203).astype(np.uint16 if mode == "I;16" else "f4")
        )
    elif mode == "LAB":
        image = Image.frombytes("LAB", (203, 97), photograph(203, 97).tobytes())
    else:
        image = photograph(203, 97).convert(mode)
    wanted = np.asarray(read_image(image).image)
    monkeypatch.setattr(image_colours, "BAND_PIXELS", 1000)
    assert np.array_equal(np.asarray(read_image(image).image), wanted)


def test_a_large_jpeg_is_shrunk_by_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "FULL_BYTES", 82_000)
    smooth = photograph(20, 10).resize((400, 200), Image.Resampling.BICUBIC)
    written = encoded(smooth, "JPEG", quality=95)
    picture = read_image(written)
    assert picture.size == (200, 100)
    assert picture.notices == ("its 400 x 200 pixels are read as 200 x 100",)
    wanted = np.asarray(Image.open(io.BytesIO(written)).reduce(2)).astype(int)
    assert abs(np.asarray(picture.image) - wanted).mean() < 2


def test_a_column_is_squeezed_without_a_room_full_of_rows() -> None:
    image = photograph(3, 30_000)
    resized = read_image(image).resized(896)
    assert resized.size == (896, 896)
    wanted = np.asarray(image.resize((896, 896), Image.Resampling.BILINEAR)).astype(int)
    assert abs(np.asarray(resized.image) - wanted).max() <= 1
