"""Video: frames at a steady rate with the time of each, upright, as pictures.

Gemma takes a video as pictures, one a second unless asked otherwise, and its sound as a recording.
Any container that PyAV reads will do. It is read from the one file given: formats that are lists of
other files (playlists, sets of segments, session descriptions) are refused, and the library
underneath is allowed no protocol with which it could open a file or a connection by itself.

    video = read_video("walk.mp4", fps=1.0, side=768)
    [frame.timestamp for frame in video.frames]    # ["00:00", "00:01", "00:02"]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemelo.errors import InputError
from gemelo.inputs.container import Amiss, decoded, open_container
from gemelo.inputs.image import Picture
from gemelo.inputs.media import Source, name_of

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

MAX_FRAMES = 120  # two minutes at one a second; with 256 tokens each, nearly all of 32,768
MAX_FPS = 60.0
MAX_PIXELS = 36_000_000  # of a frame: 8K fits
LATE_S = 1e-3  # how far a frame may come before its turn: containers round times to milliseconds
MISSING_S = 2.0  # a video that ends this much before its header says has lost its end


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture and when it is seen, in seconds from the first; timestamp as a prompt says it."""

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
    source: Source, *, fps: float = 1.0, max_frames: int = MAX_FRAMES, side: int | None = None
) -> Video:
    """The first frame and then `fps` frames a second of a video, in a path, bytes or open file.

    side: squeeze each frame into a square of so many pixels as it comes, which is how the towers
    see it; without it they keep their size, and memory holds all of them at 4 bytes a pixel.
    Raises InputError for a file without moving pictures, a broken one, or one of more than
    max_frames at this rate; UnsupportedError for a remote URL.
    """
    _check_rate(fps, max_frames)
    name = name_of(source, "video")
    with open_container(source, "video") as container:
        stream = _moving_pictures(name, container)
        duration_s = _duration_s(container, stream)
        _check_count(name, duration_s, fps, max_frames)
        amiss: Counter[Amiss] = Counter()
        frames: list[Frame] = []
        for time_s, frame in _sampled(container, stream, fps, amiss):
            if len(frames) == max_frames:
                raise _too_many(name, f"goes on at {timestamp(time_s, 1)}", fps, max_frames)
            frames.append(Frame(time_s, timestamp(time_s, fps), _picture(name, frame, side)))
        if not frames:
            raise InputError(f"{name} has no frame that can be decoded: it is broken or empty")
        notices = _notices(amiss, frames[-1].time_s, duration_s, fps)
        return Video(tuple(frames), duration_s, bool(container.streams.audio), notices)


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
        stream.thread_type = "AUTO"
        return stream
    kind = "only sound" if container.streams.audio else "no video stream"
    raise InputError(f"{name} has {kind}: give a video, or pass it as a recording")


def _duration_s(container: InputContainer, stream: VideoStream) -> float:
    """What the header says, 0 where it says nothing."""
    if stream.duration is not None and stream.time_base is not None:
        return max(0.0, float(stream.duration * stream.time_base))
    return max(0.0, (container.duration or 0) / 1e6)


def _notices(
    amiss: Counter[Amiss], last_s: float, duration_s: float, fps: float
) -> tuple[str, ...]:
    notices = []
    if amiss["packet"]:
        notices.append(f"{amiss['packet']} packets of it are broken and were left out")
    if amiss["end"]:
        notices.append(f"it is broken after {timestamp(last_s, 1)}: the rest was left out")
    if duration_s - last_s > max(MISSING_S, 2 / fps):
        notices.append(
            f"its last frame is at {timestamp(last_s, 1)}, "
            f"though its header says it lasts {timestamp(duration_s, 1)}"
        )
    return tuple(notices)


# ---- frames --------------------------------------------------------------------------------------


def _sampled(
    container: InputContainer, stream: VideoStream, fps: float, amiss: Counter[Amiss]
) -> Iterator[tuple[float, VideoFrame]]:
    """The first frame, and of each 1/fps seconds after it the first that there is."""
    first_s: float | None = None
    due = 0  # frames so far, had there been one each time
    for count, frame in enumerate(decoded(container, stream, amiss)):
        at_s = frame.time if frame.pts is not None else count / float(stream.average_rate or 25)
        first_s = at_s if first_s is None else first_s
        time_s = at_s - first_s
        if (time_s + LATE_S) * fps >= due:
            yield max(0.0, time_s), frame
            due = math.floor((time_s + LATE_S) * fps) + 1


def _picture(name: str, frame: VideoFrame, side: int | None) -> Picture:
    """In RGB, turned as the container says."""
    from PIL import Image
    from PIL.Image import Transpose

    if frame.width * frame.height > MAX_PIXELS:
        raise InputError(f"{name} has a frame of {frame.width} x {frame.height} pixels")
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turns = {90: Transpose.ROTATE_90, 180: Transpose.ROTATE_180, 270: Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation / 90) * 90 % 360)
    picture = Picture(image if turn is None else image.transpose(turn))
    return picture if side is None else picture.squeezed(side)
