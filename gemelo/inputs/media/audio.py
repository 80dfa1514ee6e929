"""Audio loading: any recording that PyAV decodes, as mono float32 at 16 kHz.

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
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from gemelo.errors import InputError
from gemelo.inputs.media.audio_channels import Floats, Levels, to_mono
from gemelo.inputs.media.audio_track import Track, check_rate
from gemelo.inputs.media.container import TimeBudget, open_container, open_live
from gemelo.inputs.media.file_objects import Readable
from gemelo.inputs.media.parts import Source, name_of, require_readers

if TYPE_CHECKING:
    from av import AudioResampler
    from av.container import InputContainer

SAMPLING_RATE = 16_000  # samples a second that the encoder was trained on
LIMIT_S = 3_600.0  # what is read into memory at once, unless asked for more: 0.23 GB
BLOCK = 1 << 20  # samples resampled at a time


@dataclass(frozen=True, eq=False)
class Samples:
    """Sound at 16 kHz: values (N,) float32 within about +-1; notices: what is amiss with it."""

    values: Floats = field(repr=False)
    notices: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        return len(self.values) / SAMPLING_RATE


def read_audio(source: Source, limit_s: float = LIMIT_S) -> Samples:
    """All the sound in a path, bytes or an open file: its best sound track, from start to end.

    Raises InputError for a file that is broken, silent by having no sound track or no samples,
    longer than limit_s (raised as soon as that is known), or holding a sample that is no number.
    """
    values, notices = np.zeros(0, np.float32), list[str]()
    for piece in stream_audio(source, 10.0, limit_s):
        notices += piece.notices
        length = len(values)
        # In place: a copy would take twice as much.
        values.resize(length + len(piece.values), refcheck=False)
        values[length:] = piece.values
    return Samples(values, tuple(notices))


def stream_audio(
    source: Source, piece_s: float = 1.0, limit_s: float = math.inf
) -> Iterator[Samples]:
    """The same in pieces of piece_s, each as soon as it is decoded, and of any total length.

    A pipe is read no further than the piece needs. The last piece is shorter; notices, if there
    are any, come after it with an empty one. Raises as `read_audio` does, where trouble is met.
    """
    if not isinstance(piece_s, int | float) or not 1 / SAMPLING_RATE <= piece_s < math.inf:
        raise InputError(f"piece_s is {piece_s!r}: give the seconds of a piece, above 0")
    name = name_of(source, "audio")
    time_budget = TimeBudget(name)
    with _open(source, time_budget) as container:
        track = Track(name, container, time_budget)
        check_length(name, track.header_duration_s, limit_s)
        blocks = nonempty(name, resampled(track.blocks(min(1.0, piece_s))))
        for number, piece in enumerate(pieces(blocks, round(piece_s * SAMPLING_RATE))):
            check_length(name, number * piece_s + len(piece) / SAMPLING_RATE, limit_s)
            yield Samples(piece)
        notices = track.notices(is_whole=not _is_live(source))
    if notices:
        yield Samples(np.zeros(0, np.float32), notices)


def resample(values: Any, rate: int) -> Samples:
    """Decoded sound (N,), (N, C) or (C, N) at `rate` samples a second, resampled to 16 kHz.

    A tensor, an array or a list. Floats are within +-1; whole numbers are scaled from the range of
    their type. Raises InputError for another shape or rate, for no samples and for no numbers.
    """
    levels = Levels()
    mono = to_mono(values, levels)
    check_rate("the recording", rate)
    cut = (mono[start : start + BLOCK] for start in range(0, len(mono), BLOCK))
    blocks = nonempty("the recording", resampled((block, int(rate)) for block in cut))
    return Samples(np.concatenate([*blocks]), levels.notices())


# ---- decoding ------------------------------------------------------------------------------------


def nonempty(name: str, blocks: Iterable[Floats]) -> Iterator[Floats]:
    """The blocks as they are, if there is a sample in them."""
    total = 0
    for values in blocks:
        total += len(values)
        yield values
    if not total:
        raise InputError(f"{name} holds no sound: it has 0 samples that can be decoded")


def check_length(name: str, length_s: float, limit_s: float) -> None:
    """Raise InputError for a recording that lasts length_s or more, if that is too long."""
    if length_s > limit_s + 1 / SAMPLING_RATE:
        raise InputError(
            f"{name} lasts {length_s:.0f} s or more, longer than the {limit_s:g} s that are read "
            "at once: give a part of it, or transcribe it in segments (gemelo transcribe --segment)"
        )


def resampled(blocks: Iterable[tuple[Floats, int]]) -> Iterator[Floats]:
    """Mono blocks at whatever rate each has, as mono blocks at `SAMPLING_RATE`."""
    current, filters = SAMPLING_RATE, None
    for values, rate in blocks:
        if rate != current:
            yield from _drained(filters)
            current, filters = rate, None if rate == SAMPLING_RATE else _resampler()
        if filters is None:
            yield values
        else:
            yield from _resampled(filters, values, rate)
    yield from _drained(filters)


def pieces(blocks: Iterable[Floats], size: int) -> Iterator[Floats]:
    """The blocks cut anew into pieces of `size` samples; the last is what is left, if any."""
    waiting: list[Floats] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count < size:
            continue
        whole = np.concatenate(waiting)
        kept = count - count % size
        yield from whole[:kept].reshape(-1, size)
        waiting, count = [whole[kept:]], count - kept
    if count:
        yield np.concatenate(waiting)


# ---- the library ---------------------------------------------------------------------------------


def _open(source: Source, time_budget: TimeBudget) -> AbstractContextManager[InputContainer]:
    if _is_live(source):
        assert isinstance(source, Readable)
        return open_live(source, "audio", time_budget)
    return open_container(source, "audio", time_budget)


def _is_live(source: Source) -> bool:
    if not isinstance(source, Readable) or isinstance(source, io.TextIOBase):
        return False
    try:
        return not source.seekable()
    except Exception:  # it is closed, or no file: opening it will say which
        return False


def _resampler() -> AudioResampler:
    require_readers("audio")
    from av import AudioResampler

    return AudioResampler("flt", "mono", SAMPLING_RATE)


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
