"""Video loading: frames sampled at a fixed rate with their timestamps, as pictures.

Gemma takes a video as pictures, one a second unless asked otherwise, and its sound as a recording.
Any container that PyAV reads will do. It is read from the one file given: formats that are lists of
other files (playlists, sets of segments, session descriptions) are refused, and the library
underneath is allowed no protocol with which it could open a file or a connection by itself.

    video = read_video("walk.mp4", fps=1.0, image_size=768)
    [frame.timestamp for frame in video.frames]    # ["00:00", "00:01", "00:02"]
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemelo.errors import InputError
from gemelo.inputs.media.container import Corruption, decode_frames, open_container
from gemelo.inputs.media.image import Picture
from gemelo.inputs.media.image_colours import NEARLY_BLACK, brightest
from gemelo.inputs.media.parts import Source, name_of
from gemelo.inputs.media.video_frames import Clock, DisplayMatrix, FrameScaler, is_askew, picture

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

MAX_FRAMES = 120  # two minutes at one a second; with 256 tokens each, nearly all of 32,768
MAX_FPS = 60.0
MAX_PIXELS = 36_000_000  # of a frame: 8K fits
THREADED_PIXELS = 16_000_000  # of the frames that threads decode at once
KEPT_BYTES = 192_000_000  # of all frames, where they are not resized
MAX_DECODED = 32_000_000_000  # pixels of all frames: two minutes of 4K
STILL_DECODED, PIXELS_A_BYTE = 5_000_000_000, 4000  # of an empty file, and for each byte
LARGE_PIXELS = 10_000_000  # of a frame that is more than 4K
LARGE_BYTES = 300_000_000  # of all that such frames take: a decoder may hold 17 at once
SCAN = b"\xff\xda"  # the marker of a JPEG before each
FRAME_PIXELS = 100_000  # what a frame takes beside its own
LATE_S = 1e-3  # how far a frame may come before its turn: containers round times to milliseconds
MISSING_S = 2.0  # a video that ends this much before its header says has lost its end


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture and when a player shows it, in seconds; timestamp as a prompt says it."""

    time_s: float
    timestamp: str
    picture: Picture


@dataclass(frozen=True, eq=False)
class Video:
    """Frames in order; duration_s is 0 where nobody says it; notices: sentences on what is amiss.

    has_sound: whether there is a sound track to be read as a recording.
    """

    frames: tuple[Frame, ...]
    duration_s: float
    has_sound: bool
    notices: tuple[str, ...] = ()


def read_video(
    source: Source, *, fps: float = 1.0, max_frames: int = MAX_FRAMES, image_size: int | None = None
) -> Video:
    """The first frame and then `fps` frames a second of a video, in a path, bytes or open file.

    image_size: resize each frame to a square of so many pixels as it comes, as the vision tower
    takes it; without it they keep their size and the shape of their pixels, as far as KEPT_BYTES
    reach for all of them. Raises InputError for a file without moving pictures, a broken one, one
    of more than max_frames at this rate, or of more pixels than are decoded for a file of its
    length; UnsupportedError for a remote URL.
    """
    _check_rate(fps, max_frames)
    name = name_of(source, "video")
    with open_container(source, "video") as container:
        stream = _moving_pictures(name, container)
        declared_s = _duration_s(container, stream)
        _check_count(name, declared_s, fps, max_frames)
        expected = min(max_frames, int(declared_s * fps) + 1) if declared_s else max_frames
        scaler = _scaler(stream, image_size, expected)
        begins = container.start_time
        clock = Clock(float(stream.average_rate or 25), None if begins is None else begins / 1e6)
        corruptions: Counter[Corruption] = Counter()
        taken = _Taken(name, scaler, fps, max_frames)
        for time_s, frame in _sampled(_bounded(name, container, stream, corruptions), clock, fps):
            taken.add(time_s, frame)
        if not taken.frames:
            raise InputError(f"{name} has no frame that can be decoded: it is broken or empty")
        duration_s = max(clock.first_s + declared_s, clock.end_s) if declared_s else 0.0
        notices = _notices(corruptions, taken.frames[-1].time_s, duration_s, fps)
        notices += (*_of_times(clock), *taken.notices())
        return Video(tuple(taken.frames), duration_s, bool(container.streams.audio), notices)


def timestamp(time_s: float, fps: float) -> str:
    """mm:ss, as the family's later processors write it; with hundredths at over one frame a second.

    Minutes go on past 59.
    """
    hundredths = int(time_s * 100 + 0.5)
    minutes, rest = divmod(hundredths, 6000)
    fine = f".{rest % 100:02d}" if fps > 1 else ""
    return f"{minutes:02d}:{rest // 100:02d}{fine}"


# ---- checks --------------------------------------------------------------------------------------


def _check_rate(fps: float, max_frames: int) -> None:
    if not isinstance(fps, int | float) or not 0 < fps <= MAX_FPS:
        raise InputError(f"fps is {fps!r}: give frames a second, above 0 and up to {MAX_FPS:g}")
    if not isinstance(max_frames, int) or max_frames < 1:
        raise InputError(f"max_frames is {max_frames!r}: give a whole number from 1 up")


def _check_count(name: str, duration_s: float, fps: float, max_frames: int) -> None:
    """Refuse what the header already says is too long, before anything is decoded."""
    if (duration_s - LATE_S) * fps > max_frames:
        raise _too_many(name, f"lasts {timestamp(duration_s, 1)}", fps, max_frames)


def _too_many(name: str, what: str, fps: float, max_frames: int) -> InputError:
    return InputError(
        f"{name} {what}: at fps = {fps:g} that is more than max_frames = {max_frames}; "
        "take a lower fps, a higher max_frames or a part of the video"
    )


def _moving_pictures(name: str, container: InputContainer) -> VideoStream:
    """The first stream that is a video, and no cover of an album."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise InputError(f"{name} is in a video codec that is not known here")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{name} is {width} x {height} pixels a frame: the limit is {MAX_PIXELS:,} in all"
            )
        # Frames may grow later on; the decoder keeps to the limit by itself.
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.thread_type = "AUTO"  # every thread holds frames of its own
        stream.codec_context.thread_count = max(1, min(8, THREADED_PIXELS // (width * height or 1)))
        return stream
    contents = "only sound" if container.streams.audio else "no video stream"
    raise InputError(f"{name} has {contents}: give a video, or pass it as a recording")


def _duration_s(container: InputContainer, stream: VideoStream) -> float:
    """What the header says, from the first frame on; 0 where it says nothing.

    A stream's own duration is its length. A container's is the time at its end, which in Matroska
    counts from 0, wherever the frames begin; `read_video` takes a longer one if frames go on.
    """
    base = stream.time_base
    if stream.duration is not None and base is not None:
        return max(0.0, float(stream.duration * base))
    end_s = (container.duration or 0) / 1e6
    begin_s = (container.start_time or 0) / 1e6
    if stream.start_time is not None and base is not None:
        begin_s = float(stream.start_time * base)
    return end_s - begin_s if 0 < begin_s < end_s else max(0.0, end_s)


def _scaler(stream: VideoStream, image_size: int | None, expected: int) -> FrameScaler:
    if image_size is not None:
        return FrameScaler(image_size)
    most = min(LARGE_PIXELS, KEPT_BYTES // (4 * expected))
    return FrameScaler(None, most, stream.sample_aspect_ratio)


def _notices(
    corruptions: Counter[Corruption], last_s: float, duration_s: float, fps: float
) -> tuple[str, ...]:
    notices = []
    if corruptions["packet"]:
        notices.append(f"{corruptions['packet']} packets of it are broken and were left out")
    if corruptions["end"]:
        notices.append(f"it is broken after {timestamp(last_s, 1)}: the rest was left out")
    if duration_s - last_s > max(MISSING_S, 2 / fps):
        notices.append(
            f"its last frame is at {timestamp(last_s, 1)}, "
            f"though its header says it lasts {timestamp(duration_s, 1)}"
        )
    return tuple(notices)


def _of_times(clock: Clock) -> tuple[str, ...]:
    if not clock.num_restarts:
        return ()
    return (f"its times go back {clock.num_restarts} times: they are counted on from there",)


# ---- frames --------------------------------------------------------------------------------------


class _Taken:
    """The frames that are kept, within their number and their bytes."""

    def __init__(self, name: str, scaler: FrameScaler, fps: float, max_frames: int) -> None:
        self.name, self.scaler, self.fps, self.max_frames = name, scaler, fps, max_frames
        self.display_matrix, self.frames = DisplayMatrix(), list[Frame]()
        self.num_bytes, self.brightest = 0, 0
        self.askew = False
        self.full: tuple[int, int] | None = None

    def add(self, time_s: float, frame: VideoFrame) -> None:
        """Keep a frame. Raises InputError for one too many."""
        if len(self.frames) == self.max_frames:
            what = f"goes on at {timestamp(time_s, 1)}"
            raise _too_many(self.name, what, self.fps, self.max_frames)
        matrix = self.display_matrix.matrix(frame)
        shown = picture(frame, matrix, self.scaler)
        self.num_bytes += 4 * shown.size[0] * shown.size[1]
        if self.scaler.image_size is None and self.num_bytes > 2 * KEPT_BYTES:
            raise InputError(
                f"{self.name} has more frames than its header says, and they fill "
                f"{self.num_bytes / 1e6:,.0f} MB: give an image_size, or a lower fps"
            )
        self.frames.append(Frame(time_s, timestamp(time_s, self.fps), shown))
        self.brightest = max(self.brightest, brightest(shown.image))
        self.askew = self.askew or is_askew(matrix)
        if frame.width * frame.height > self.scaler.most_pixels and self.scaler.image_size is None:
            self.full = (frame.width, frame.height)

    def notices(self) -> list[str]:
        """What there is to say about them."""
        notices = []
        if self.full is not None:
            width, height = self.frames[0].picture.size
            notices.append(
                f"its frames of {self.full[0]} x {self.full[1]} pixels are kept as "
                f"{width} x {height}, so that all of them fit"
            )
        if self.askew:
            notices.append(
                "it is to be turned by less than a right angle: the nearest one is shown"
            )
        if self.brightest < NEARLY_BLACK:
            notices.append(f"it is nearly black: its brightest value is {self.brightest} of 255")
        return notices


def _bounded(
    name: str, container: InputContainer, stream: VideoStream, corruptions: Counter[Corruption]
) -> Iterator[VideoFrame]:
    """Every frame, until more pixels are decoded than a file of its length is given.

    What a camera films takes bytes; a still that is repeated takes none, and as many pixels.
    """
    most = min(MAX_DECODED, STILL_DECODED + PIXELS_A_BYTE * max(0, container.size))
    codec, spent, begun_bytes = stream.codec_context, 0.0, _resident_bytes()

    def spend(pixels: float) -> None:
        nonlocal spent
        spent += pixels
        if spent > most:
            raise _too_long(name, spent, most)

    def count_scans(
        packet: Packet[VideoStream],
    ) -> None:  # a JPEG may go over its picture again and again
        if "jpeg" in codec.name:
            spend(max(0, bytes(packet).count(SCAN) - 1) * codec.width * codec.height)

    seconds_s = _duration_s(container, stream)
    spend(seconds_s * float(stream.average_rate or 0) * (codec.width * codec.height + FRAME_PIXELS))
    spent = 0.0
    for frame in decode_frames(container, stream, corruptions, on_packet=count_scans):
        area = frame.width * frame.height
        if area > MAX_PIXELS:
            raise InputError(f"{name} has a frame of {frame.width} x {frame.height} pixels")
        if area > LARGE_PIXELS and _resident_bytes() - begun_bytes > LARGE_BYTES:
            raise InputError(
                f"{name} has frames of {frame.width} x {frame.height} pixels, of which its coding "
                f"keeps more than fit in {LARGE_BYTES / 1e6:,.0f} MB: make the picture smaller"
            )
        spend(area + FRAME_PIXELS)
        yield frame


def _resident_bytes() -> int:
    """What this process has in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _too_long(name: str, total: float, most: float) -> InputError:
    return InputError(
        f"{name} has {total / 1e9:,.1f} thousand million pixels in all its frames, and at most "
        f"{most / 1e9:,.1f} are decoded of a file of its length: give a part of it, a smaller "
        "picture or fewer frames a second"
    )


def _sampled(
    frames: Iterable[VideoFrame], clock: Clock, fps: float
) -> Iterator[tuple[float, VideoFrame]]:
    """The first frame, and of each 1/fps seconds after it the first that there is."""
    due = 0  # frames so far, had there been one each time
    for frame in frames:
        time_s = clock.time_s(frame)
        turn = (time_s - clock.first_s + LATE_S) * fps
        if turn >= due:
            yield time_s, frame
            due = math.floor(turn) + 1
