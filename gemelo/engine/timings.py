"""Timings: prefill and decode seconds, tokens and rates of a turn; tokens by sub-model.

Rates are derived, never stored. Loading counts for the first turn of a model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Timings:
    """One turn of a session: seconds of wall clock, counts of tokens.

    `prefill_s` ends before the first token is chosen, `decode_s` leaves out what the caller did
    between two pieces, and `decode_tokens` counts those after the first. `repack_s` is what it took
    between the first two tokens of a model to move its weights: part of loading that the first did
    not wait for. `reused_tokens` of the prompt were in the cache, `prefill_tokens` were read.
    """

    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    repack_s: float = 0.0
    reused_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0

    @property
    def time_to_first_token_s(self) -> float:
        """Seconds of loading, if this turn counts it, and of prefill."""
        return self.load_s + self.prefill_s

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens read a second; 0 before any was."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens decoded a second, the first left out; 0 before the second."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


@dataclass
class Stats:
    """What a session did since it began, by sub-model."""

    tokens: Counter[str] = field(default_factory=Counter)  # written to the cache, prompts' too
    answered: Counter[str] = field(default_factory=Counter)  # of answers, by who scored them
    switches: int = 0
    rebuilt_tokens: int = 0
    rebuilds: int = 0  # caches brought up to date
