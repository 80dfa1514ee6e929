"""Videos: frames at their times, upright; broken files in one line."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media.video import Video, read_video, timestamp
from tests.inputs.bombs import scanned
from tests.inputs.recordings import stamped
from tests.media import SIZE, write_video


def seconds(video: Video) -> list[float]:
    """The times that the frames themselves tell."""
    return [float(np.asarray(frame.picture.image)[40:, 40:].mean()) / 40 for frame in video.frames]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Four seconds and a half."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_video(path, [count / 25 for count in range(113)])


@pytest.mark.parametrize(
    ("fps", "times_s"),
    [(1, [0, 1, 2, 3, 4]), (0.5, [0, 2, 4]), (2, [count / 2 for count in range(9)]), (0.1, [0])],
)
def test_frames_at_their_times(film: bytes, fps: float, times_s: list[float]) -> None:
    video = read_video(film, fps=fps)
    assert [frame.time_s for frame in video.frames] == pytest.approx(times_s, abs=0.05)
    assert seconds(video) == pytest.approx(times_s, abs=0.1)
    assert video.duration_s == pytest.approx(4.5, abs=0.05)
    assert video.frames[0].picture.size == SIZE
    assert not video.has_sound and video.notices == ()


def test_every_frame_there_is(film: bytes) -> None:
    video = read_video(film, fps=60, max_frames=300)
    assert [frame.time_s for frame in video.frames] == pytest.approx(
        [count / 25 for count in range(113)], abs=1e-3
    )


def test_timestamps(film: bytes) -> None:
    assert [f.timestamp for f in read_video(film).frames[:3]] == ["00:00", "00:01", "00:02"]
    assert [f.timestamp for f in read_video(film, fps=2).frames[:2]] == ["00:00.00", "00:00.52"]
    assert [timestamp(t, 1) for t in (0, 59.9999, 61.02, 3600)] == [
        "00:00",
        "01:00",
        "01:01",
        "60:00",
    ]


def test_uneven_times_and_pauses(tmp_path: Path) -> None:
    times_s = [0, 0.2, 0.96, 1.04, 1.2, 5, 5.2, 6.6]
    film = write_video(tmp_path / "film.mkv", times_s)
    assert [f.time_s for f in read_video(film).frames] == pytest.approx([0, 1.04, 5, 6.6], abs=0.01)


def test_squeezed_as_it_comes(film: bytes) -> None:
    whole, square = read_video(film).frames[2], read_video(film, image_size=32).frames[2]
    assert square.picture.size == (32, 32)
    wanted = np.asarray(whole.picture.resized(32).image)
    assert np.array_equal(np.asarray(square.picture.image), wanted)


@pytest.mark.parametrize(
    ("turn", "matrix", "corner"),
    [
        ("90 clockwise", (0, 1, -1, 0), (40, 5)),
        ("180", (-1, 0, 0, -1), (60, 40)),
        ("90 counter-clockwise", (0, -1, 1, 0), (5, 60)),
    ],
)
def test_upright(film: bytes, turn: str, matrix: tuple[int, ...], corner: tuple[int, int]) -> None:
    """The red corner, at the top left of what is stored, is where the matrix takes it."""
    turned = bytearray(film)
    at = turned.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (value * 65536 for value in matrix)
    turned[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    picture = read_video(bytes(turned)).frames[0].picture
    assert picture.size == (SIZE if turn == "180" else SIZE[::-1])
    red, _, blue = np.asarray(picture.image)[corner[1], corner[0]]
    assert red > 150 and blue < 100


@pytest.mark.parametrize(
    ("fps", "max_frames", "reason"),
    [
        (1, 4, "lasts 00:04: at fps = 1 that is more than max_frames = 4; take a lower fps"),
        (0, 4, "fps is 0: give frames a second"),
        (float("nan"), 4, "fps is nan"),
        (float("inf"), 4, "fps is inf"),
        (1, 0, "max_frames is 0"),
    ],
)
def test_too_many_frames(film: bytes, fps: float, max_frames: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_video(film, fps=fps, max_frames=max_frames)


def test_too_many_frames_without_a_header_that_says_so(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.m4v", [n / 25 for n in range(60)], format="m4v")
    with pytest.raises(
        InputError, match="goes on at 00:00: at fps = 5 that is more than max_frames = 1"
    ):
        read_video(film, max_frames=1, fps=5)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda film: b"", "the video is empty: it has 0 bytes"),
        (lambda film: b"nonsense" * 50, "cannot be read"),
        (lambda film: film[:300], "cannot be read"),
        (lambda film: film[: film.index(b"mdat") + 4] + bytes(len(film)), "cannot be read"),
    ],
)
def test_broken_videos_in_one_line(
    film: bytes, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_video(spoil(film))
    assert "\n" not in str(caught.value)


def test_a_recording_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
    with pytest.raises(InputError, match="only sound: give a video"):
        read_video(path)


def test_a_lost_end_is_said(tmp_path: Path) -> None:
    film = write_video(tmp_path / "f.mp4", [count / 25 for count in range(150)], index_first=True)
    video = read_video(film[: film.index(b"mdat") + (len(film) - film.index(b"mdat")) // 2])
    assert 2 <= len(video.frames) < 5
    assert "though its header says it lasts 00:06" in video.notices[-1]


def test_broken_packets_are_said(film: bytes) -> None:
    start = film.index(b"mdat") + 4
    spoilt = bytearray(film)
    spoilt[start + 2000 : start + 2400] = bytes(400)
    notices = read_video(bytes(spoilt)).notices
    assert len(notices) == 1 and "packets of it are broken and were left out" in notices[0]


def test_damaged_videos_end_in_a_video_or_one_line(
    film: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(3)
    for _ in range(40):
        damaged = bytearray(film)
        for place in random.integers(0, len(film), 30):
            damaged[place] = random.integers(256)
        try:
            read_video(bytes(damaged))
        except GemeloError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
def test_pictures_that_begin_after_the_sound(container: str) -> None:
    """A frame's time is when a player shows it, beside the sound that is heard then."""
    film = stamped(container, "aac", pictures=(1.5, 4.5), num_packets=250)
    video = read_video(film)
    assert [frame.time_s for frame in video.frames] == pytest.approx([1.5, 2.5, 3.5], abs=0.03)
    assert [frame.timestamp for frame in video.frames] == ["00:01", "00:02", "00:03"]
    assert 4.4 < video.duration_s < 5.1 and video.notices == ()  # to the end of the sound, or less
    together = read_video(stamped(container, "aac", pictures=(0, 3), num_packets=150))
    assert [frame.time_s for frame in together.frames] == pytest.approx([0, 1, 2], abs=0.03)
    late = stamped(container, "aac", pictures=(0, 3), late_s=lambda number: 1.0, num_packets=150)
    assert [frame.time_s for frame in read_video(late).frames] == pytest.approx([0, 1, 2], abs=0.03)


def test_decoders_of_large_frames_keep_few(film: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter(range(0, 10_000_000_000, 40_000_000))
    monkeypatch.setattr("gemelo.inputs.media.video._resident_bytes", lambda: next(taken))
    assert len(read_video(film).frames) == 5
    monkeypatch.setattr("gemelo.inputs.media.video.LARGE_PIXELS", 1000)
    with pytest.raises(InputError, match="frames of 64 x 48 pixels, of which its coding keeps"):
        read_video(film)


@pytest.mark.parametrize(("num_scans", "is_read"), [(0, True), (2_000, False)])
def test_scans_of_moving_jpegs_are_counted(num_scans: int, is_read: bool) -> None:
    picture = scanned(1600, 1600, num_scans)
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = cast(Any, container.add_stream("mjpeg", rate=1))
        stream.width, stream.height, stream.pix_fmt = 1600, 1600, "yuvj420p"
        for number in range(2):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = stream, Fraction(1, 1)
            packet.pts = packet.dts = number
            container.mux(packet)
    if is_read:
        assert len(read_video(file.getvalue(), image_size=64).frames) == 2
    else:
        with pytest.raises(InputError, match="thousand million pixels"):
            read_video(file.getvalue(), image_size=64)
