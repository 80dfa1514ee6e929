"""Work: tokens that one sequence wants written to its cache, step by step, and scores of the last.

A turn of a session asks for steps by works. Whoever drives it runs them: alone and at once
(`step.run`), or some pieces of many works together in each step. A work is plain data and touches
nobody else's; how its tokens are cut follows from their positions (`grid`), so that it writes the
same bits in any company.

    work = Work(decoder, cache, Tokens(ids), position=0, logits_to_keep=1)
    while not work.done:
        pieces = work.pieces(limit=512)
        work.wrote(pieces, step.forward(decoder, pieces))
    work.scores                                                   # (1, V)

V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gemelo.engine.decoder import FEW_TOKENS, Decoder, StepPiece
from gemelo.engine.grid import GRID, pieces
from gemelo.engine.kv import KVCache
from gemelo.engine.tokens import Tokens, step_inputs
from gemelo.errors import InputError
from gemelo.kernels.quants import Floats


@dataclass(eq=False)
class Work:
    """Tokens to be written from `position` on, and how many of the last are to be scored; None is
    all. `held` is told, after every step, the position up to which the cache holds tokens."""

    decoder: Decoder
    cache: KVCache
    tokens: Tokens
    position: int
    logits_to_keep: int | None = 0
    held: Callable[[int], None] = lambda position: None
    read: int = 0  # tokens already written
    came_s: float = field(default_factory=time.monotonic)  # when it was asked for
    _scores: list[Floats] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Raises InputError for a picture that is longer than a step may be."""
        longest = max((end - begin for begin, end in self.tokens.blocks), default=0)
        if longest > (chunk := self.cache.chunk):
            raise InputError(
                f"a picture of {longest} tokens has to be read in one step, which takes {chunk}; "
                "raise the chunk"
            )

    @property
    def remaining(self) -> int:
        """Tokens still to be written."""
        return len(self.tokens) - self.read

    @property
    def done(self) -> bool:
        """Whether all are written."""
        return self.remaining <= 0

    @property
    def is_exact(self) -> bool:
        """Whether what remains is one piece of few tokens."""
        return self.remaining <= FEW_TOKENS

    @property
    def scores(self) -> Floats:
        """Those of the last tokens, (logits_to_keep, V), as far as they are written."""
        if len(self._scores) == 1:
            return self._scores[0]  # with its maxima
        none = np.empty((0, self.decoder.config.vocab_size), np.float32)
        return np.concatenate([none, *self._scores])

    def takes(self, limit: int) -> int:
        """Tokens that a step would write, given `limit`."""
        return sum(last - first for first, last in self._next(limit))

    def pieces(self, limit: int) -> list[StepPiece]:
        """The next of at most `limit` tokens in all, or one cell of the grid where that is more."""
        at = self.position
        return [self._piece(first - at, last - at) for first, last in self._next(limit)]

    def _next(self, limit: int) -> list[tuple[int, int]]:
        """The positions of the next pieces."""
        chunk, at = self.cache.chunk, self.position
        blocks = [(begin + at, end + at) for begin, end in self.tokens.blocks]
        begin, end = at + self.read, at + len(self.tokens)
        return pieces(begin, end, min(limit, chunk), blocks, min(GRID, chunk))

    def wrote(self, pieces: Sequence[StepPiece], scores: Sequence[Floats]) -> None:
        """Note that a step has written the next pieces, and what it gave for each."""
        self._scores.extend(kept for kept in scores if len(kept))
        self.read += sum(len(piece.ids) for piece in pieces)
        self.held(self.position + self.read)

    def _piece(self, begin: int, end: int) -> StepPiece:
        part, position = self.tokens[begin:end], self.position + begin
        keep = self.logits_to_keep
        if keep is not None:
            keep = min(max(0, keep - (len(self.tokens) - end)), len(part))
        inputs = step_inputs(self.decoder, part, position)
        return StepPiece(self.cache, part.ids, position, keep, inputs)
