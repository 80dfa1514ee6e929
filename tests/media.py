"""Videos and recordings as the bytes of files, and a pipe that cannot be sought."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from gemelo.inputs.media.audio_channels import Floats

SIZE = (64, 48)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def write_video(
    path: Path,
    times_s: Iterable[float],
    *,
    format: str | None = None,
    codec: str = "mpeg4",
    index_first: bool = False,
) -> bytes:
    """A film in which the grey of a frame says its time: 40 levels a second."""
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", format=format, options=options) as container:
        stream = cast(Any, container.add_stream(codec, rate=25))
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for time_s in times_s:
            grey = np.full((SIZE[1], SIZE[0], 3), round(time_s * 40) % 256, np.uint8)
            grey[:24, :32, 0] = 255
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(time_s * 25), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def tone(hertz: float, rate: int, seconds: float = 1.0) -> Floats:
    time_s = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def recording(
    channels: list[Floats], rate: int, container: str = "wav", codec: str = "pcm_s16le"
) -> bytes:
    """The bytes of a file with these channels."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=LAYOUTS[len(channels)])
        for start in range(0, len(channels[0]), 4000):
            block = np.stack([channel[start : start + 4000] for channel in channels])
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(block), "fltp", LAYOUTS[len(channels)]
            )
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def film() -> bytes:
    """A picture with a sound track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        picture, sound = out.add_stream("mpeg4", rate=5), out.add_stream("aac", rate=44100)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        sound.layout = "mono"
        for _ in range(5):
            grey = np.zeros((32, 32, 3), np.uint8)
            out.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(tone(440, 44100)[None], "fltp", "mono")
        frame.sample_rate, frame.pts = 44100, 0
        out.mux(sound.encode(frame))
        out.mux(picture.encode())
        out.mux(sound.encode())
    return file.getvalue()


class Pipe(io.RawIOBase):
    """What cannot be sought, and tells how much of it was read."""

    def __init__(self, held: bytes) -> None:
        self.held, self.num_read = held, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        piece = self.held[self.num_read : self.num_read + len(buffer)]
        buffer[: len(piece)] = piece
        self.num_read += len(piece)
        return len(piece)
