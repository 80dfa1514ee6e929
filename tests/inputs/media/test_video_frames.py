"""Frames of videos: all ways up, times that begin or jump anywhere, shapes, and their number."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import pytest
from PIL import Image

from gemelo.errors import InputError
from gemelo.inputs.media import video as module
from gemelo.inputs.media.video import Video, read_video
from gemelo.inputs.media.video_frames import Clock, FrameScaler

SIZE = (64, 48)
RATE = 10
MILLISECOND = Fraction(1, 1000)


def film(
    times_ms: Sequence[int],
    *,
    format: str = "mp4",
    codec: str = "mpeg4",
    size: tuple[int, int] = SIZE,
    aspect: Fraction = Fraction(1),
    grey: int | None = None,
    **options: str,
) -> bytes:
    """A video whose frames are at these times, with a bright corner at the top left."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = cast(Any, container.add_stream(codec, rate=RATE, options=options))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = MILLISECOND
        stream.sample_aspect_ratio = aspect
        for number, time_ms in enumerate(times_ms):
            level = 40 + number * 4 % 80 if grey is None else grey
            shade = np.full((size[1], size[0], 3), level, np.uint8)
            if grey is None:
                shade[: size[1] // 4, : size[0] // 3] = 250
            frame = av.VideoFrame.from_ndarray(shade, format="rgb24")
            frame.pts, frame.time_base = time_ms, MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def steady(start_ms: int = 0, count: int = 20) -> list[int]:
    return [start_ms + 100 * n for n in range(count)]


def times(video: Video) -> list[float]:
    return [frame.time_s for frame in video.frames]


def turned(plain: bytes, matrix: tuple[float, float, float, float]) -> bytes:
    """The same video with another matrix in its track's header."""
    changed = bytearray(plain)
    at = changed.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (round(value * 65536) for value in matrix)
    changed[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(changed)


# ---- the way up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), "top left"),
        ((-1, 0, 0, 1), "top right"),
        ((1, 0, 0, -1), "bottom left"),
        ((-1, 0, 0, -1), "bottom right"),
        ((0, 1, 1, 0), "top left"),
        ((0, 1, -1, 0), "top right"),
        ((0, -1, 1, 0), "bottom left"),
        ((0, -1, -1, 0), "bottom right"),
    ],
)
@pytest.mark.parametrize("image_size", [None, 40])
def test_all_eight_ways_up(
    matrix: tuple[int, int, int, int], corner: str, image_size: int | None
) -> None:
    """A matrix takes (x, y) to (ax + cy, bx + dy): where it takes the corner is where it is."""
    video = read_video(turned(film(steady()), matrix), image_size=image_size)
    picture = video.frames[0].picture
    lying = matrix[0] == 0
    assert picture.size == ((40, 40) if image_size else (SIZE[::-1] if lying else SIZE))
    shade = np.asarray(picture.image)[..., 0].astype(int)
    rows, columns = np.nonzero(shade > 200)
    below, beside = rows.mean() > shade.shape[0] / 2, columns.mean() > shade.shape[1] / 2
    assert corner == f"{'bottom' if below else 'top'} {'right' if beside else 'left'}"
    # What was wide stays wide only if nothing was turned by a quarter.
    wide, high = (np.ptp(columns) + 1) / shade.shape[1], (np.ptp(rows) + 1) / shade.shape[0]
    assert bool(wide < high) is lying
    assert video.notices == ()


def test_turned_by_less_than_a_right_angle_is_said() -> None:
    cos, sin = 0.94, 0.34
    video = read_video(turned(film(steady()), (cos, sin, -sin, cos)))
    assert video.frames[0].picture.size == SIZE
    assert video.notices == (
        "it is to be turned by less than a right angle: the nearest one is shown",
    )


# ---- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "codec", "start_ms"),
    [
        ("matroska", "mpeg4", 5000),
        ("matroska", "libx264", 7_200_000),
        ("webm", "libvpx", 2000),
        ("mp4", "mpeg4", 5000),
        ("mp4", "libx264", 3000),
        ("mov", "mpeg4", 90_000),
        ("mpegts", "libx264", 36_000_000),
        ("mpegts", "libx264", 95_443_000),  # 33 bits of a clock run over in the middle
        ("nut", "mpeg4", 4000),
    ],
)
def test_a_video_that_begins_late_is_counted_from_its_first_frame(
    format: str, codec: str, start_ms: int
) -> None:
    written = film(steady(start_ms), format=format, codec=codec)
    video = read_video(written)
    assert times(video) == pytest.approx([0, 1], abs=0.11)
    assert [frame.timestamp for frame in video.frames] == ["00:00", "00:01"]
    assert video.duration_s == pytest.approx(2, abs=0.3) and video.notices == ()
    every = read_video(written, fps=RATE, max_frames=25)
    assert times(every) == pytest.approx([n / 10 for n in range(len(every.frames))], abs=0.01)
    assert len(every.frames) >= 19  # MPEG-TS may lose one to the encoder's delay
    with pytest.raises(InputError, match="more than max_frames = 5"):
        read_video(written, fps=RATE, max_frames=5)


def test_a_late_video_that_has_lost_its_end_says_so() -> None:
    written = film(steady(5000, 100), format="matroska", codec="mpeg4", g="5")
    notices = read_video(written[: len(written) // 2]).notices
    assert any("though its header says it lasts 00:10" in notice for notice in notices)


class Stamped:
    """A frame of which only the time matters."""

    def __init__(self, time_s: float | None) -> None:
        self.pts = None if time_s is None else round(time_s * 1000)
        self.time = time_s


@pytest.mark.parametrize(
    ("stamps_s", "wanted_s", "num_restarts"),
    [
        ([5.0, 5.5, 6.0], [0, 0.5, 1], 0),
        ([-0.5, 0.0, 0.5], [0, 0.5, 1], 0),
        ([None, None, None], [0, 0.5, 1], 0),
        ([None, 90.5, 91.0], [0, 0.5, 1], 0),
        ([3.0, None, None, 4.5], [0, 0.5, 1, 1.5], 0),
        ([0.0, 0.5, 0.4, 1.0], [0, 0.5, 0.4, 1], 0),
        ([8.0, 8.5, 0.0, 0.5], [0, 0.5, 1, 1.5], 1),
        ([8.0, 8.5, 0.0, 0.5, -7.0], [0, 0.5, 1, 1.5, 2], 2),
    ],
)
def test_a_clock_over_any_stamps(
    stamps_s: list[float | None], wanted_s: list[float], num_restarts: int
) -> None:
    clock = Clock(rate=2)
    seen_s = [clock.time_s(cast(Any, Stamped(stamp_s))) for stamp_s in stamps_s]
    assert seen_s == pytest.approx(wanted_s) and clock.num_restarts == num_restarts
    assert clock.end_s == pytest.approx(max(wanted_s) + 0.5)


def test_times_that_begin_anew_are_counted_on_and_it_is_said() -> None:
    """Two broadcasts, one behind the other."""
    parts = [film(steady(s, 15), format="mpegts", codec="libx264") for s in (50_000, 2000)]
    video = read_video(b"".join(parts))
    assert times(video) == pytest.approx([0, 1, 2], abs=0.25)
    assert "its times go back 1 times" in video.notices[-1]


# ---- shapes and bounds ---------------------------------------------------------------------------


def test_pixels_that_are_not_square() -> None:
    written = film(steady(), aspect=Fraction(4, 3))
    assert read_video(written).frames[0].picture.size == (85, 48)
    assert read_video(written, image_size=32).frames[0].picture.size == (32, 32)


def test_large_frames_are_shrunk_before_they_are_squeezed() -> None:
    assert FrameScaler(image_size=768).size(1920, 1080) == (1920, 1080)
    assert FrameScaler(image_size=768).size(7680, 4320) == (768, 768)
    assert FrameScaler(image_size=768).size(700, 4320) == (700, 768)
    width, height = FrameScaler(None, 2_100_000).size(7680, 4320)
    assert width * height <= 2_100_000 and width / height == pytest.approx(16 / 9, abs=0.01)
    assert FrameScaler(None, 10_000).size(1, 36_000_000) == (1, 10_000)


def test_frames_that_are_kept_whole_share_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 3 * 4 * 48 * 36)
    video = read_video(film(steady()))
    assert video.frames[0].picture.size == (48, 36)
    assert "frames of 64 x 48 pixels are kept as 48 x 36" in video.notices[0]
    assert read_video(film(steady()), image_size=64).notices == ()


def test_more_pixels_than_a_file_of_its_length_are_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STILL_DECODED", 19 * 64 * 48)
    monkeypatch.setattr(module, "PIXELS_A_BYTE", 0)
    monkeypatch.setattr(module, "FRAME_PIXELS", 0)
    for format, codec in (("mp4", "mpeg4"), ("m4v", "mpeg4")):  # the second has no header
        with pytest.raises(InputError, match="of a file of its length: give a part of it"):
            read_video(film(steady(), format=format, codec=codec))


def test_a_video_of_the_night_is_said_to_be_black() -> None:
    assert read_video(film(steady(), grey=0)).notices == (
        "it is nearly black: its brightest value is 0 of 255",
    )
    assert read_video(film(steady(), grey=60)).notices == ()


def test_a_squeezed_frame_is_the_picture_of_a_whole_one() -> None:
    written = film(steady(), size=(320, 200))
    whole, square = read_video(written).frames[1], read_video(written, image_size=64).frames[1]
    wanted = whole.picture.image.resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(square.picture.image), np.asarray(wanted))
