"""Completions: what `generate` returns, the continuations of a prompt, whole or cut short.

completion.text, completion.finish_reason, completion.timings
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gemelo.config.options import FinishReason
from gemelo.engine.continuation import Piece
from gemelo.engine.timings import Timings


@dataclass(frozen=True)
class Choice:
    """One continuation of a prompt: its text, without special tokens, and its token ids.

    Log-probabilities are natural, of the model's own scores; `logprobs` has one a token, and
    `top_logprobs` the likeliest ids with theirs. Both are empty where none were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = field(default=(), repr=False)
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Completion:
    """What `generate` returns: the first continuation's fields, and all of them as `choices`.

    `seed` is the one that was given or drawn; the same one gives the same text.
    """

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

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        """Its text and how it ended; of a long text the beginning."""
        shown = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        more = f", {len(self.choices)} choices" if len(self.choices) > 1 else ""
        count = len(self.token_ids)
        return f"Completion({shown!r}, {count} tokens, {self.finish_reason}{more})"

    @property
    def text(self) -> str:
        """The first continuation's text."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first continuation's token ids, without the one that ended it."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first continuation ended: "stop" at an end-of-text token or a stop text, "length"
        at max_tokens or a full context, "cancelled" if its stream was left."""
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[float, ...]:
        """The natural log-probability of each token of the first continuation; empty if not asked
        for."""
        return self.choices[0].logprobs


def join(pieces: Sequence[Piece]) -> Choice:
    """Pieces of one continuation; one that never finished was cancelled."""
    finish = pieces[-1].finish_reason if pieces else None
    with_token = [piece for piece in pieces if piece.token_ids]
    return Choice(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in with_token for token in piece.token_ids),
        finish or "cancelled",
        tuple(piece.logprob for piece in with_token if piece.logprob is not None),
        tuple(piece.top_logprobs for piece in with_token if piece.top_logprobs),
    )
