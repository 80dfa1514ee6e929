"""Task: what one caller wants of a model, as a generator that asks for steps.

It yields lists of works, and is sent their scores when all are done; between them it yields pieces
of text. It does not know who computes the steps, nor together with whom. So a turn is written down
as if it were alone, and a thousand of them are a thousand suspended generators.

    def turn() -> Task[None]:
        [scores] = yield [Work(decoder, cache, tokens, 0, logits_to_keep=1)]
        yield row.choose(scores[-1])
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from gemelo.engine.continuation import Piece
from gemelo.engine.work import Work

R = TypeVar("R")
Works = list[Work]
Task = Generator[Works | Piece, Any, R]
