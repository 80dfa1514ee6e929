"""Voice activity: pauses at which a long recording is cut into segments of at most 30 s.

Gemma 3n was trained on 30 s of sound at a time. A longer one is cut into segments that are no
longer: at the first pause after 15 s, or, if nobody pauses, at 30 s, and then the next segment
begins a second earlier, so that no word is lost between the two.

Of less than a second a model hears nothing and invents words. So a rest that short is joined to the
segment before, which may then last up to 31 s; cutting the last two evenly would mean to keep all
of the first. Everything is decided as the sound arrives: a segment is said to end when a second
more has come, and no more than that second and the one before it is kept.

    segmenter = Segmenter()
    for piece in pieces:
        for part in segmenter.push(piece): ...      # part.values, part.start_s, part.ends
    last = segmenter.finish()

N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gemelo.inputs.media.audio import SAMPLING_RATE
from gemelo.inputs.media.audio_channels import Floats

MAX_SEGMENT_S = 30.0
MIN_SEGMENT_S = 15.0
MIN_REST_S = 1.0  # a rest shorter than this is joined to the segment before
PAUSE_S = 0.3
OVERLAP_S = 1.0
BLOCK = SAMPLING_RATE // 10  # samples whose loudness is one number
QUIET = 0.1  # of the loudest block of the segment
SILENT = 1e-3  # of full scale: quiet whatever else there is


@dataclass(frozen=True, eq=False)
class AudioSegment:
    """Samples (N,) at 16 kHz of a segment that began at start_s; ends: it is over with them.

    overlaps: the segment began before the last one was over. onset_s: when there was first a sound
    in it, to a tenth of a second; start_s while there is none.
    """

    values: Floats
    start_s: float
    ends: bool
    overlaps: bool
    onset_s: float


class Onset:
    """When a sound that comes in pieces begins to be one, to a tenth of a second."""

    def __init__(self) -> None:
        self._num_samples, self._at = 0, -1

    @property
    def time_s(self) -> float:
        """Seconds of silence at its beginning; 0 while there is nothing else."""
        return max(0, self._at) // BLOCK * BLOCK / SAMPLING_RATE

    def push(self, values: Floats) -> None:
        """The samples (N,) that follow."""
        loud = np.abs(values) > SILENT if self._at < 0 else np.zeros(0, bool)
        if loud.any():
            self._at = self._num_samples + int(loud.argmax())
        self._num_samples += len(values)


class Segmenter:
    """A sound that is still going on, in stretches of at most 30 s, the last one of 31."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._held: Floats = np.zeros(0, np.float32)  # less than a block
        self._first = 0  # sample of the sound that the stretch began with
        self._begin()

    def _begin(self, overlap: Floats | None = None) -> None:
        self._over = False
        self._rest: list[Floats] = []  # blocks since the segment was over
        self._overlap = np.zeros(0, np.float32) if overlap is None else overlap
        self._length = 0  # samples of the segment so far
        self._loudest = 0.0
        self._pause = 0  # quiet blocks in a row
        self._overlaps = overlap is not None
        self._recent: Floats = np.zeros(0, np.float32)
        self._onset = Onset()

    def push(self, samples: Floats) -> Iterator[AudioSegment]:
        """Samples (N,) at 16 kHz -> the parts of segments that they make, in order.

        They are not checked here: a decoder has done it, or the spectrogram will.
        """
        self._held = np.concatenate([self._held, samples])
        blocks: list[Floats] = []
        while len(self._held) >= BLOCK:
            block, self._held = self._held[:BLOCK], self._held[BLOCK:]
            if not self._over:
                blocks += self._grown(block)
                continue
            self._rest.append(block)
            if len(self._rest) * BLOCK >= MIN_REST_S * SAMPLING_RATE:
                rest = self._rest
                yield self._part(blocks, ends=True)
                self._cut()
                blocks = [piece for one in rest for piece in self._grown(one)]
        if blocks:
            yield self._part(blocks, ends=False)

    def _grown(self, block: Floats) -> list[Floats]:
        """The segment with a block more; returns what that adds to it."""
        added = [self._overlap, block] if len(self._overlap) else [block]
        self._length += BLOCK + len(self._overlap)
        self._overlap = self._overlap[:0]
        self._over = self._ends_with(block)
        return added

    def finish(self) -> AudioSegment | None:
        """The rest, as the end of the last segment; None where there is nothing to end."""
        if not self._length and not len(self._held):
            return None
        part = self._part([self._overlap, *self._rest, self._held], ends=True)
        self._reset()
        return part

    def _ends_with(self, block: Floats) -> bool:
        """Whether a block is the last of its segment."""
        level = float(np.sqrt(np.mean(np.square(block))))
        self._loudest = max(self._loudest, level)
        quiet = level < max(SILENT, QUIET * self._loudest)
        self._pause = self._pause + 1 if quiet else 0
        self._recent = np.concatenate([self._recent, block])[-round(OVERLAP_S * SAMPLING_RATE) :]
        paused = self._pause * BLOCK >= PAUSE_S * SAMPLING_RATE
        return self._length >= MAX_SEGMENT_S * SAMPLING_RATE or (
            paused and self._length >= MIN_SEGMENT_S * SAMPLING_RATE
        )

    def _cut(self) -> None:
        """Begin the next segment: a second back, unless it was a pause."""
        self._first += self._length
        if self._pause * BLOCK >= PAUSE_S * SAMPLING_RATE:
            self._begin()
            return
        self._first -= len(self._recent)
        self._begin(self._recent)

    def _part(self, blocks: list[Floats], ends: bool) -> AudioSegment:
        values = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        start_s = self._first / SAMPLING_RATE
        self._onset.push(values)
        return AudioSegment(values, start_s, ends, self._overlaps, start_s + self._onset.time_s)


def without_overlap(before: str, after: str, most: int = 12) -> str:
    """`after` less the words at its beginning that `before` ends with: the overlap's, said twice.

    A word that the cut went through may stand before the repeated ones, and is dropped with them.
    """
    ends, begins = [*map(bare, before.split())][-most:], [*map(bare, after.split())][:most]
    for count in range(min(len(ends), len(begins)), 0, -1):
        for torn in (0, 1) if count > 1 else (0,):
            if ends[-count:] == begins[torn : torn + count]:
                return " ".join(after.split()[torn + count :])
    return after


def bare(word: str) -> str:
    """A word as it is compared: without case and punctuation."""
    return "".join(c for c in word.casefold() if c.isalnum()) or word
