"""Audio stream decoding: the best audio stream of a container, frames to mono samples.

Frames are copied plane by plane, as many as the frame has channels: the library's own way goes on
until it meets a null pointer, which is not there behind eight planes. And its layouts of channels
share their memory with the frame when they are of the container's own making (right before left);
both free it. So such a layout is replaced by a plain count before anything is decoded, and a
decoder that makes one by itself is refused.

    track = Track("talk.mkv", container, TimeBudget("talk.mkv"))
    for mono, rate in track.blocks(0.1): ...       # (N,), a tenth of a second or more each
    track.notices(is_whole=True)

N samples, C channels.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media.audio_channels import Floats, Levels, check_finite, downmix, full_scale
from gemelo.inputs.media.audio_timeline import Timeline, seconds
from gemelo.inputs.media.container import SOUND_DECODERS, Corruption, TimeBudget, decode_frames

if TYPE_CHECKING:
    from av import AudioFrame, AudioLayout, AudioStream
    from av.container import InputContainer

MIN_RATE, MAX_RATE = 1_000, 768_000  # below, a small file would swell; above, there is nothing
MOST_CHANNELS = 64  # of a mixing desk; what claims more is damaged
ABSURD_S = 1e6  # no header that says more is right
MISSING_S = 1.0  # a recording that ends this much before its header says has lost its end
GUESSED = ("aac", "mp3")  # formats without a length, whose header's is an estimate
ENDS = ("matroska,webm", "nut", "ogg")  # formats that say when it ends, not how long it lasts
MOST_FRAMES = 1024  # held until they make a block
TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


class Track:
    """The best sound track of a container, as it is decoded."""

    def __init__(self, name: str, container: InputContainer, time_budget: TimeBudget) -> None:
        self.name, self.container, self.time_budget = name, container, time_budget
        self.stream = _sound_track(name, container)
        _plain_layout(self.stream)
        self.stream.codec_context.thread_count = 1  # sound is decoded faster than threads are made
        begins = None if container.start_time is None else container.start_time / 1e6
        self.timeline, self.levels = Timeline(name, begins), Levels()
        self.num_samples = 0
        self.corruptions: Counter[Corruption] = Counter()

    def blocks(self, block_s: float) -> Iterator[tuple[Floats, int]]:
        """Mono samples of block_s or more and their rate; a change or the end comes earlier.

        Raises InputError for a sample that is no number, for what is not averaged, and for what
        takes too long.
        """
        blocks = self._blocks(block_s)
        while True:
            self.time_budget.begin()
            block = next(blocks, None)
            self.time_budget.end()
            if block is None:
                return
            yield block

    def _blocks(self, block_s: float) -> Iterator[tuple[Floats, int]]:
        batch: list[NDArray[Any]] = []
        rate = length = 0
        for silence_s, frame in self._placed():
            samples = planes(self.name, frame)
            is_alike = not batch or (batch[0].dtype, len(batch[0])) == (samples.dtype, len(samples))
            if batch and (silence_s or rate != frame.sample_rate or not is_alike):
                yield self._block(batch), rate
                batch, length = [], 0
            rate = frame.sample_rate
            yield from ((quiet, rate) for quiet in silences(round(silence_s * rate)))
            batch.append(samples)
            length += frame.samples
            if len(batch) >= MOST_FRAMES or length >= block_s * rate:
                yield self._block(batch), rate
                batch, length = [], 0
        if batch:
            yield self._block(batch), rate

    @property
    def header_duration_s(self) -> float:
        """How long the header says it is, if that can be and costs less than to decode it; else 0.

        Uncompressed sound often has no right size in its header: the file's has a say.
        """
        coder = self.stream.codec_context.name
        if coder.startswith("adpcm_") or not self._is_exact():
            return 0.0
        header_duration_s = self._header_s()
        if coder.startswith("pcm_"):
            header_duration_s = min(header_duration_s, self._fills_s(coder))
        return header_duration_s if header_duration_s < ABSURD_S else 0.0

    def notices(self, is_whole: bool) -> tuple[str, ...]:
        """What was amiss, after the last frame; a stream that is not whole promised no length."""
        notices = []
        if (num_tracks := len(self.container.streams.audio)) > 1:
            number = self.container.streams.audio.index(self.stream) + 1
            notices.append(f"it has {num_tracks} sound tracks: number {number} is used")
        if num_broken := self.corruptions["packet"]:
            notices.append(f"it has broken packets, which were left out: {num_broken}")
        if self.corruptions["end"]:
            at_s = self.timeline.time_s
            notices.append(
                f"it is broken after {at_s:.2f} s, or goes on as another recording: the rest was "
                "left out"
            )
        header_duration_s, lasts_s = self._header_s(), self.timeline.sound_s
        if is_whole and self._is_exact() and header_duration_s - lasts_s > MISSING_S:
            notices.append(
                f"it ends after {lasts_s:.1f} s, though its header says {header_duration_s:.1f} s"
            )
        return (*notices, *self.timeline.notices(), *self.levels.notices())

    def _fills_s(self, coder: str) -> float:
        """How long it is if nothing but its samples is in the file; 0 where nobody knows."""
        bits, context = re.search(r"\d+", coder), self.stream.codec_context
        if context.sample_rate < MIN_RATE:
            return 0.0
        each = (int(bits[0]) if bits else 8) / 8 * context.layout.nb_channels
        return max(0, self.container.size) / max(1.0, each * context.sample_rate)

    def _header_s(self) -> float:
        """From its first sample to its last, as the header has it; 0 where it says nothing."""
        stream, container = self.stream, self.container
        header_duration_s = seconds(stream.duration, stream.time_base)
        if header_duration_s is None and len(container.streams) == 1:
            header_duration_s = (container.duration or 0) / 1e6
        if header_duration_s and container.format.name in ENDS:
            header_duration_s -= seconds(stream.start_time, stream.time_base) or 0.0
        return max(0.0, header_duration_s or 0.0)

    def _is_exact(self) -> bool:
        return not set(self.container.format.name.split(",")) & set(GUESSED)

    def _placed(self) -> Iterator[tuple[float, AudioFrame]]:
        """Every frame that has samples, and the seconds of silence before it."""
        for frame in decode_frames(self.container, self.stream, self.corruptions, self.time_budget):
            if not frame.samples:
                continue
            check_rate(self.name, frame.sample_rate)
            length_s = frame.samples / frame.sample_rate
            self.time_budget.earn(length_s)
            stamp_s = seconds(frame.pts, frame.time_base)
            yield from self.timeline.add(frame, stamp_s, length_s)
        yield from self.timeline.finish()

    def _block(self, batch: list[NDArray[Any]]) -> Floats:
        mono = downmix(full_scale(np.concatenate(batch, axis=1)), self.levels)
        check_finite(self.name, mono, self.num_samples)
        self.num_samples += len(mono)
        return mono


def planes(name: str, frame: AudioFrame) -> NDArray[Any]:
    """A frame's samples (C, N) of the type they have, by the channels that it says."""
    num_channels, sample_format = _num_channels(name, frame.layout), frame.format.name
    if sample_format.removesuffix("p") not in TYPES:
        raise UnsupportedError(f"{name} has samples of the type {sample_format}: convert it to WAV")
    dtype = np.dtype(TYPES[sample_format.removesuffix("p")])
    if not frame.format.is_planar:
        packed = _samples(frame, 0, dtype, frame.samples * num_channels)
        return packed.reshape(frame.samples, num_channels).T
    channels = [_samples(frame, index, dtype, frame.samples) for index in range(num_channels)]
    return np.stack(channels) if len(channels) > 1 else channels[0][None]


def _samples(frame: AudioFrame, plane: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    from av.audio.plane import AudioPlane

    buffer: Any = AudioPlane(frame, plane)
    return np.frombuffer(buffer, dtype, count)


def silences(num_samples: int) -> Iterator[Floats]:
    """Zeros, so many in all, a second or so at a time."""
    for start in range(0, num_samples, MAX_RATE // 16):
        yield np.zeros(min(MAX_RATE // 16, num_samples - start), np.float32)


def check_rate(name: str, rate: Any) -> None:
    """Raise InputError for a rate that is none of a recording's."""
    if not isinstance(rate, int | np.integer) or not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(
            f"{name} has {rate!r} samples a second: give {MIN_RATE:,} to {MAX_RATE:,}, whole"
        )


def _sound_track(name: str, container: InputContainer) -> AudioStream:
    stream = container.streams.best("audio")
    if stream is None and not container.streams.audio:
        stream_types = sorted({str(stream.type) for stream in container.streams})
        contents = f"only {' and '.join(stream_types)}" if stream_types else "nothing"
        raise InputError(f"{name} has no sound track: it holds {contents}")
    from av import AudioStream

    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise UnsupportedError(f"{name} is coded in a way that PyAV cannot decode: convert it")
    coder = stream.codec_context.name
    if coder not in SOUND_DECODERS:
        raise UnsupportedError(
            f"{name} is coded as {coder}, which is not read here: convert it to FLAC or WAV"
        )
    return stream


# ---- layouts -------------------------------------------------------------------------------------


def _plain_layout(stream: AudioStream) -> None:
    """Take a layout that names its channels off a decoder; what is left is their count.

    The one that was taken off frees the memory that it shared.
    """
    context = stream.codec_context
    layout = context.layout
    if _is_named_one_by_one(layout):
        context.layout = f"{layout.nb_channels}C"


def _num_channels(name: str, layout: AudioLayout) -> int:
    """How many channels a frame has, if they are in the order of the standard layouts."""
    if not 1 <= layout.nb_channels <= MOST_CHANNELS:
        raise UnsupportedError(
            f"{name} has {layout.nb_channels} channels: at most {MOST_CHANNELS} are averaged; "
            "give one of them alone"
        )
    if _is_named_one_by_one(layout) and not _is_in_order(layout):
        _never_free(layout)
        raise UnsupportedError(
            f"{name} has {layout.name}, an order of channels that is not read here: "
            "convert it to FLAC or WAV"
        )
    return layout.nb_channels


def _is_named_one_by_one(layout: AudioLayout) -> bool:
    return "(" in layout.name


def _is_in_order(layout: AudioLayout) -> bool:
    """Whether a layout is a set of standard channels, which has no memory of its own."""
    order = _standard_order()
    places = [order.get(channel.name, -1) for channel in layout.channels]
    return -1 not in places and all(a < b for a, b in zip(places, places[1:], strict=False))


@cache
def _standard_order() -> dict[str, int]:
    from av import AudioLayout

    every = AudioLayout("0x7fffffffffffffff").channels
    return {channel.name: place for place, channel in enumerate(every)}


def _never_free(layout: AudioLayout) -> None:
    """Leave memory that a frame will free to the frame."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
