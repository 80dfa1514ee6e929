"""Sound: any recording that PyAV decodes, as what the encoder hears: one channel at 16 kHz.

Channels are averaged, rates are resampled with a proper filter, whole numbers are scaled to +-1,
and nothing is cut off: a recording longer than fits in memory is streamed. What a person should
know about a recording is said in `notices`; nothing is printed.

    samples = read_audio("talk.mp3");  samples.values, samples.duration_s
    for piece in stream_audio("lecture.m4a", piece_s=1.0): ...
    samples = resample(array, rate=44100)

N samples, C channels.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.container import Amiss, decoded, open_container, open_live
from gemelo.inputs.media import Readable, Source, name_of

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler, AudioStream
    from av.container import InputContainer

Floats = NDArray[np.float32]

RATE = 16_000  # samples a second that the encoder was trained on
MIN_RATE, MAX_RATE = 1_000, 768_000  # below, a small file would swell; above, there is nothing
LOUDEST = 100.0  # full scale is 1; far above it, somebody forgot to divide
LIMIT_S = 4 * 3600.0  # what is read into memory at once: 0.9 GB
MISSING_S = 1.0  # a recording that ends this much before its header says has lost its end
GUESSED = ("aac", "mp3")  # formats without a length, whose header's is an estimate
BLOCK = 1 << 20  # samples resampled at a time


@dataclass(frozen=True, eq=False)
class Samples:
    """Sound at 16 kHz: values (N,) float32 within about +-1; notices: what is amiss with it."""

    values: Tensor = field(repr=False)
    notices: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        return self.values.shape[0] / RATE


def read_audio(source: Source, limit_s: float = LIMIT_S) -> Samples:
    """All the sound in a path, bytes or an open file: its best sound track, from start to end.

    Raises InputError for a file that is broken, silent by having no sound track or no samples,
    longer than limit_s, or holding a sample that is no number.
    """
    pieces, notices, total = [], list[str](), 0
    for piece in stream_audio(source, piece_s=10.0):
        pieces.append(piece.values)
        notices += piece.notices
        total += piece.values.shape[0]
        if total > limit_s * RATE:
            raise InputError(
                f"{name_of(source, 'audio')} is longer than {limit_s:g} s, more than is read into "
                "memory at once: stream it, or raise limit_s"
            )
    return Samples(torch.cat(pieces), tuple(notices))


def stream_audio(source: Source, piece_s: float = 1.0) -> Iterator[Samples]:
    """The same in pieces of piece_s, each as soon as it is decoded, and of any total length.

    A pipe is read no further than the piece needs. The last piece is shorter; notices, if there
    are any, come after it with an empty one. Raises as `read_audio` does, where trouble is met.
    """
    if not isinstance(piece_s, int | float) or not 1 / RATE <= piece_s < math.inf:
        raise InputError(f"piece_s is {piece_s!r}: give the seconds of a piece, above 0")
    name = name_of(source, "audio")
    with _open(source) as container:
        track = Track(name, container)
        blocks = nonempty(name, resampled(checked(name, track.blocks())))
        for piece in pieces(blocks, round(piece_s * RATE)):
            yield Samples(torch.from_numpy(piece))
        notices = track.notices(is_whole=not _is_live(source))
    if notices:
        yield Samples(torch.zeros(0), notices)


def resample(values: Any, rate: int) -> Samples:
    """Decoded sound (N,), (N, C) or (C, N) at `rate` samples a second, as the encoder hears it.

    A tensor, an array or a list. Floats are within +-1; whole numbers are scaled from the range of
    their type. Raises InputError for another shape or rate, for no samples and for no numbers.
    """
    mono = as_mono(values)
    _check_rate("the recording", rate)
    cut = (mono[start : start + BLOCK] for start in range(0, len(mono), BLOCK))
    blocks = nonempty("the recording", resampled((block, int(rate)) for block in cut))
    return Samples(torch.from_numpy(np.concatenate([*blocks])))


def as_mono(values: Any) -> Floats:
    """One channel of finite float32 from samples of any kind; the shorter axis is the channels."""
    array = _as_array(values)
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise InputError(
            f"the recording is an array of {array.dtype} with {array.ndim} axes: "
            "give numbers, (samples,) or (samples, channels)"
        )
    scaled = full_scale(array)
    if scaled.ndim == 2:
        scaled = averaged(scaled, int(np.argmin(scaled.shape))) if scaled.size else scaled[:0, 0]
    check_finite("the recording", scaled, 0)
    return scaled


def _as_array(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        held = values.detach().cpu()
        return (held.float() if held.is_floating_point() else held).numpy()
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError("the recording is a list of lists of different lengths") from None


def full_scale(array: NDArray[Any]) -> Floats:
    """Whole numbers divided by the range of their type; floats as they are, in float32."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an infinity is told about later
            return array.astype(np.float32, copy=False)
    half = np.float32(2.0 ** (8 * array.dtype.itemsize - 1))
    zero = half if array.dtype.kind == "u" else np.float32(0)
    return (array.astype(np.float32) - zero) / half


def averaged(array: Floats, channels: int) -> Floats:
    """The mean over the axis `channels`, in float32."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number is told about later
        mean: Floats = array.mean(channels, dtype=np.float32)
    return mean


def check_finite(name: str, values: Floats, first: int) -> None:
    """Raise InputError where a sample is no number, or out of all proportion."""
    loud = ~(np.abs(values) <= LOUDEST)
    if loud.any():
        at = int(loud.argmax())
        raise InputError(
            f"{name} has the sample {values[at]} at index {first + at}: "
            f"give numbers within +-1 (whole numbers of 16 bits as int16)"
        )


# ---- decoding ------------------------------------------------------------------------------------


class Track:
    """The best sound track of a container, as it is decoded."""

    def __init__(self, name: str, container: InputContainer) -> None:
        self.name = name
        self.container = container
        self.stream = _sound_track(name, container)
        self.seconds = 0.0
        self.amiss: Counter[Amiss] = Counter()

    def blocks(self) -> Iterator[tuple[Floats, int]]:
        """Mono samples and their rate, a decoded frame at a time."""
        for frame in decoded(self.container, self.stream, self.amiss):
            if not frame.samples:
                continue
            _check_rate(self.name, frame.sample_rate)
            self.seconds += frame.samples / frame.sample_rate
            yield mono(frame), frame.sample_rate

    def notices(self, is_whole: bool) -> tuple[str, ...]:
        """What was amiss, after the last frame; a stream that is not whole promised no length."""
        notices = []
        if num_broken := self.amiss.total():
            notices.append(f"it has broken packets, which were left out: {num_broken}")
        told_s = float((self.stream.duration or 0) * (self.stream.time_base or 0))
        exact = is_whole and not set(self.container.format.name.split(",")) & set(GUESSED)
        if exact and told_s - self.seconds > MISSING_S:
            notices.append(
                f"it ends after {self.seconds:.1f} s, though its header says {told_s:.1f} s"
            )
        return tuple(notices)


def mono(frame: AudioFrame) -> Floats:
    """The mean of a frame's channels, (N,)."""
    array = full_scale(frame.to_ndarray())  # planar (C, N), else (1, N * C)
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    return averaged(array, 0)


def checked(name: str, blocks: Iterable[tuple[Floats, int]]) -> Iterator[tuple[Floats, int]]:
    """The blocks as they are, if every sample is a number."""
    first = 0
    for values, rate in blocks:
        check_finite(name, values, first)
        first += len(values)
        yield values, rate


def nonempty(name: str, blocks: Iterable[Floats]) -> Iterator[Floats]:
    """The blocks as they are, if there is a sample in them."""
    total = 0
    for values in blocks:
        total += len(values)
        yield values
    if not total:
        raise InputError(f"{name} holds no sound: it has 0 samples that can be decoded")


def resampled(blocks: Iterable[tuple[Floats, int]]) -> Iterator[Floats]:
    """Mono blocks at whatever rate each has, as mono blocks at `RATE`."""
    current, filters = RATE, None
    for values, rate in blocks:
        if rate != current:
            yield from _drained(filters)
            current, filters = rate, None if rate == RATE else _resampler()
        if filters is None:
            yield values
        else:
            yield from _resampled(filters, values, rate)
    yield from _drained(filters)


def pieces(blocks: Iterable[Floats], size: int) -> Iterator[Floats]:
    """The blocks cut anew into pieces of `size` samples; the last is what is left, if any."""
    held: list[Floats] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count < size:
            continue
        whole = np.concatenate(held)
        kept = count - count % size
        yield from whole[:kept].reshape(-1, size)
        held, count = [whole[kept:]], count - kept
    if count:
        yield np.concatenate(held)


# ---- the library ---------------------------------------------------------------------------------


def _open(source: Source) -> AbstractContextManager[InputContainer]:
    if _is_live(source):
        assert isinstance(source, Readable)
        return open_live(source, "audio")
    return open_container(source, "audio")


def _is_live(source: Source) -> bool:
    if not isinstance(source, Readable) or isinstance(source, io.TextIOBase):
        return False
    try:
        return not source.seekable()
    except ValueError:  # it is closed, which will be told when it is opened
        return False


def _sound_track(name: str, container: InputContainer) -> AudioStream:
    stream = container.streams.best("audio")
    if stream is None and not container.streams.audio:
        kinds = sorted({str(stream.type) for stream in container.streams})
        held = f"only {' and '.join(kinds)}" if kinds else "nothing"
        raise InputError(f"{name} has no sound track: it holds {held}")
    from av import AudioStream

    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise UnsupportedError(f"{name} is coded in a way that PyAV cannot decode: convert it")
    return stream


def _check_rate(name: str, rate: Any) -> None:
    if not isinstance(rate, int | np.integer) or not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(
            f"{name} has {rate!r} samples a second: give {MIN_RATE:,} to {MAX_RATE:,}, whole"
        )


def _resampler() -> AudioResampler:
    from av import AudioResampler

    return AudioResampler("flt", "mono", RATE)


def _resampled(filters: AudioResampler, values: Floats, rate: int) -> Iterator[Floats]:
    from av import AudioFrame

    frame = AudioFrame.from_ndarray(np.ascontiguousarray(values)[None], "flt", "mono")
    frame.sample_rate = rate
    frame.time_base = Fraction(1, rate)
    yield from (out.to_ndarray()[0] for out in filters.resample(frame))


def _drained(filters: AudioResampler | None) -> Iterator[Floats]:
    """What the filter still holds back at the end."""
    if filters is not None:
        yield from (out.to_ndarray()[0] for out in filters.resample(None))
