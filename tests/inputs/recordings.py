"""Recordings made for the tests: any number of channels, any stamps, and readers in a child."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from gemelo.inputs.media.audio_channels import Floats

LAYOUTS = {3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1", 16: "hexadecagonal"}
LOW = 3  # the channel of the layouts from 5.1 on that carries nothing above 120 Hz
READER = """
import json, sys
from pathlib import Path
from gemelo.errors import GemeloError
from gemelo.inputs.media.audio import read_audio

for path in sys.argv[1:]:
    Path(path + ".said").write_text(json.dumps(["crash", []]))
    try:
        for _ in range(2):  # what was freed twice is often found out later
            samples = read_audio(path)
        samples.values.tofile(path + ".heard")
        said = ["ok", samples.notices]
    except GemeloError as error:
        said = [type(error).__name__, [str(error)]]
    Path(path + ".said").write_text(json.dumps(said))
"""


def hertz(channel: int, channels: int) -> float:
    """The tone of a channel."""
    return 80.0 if channels > 5 and channel == LOW else 300.0 + 70.0 * channel


def voices(channels: int, rate: int, length_s: float = 0.5) -> Floats:
    """A tone of its own for every channel (C, N)."""
    time_s = np.arange(round(rate * length_s)) / rate
    tones = [np.sin(2 * np.pi * hertz(c, channels) * time_s + c) for c in range(channels)]
    return (0.4 * np.stack(tones)).astype(np.float32)


def encoded(
    sound: Floats, rate: int, container: str, codec: str, layout: str | None = None
) -> bytes:
    """The bytes of a file with these channels (C, N)."""
    count = len(sound)
    named = layout or {1: "mono", 2: "stereo"}.get(count) or LAYOUTS.get(count, f"{count}C")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate, layout=named)
        for start in range(0, sound.shape[1], 4000):
            packed = np.ascontiguousarray(sound[:, start : start + 4000].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, "flt", named)
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def stamped(
    container: str,
    codec: str,
    *,
    late_s: Callable[[int], float] = lambda number: 0.0,
    kept: Callable[[int], bool] = lambda number: True,
    pictures: tuple[float, float] | None = None,
    num_packets: int = 100,
) -> bytes:
    """A tone in packets of 20 ms or so, of which some are kept, at a time of their own; with
    pictures, a film whose frames are seen from and until a time."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=48000, layout="mono")
        film: Any = None
        if pictures is not None:
            film = out.add_stream("mpeg4", rate=10)
            film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        packets = []
        for number in range(num_packets):
            tone = 0.5 * np.sin(2 * np.pi * 440 / 48000 * (np.arange(960) + 960 * number))
            frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], "flt", "mono")
            frame.sample_rate, frame.pts = 48000, 960 * number
            packets += stream.encode(frame)
        packets += stream.encode(None)
        timed = []
        for number, packet in enumerate(packets):
            packet.pts += round(late_s(number) / packet.time_base)
            packet.dts = packet.pts
            timed += [(float(packet.pts * packet.time_base), packet)] if kept(number) else []
        if pictures is not None:
            for number in range(round(pictures[0] * 10), round(pictures[1] * 10)):
                grey = np.full((32, 32, 3), number % 255, np.uint8)
                picture = av.VideoFrame.from_ndarray(grey, "rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 10)
                timed += [(number / 10, packet) for packet in film.encode(picture)]
            timed += [(pictures[1], packet) for packet in film.encode(None)]
        for _, packet in sorted(timed, key=lambda one: one[0]):
            out.mux(packet)
    return file.getvalue()


def heard_in_a_child(
    files: dict[str, bytes], folder: Path
) -> dict[str, tuple[str, list[str], Floats]]:
    """Outcome, what was said and the samples of each recording, read where a crash kills nobody;
    the outcome of a crash is "crash"."""
    for name, held in files.items():
        (folder / name).write_bytes(held)
    paths = [str(folder / name) for name in files]
    left = paths
    while left:  # again from behind the one that killed the reader
        subprocess.run([sys.executable, "-c", READER, *left], check=False, timeout=120)
        left = [path for path in left if not Path(path + ".said").exists()]
    found = {}
    for name, path in zip(files, paths, strict=True):
        values, said = Path(path + ".heard"), Path(path + ".said")
        outcome, notices = json.loads(said.read_text())
        samples = np.fromfile(values, np.float32) if values.exists() else np.zeros(0, np.float32)
        found[name] = (outcome, notices, samples)
    return found


def can_encode(codec: str) -> bool:
    """Whether the library has the encoder."""
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def needs(codec: str) -> None:
    """Skip a test whose encoder is not there."""
    if not can_encode(codec):
        pytest.skip(f"this build of the library has no encoder for {codec}")
