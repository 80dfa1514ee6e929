"""What `generate` returns: the continuations of a prompt, whole or cut short.

completion.text, completion.finish_reason, completion.timings
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemelo.config.options import FinishReason
from gemelo.engine.continuation import Piece
from gemelo.engine.timings import Timings


@dataclass(frozen=True)
class Choice:
    """One continuation of a prompt."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()


@dataclass(frozen=True)
class Completion:
    """What `generate` returns: the first continuation's fields, and all of them as `choices`."""

    choices: tuple[Choice, ...]
    prompt_token_ids: tuple[int, ...]
    timings: Timings
    seed: int

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[int],
        pieces: Sequence[Piece],
        timings: Timings,
        seed: int,
        n: int = 1,
    ) -> Completion:
        """Pieces of a stream of n continuations, whole or cut short, as one result."""
        choices = tuple(join([p for p in pieces if p.index == index]) for index in range(n))
        return cls(choices, tuple(prompt_ids), timings, seed)

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[float, ...]:
        return self.choices[0].logprobs


def join(pieces: Sequence[Piece]) -> Choice:
    """Pieces of one continuation; one that never finished was cancelled."""
    finish = pieces[-1].finish_reason if pieces else None
    kept = [piece for piece in pieces if piece.token_ids]
    return Choice(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in kept for token in piece.token_ids),
        finish or "cancelled",
        tuple(piece.logprob for piece in kept if piece.logprob is not None),
        tuple(piece.top_logprobs for piece in kept if piece.top_logprobs),
    )
