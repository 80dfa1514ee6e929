"""Audio presentation times: when each frame is played, and the silence in the gaps.

A player starts a container at its earliest stamp and plays every frame at its own. So a sound that
begins later than the picture, or lost packets on the way, is preceded by silence here too; the
samples that follow, and the subtitles made of them, are then where they belong. Silence is bounded.
Stamps that go back or jump for one frame alone mean nothing: there the frames are simply joined.

    timeline = Timeline("talk.mkv", start_s=0.0)
    for frame in frames:
        for silence_s, frame in timeline.add(frame, stamp_s, length_s): ...
    for silence_s, frame in timeline.finish(): ...
    timeline.notices()
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemelo.errors import InputError

JITTER_S = 0.1  # how far a stamp may be off: containers round, and clocks drift
MOST_SILENCE_S = 3600.0  # of all holes of a recording
MOST_HOLES = 10_000
ABSURD_S = 86_400.0  # a stamp that is a day away is broken, and no hole


@dataclass(frozen=True)
class Stamped:
    """A frame, whose stamp says that it begins at stamp_s; None where it has none."""

    frame: Any
    stamp_s: float | None
    length_s: float

    def follows(self, stamp_s: float) -> bool:
        """Whether it begins at stamp_s, give or take some jitter."""
        return self.stamp_s is None or abs(self.stamp_s - stamp_s) <= JITTER_S


class Timeline:
    """Frames in the order in which they are decoded, with the silence before each."""

    def __init__(self, name: str, start_s: float | None) -> None:
        """start_s: the container's earliest stamp; None to begin at the first frame."""
        self.name, self.start_s = name, start_s
        self.time_s = 0.0  # of what was placed, silence and all
        self.next_s: float | None = None  # the stamp that would follow without a hole
        self.lag_s = 0.0  # how far the stamps are ahead of time_s
        self.late_s = self.hole_s = 0.0
        self.num_holes = self.num_broken = 0
        self.first_hole_s = self.first_broken_s = 0.0
        self.held: Stamped | None = None  # its stamp jumps: the next one's tells if it is right

    @property
    def sound_s(self) -> float:
        """From the first frame on."""
        return self.time_s - self.late_s

    def add(
        self, frame: Any, stamp_s: float | None, length_s: float
    ) -> Iterator[tuple[float, Any]]:
        """Frames that are now known to come next, each with the seconds of silence before it."""
        new = Stamped(frame, stamp_s, length_s)
        if self.held is not None:
            waiting, self.held = self.held, None
            yield self._settled(waiting, new), waiting.frame
        if self.next_s is None and stamp_s is not None:
            yield self._first(stamp_s, length_s), frame
        elif self.next_s is None or new.follows(self.next_s):
            yield self._next(new), frame
        else:
            self.held = new

    def finish(self) -> Iterator[tuple[float, Any]]:
        """The frame that waited for another one, if there is one."""
        if self.held is not None:
            waiting, self.held = self.held, None
            yield self._settled(waiting, None), waiting.frame

    def notices(self) -> tuple[str, ...]:
        """What there is to say after the last frame."""
        notices = []
        if self.late_s:
            notices.append(
                f"its sound begins {self.late_s:.2f} s after its start: silence until then"
            )
        if self.num_holes:
            what = "a hole" if self.num_holes == 1 else f"{self.num_holes} holes"
            notices.append(
                f"it has {what} of {self.hole_s:.2f} s in all, the first at "
                f"{self.first_hole_s:.2f} s: silence stands in for what is missing"
            )
        if self.num_broken:
            notices.append(
                f"its time stamps are broken, {self.num_broken} times, first at "
                f"{self.first_broken_s:.2f} s: the samples were joined there"
            )
        return tuple(notices)

    def _first(self, stamp_s: float, length_s: float) -> float:
        """Silence before the first frame that has a stamp."""
        lead_s = 0.0 if self.start_s is None else stamp_s - self.start_s - self.time_s
        silence_s = 0.0
        if JITTER_S < lead_s <= ABSURD_S:
            self.late_s = silence_s = lead_s
            self._bound("begins", lead_s)
        elif abs(lead_s) > JITTER_S:
            self._broken()
        self.time_s += silence_s + length_s
        self.next_s = stamp_s + length_s
        return silence_s

    def _next(self, new: Stamped) -> float:
        """Silence before a frame that follows the last one, but for some jitter."""
        silence_s = 0.0
        if new.stamp_s is not None and self.next_s is not None:
            jump_s = new.stamp_s - self.next_s
            self.lag_s += jump_s
            if self.lag_s > JITTER_S:  # packets lost one by one, if one is missing just here
                silence_s = self.lag_s if jump_s > new.length_s / 2 else 0.0
                self._hole(silence_s)
                self.lag_s = 0.0
        self._advance(silence_s, new, new.stamp_s)
        return silence_s

    def _settled(self, waiting: Stamped, after: Stamped | None) -> float:
        """Silence before a frame whose stamp jumps, now that the next one is known."""
        assert waiting.stamp_s is not None and self.next_s is not None
        jump_s = waiting.stamp_s - self.next_s
        alone = after is not None and not after.follows(waiting.stamp_s + waiting.length_s)
        silence_s = 0.0
        if alone or jump_s > ABSURD_S or jump_s < 0:
            self._broken()
            self._advance(0.0, waiting, None if alone else waiting.stamp_s)
            return silence_s
        silence_s = max(0.0, jump_s + self.lag_s)
        self._hole(silence_s)
        self.lag_s = 0.0
        self._advance(silence_s, waiting, waiting.stamp_s)
        return silence_s

    def _advance(self, silence_s: float, placed: Stamped, stamp_s: float | None) -> None:
        self.time_s += silence_s + placed.length_s
        if stamp_s is not None:
            self.next_s = stamp_s + placed.length_s
        elif self.next_s is not None:
            self.next_s += placed.length_s

    def _hole(self, silence_s: float) -> None:
        if not silence_s:
            return
        if not self.num_holes:
            self.first_hole_s = self.time_s
        self.num_holes += 1
        self.hole_s += silence_s
        self._bound("has a hole", silence_s)

    def _broken(self) -> None:
        if not self.num_broken:
            self.first_broken_s = self.time_s
        self.num_broken += 1

    def _bound(self, what: str, silence_s: float) -> None:
        if self.late_s + self.hole_s > MOST_SILENCE_S or self.num_holes > MOST_HOLES:
            raise InputError(
                f"{self.name} {what} of {silence_s:.0f} s at {self.time_s:.0f} s, by its time "
                f"stamps: at most {MOST_SILENCE_S:.0f} s of silence and {MOST_HOLES:,} holes are "
                "filled in; give the part with the sound, or the sound alone as WAV"
            )


def seconds(stamp: int | None, time_base: Any) -> float | None:
    """A stamp in seconds; None where there is none that makes sense."""
    if stamp is None or not time_base:
        return None
    value = float(stamp * time_base)
    return value if math.isfinite(value) else None
