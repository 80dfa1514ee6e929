"""When tokens came: sessions that decode together, and a long prompt that arrives meanwhile.

What somebody feels who reads an answer as it is made is the gap between two tokens, and what the
newcomer feels is the time to its first token. Both depend on how much of the prompt a step takes
beside the others' tokens.

    found = Arrivals(times, asked_s, first_s)
    found.longest_gap_s / found.median_gap_s

Times are seconds of one clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Arrivals:
    """times: of every token of every session that decodes; asked_s: when the late prompt was;
    first_s: when its first token came."""

    times: list[list[float]]
    asked_s: float
    first_s: float

    def __post_init__(self) -> None:
        if any(times[0] > self.asked_s or times[-1] < self.first_s for times in self.times):
            raise ValueError("a session did not decode as long as the late prompt was read")

    @property
    def median_gap_s(self) -> float:
        """Between two tokens of a session while all decode and nothing is read."""
        begun = max(times[0] for times in self.times)
        return statistics.median(
            gap for start, end, gap in self._gaps() if start >= begun and end <= self.asked_s
        )

    @property
    def longest_gap_s(self) -> float:
        """The longest that touches the time in which the late prompt was read."""
        return max(
            gap for start, end, gap in self._gaps() if end > self.asked_s and start < self.first_s
        )

    @property
    def wait_s(self) -> float:
        """The late prompt's time to its first token."""
        return self.first_s - self.asked_s

    @property
    def steps(self) -> int:
        """Decode steps taken while the late prompt was read: the most tokens of a session."""
        return max(
            sum(self.asked_s < time <= self.first_s for time in times) for times in self.times
        )

    def _gaps(self) -> Iterator[tuple[float, float, float]]:
        """Where every gap begins and ends, and how long it is."""
        for times in self.times:
            for start, end in zip(times, times[1:], strict=False):
                yield start, end, end - start
