"""Soft tokens: what a picture or a recording is to a decoder, and where it stands among the ids.

A tower makes embeddings of them, which a step puts in place of those of the ids. Two things follow.
A picture of Gemma 3 is seen by itself both ways, so that all of it goes through in one step: chunks
end before it or after it. And a cache that holds the same ids need not hold the same picture: every
run carries a key of what it was made from, and a prefix is shared only as far as the keys agree.

    run = Soft(begin=5, embeds=embeds, key=b"...", is_block=True)
    for begin, end in chunks(0, len(ids), 512, [run]): ...

B rows, T tokens of a step, J tokens of a run, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from torch import Tensor

from gemelo.errors import InputError
from gemelo.models.decoder import Decoder
from gemelo.models.layers import StepInputs


@dataclass(frozen=True, eq=False)
class Soft:
    """A run of soft tokens: embeds (J, D) from position `begin` on. is_block: they see each other
    both ways. key tells one picture or sound from another."""

    begin: int
    embeds: Tensor = field(repr=False)
    key: bytes
    is_block: bool = False

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.begin + len(self.embeds)

    @property
    def identity(self) -> tuple[int, int, bytes]:
        """Equal for runs of the same content in the same place."""
        return self.begin, self.end, self.key


def chunks(begin: int, end: int, most: int, soft: Sequence[Soft]) -> Iterator[tuple[int, int]]:
    """Steps of at most `most` tokens from begin to end, none of which cuts a block."""
    while begin < end:
        stop = min(begin + most, end)
        cut = next((run for run in soft if run.is_block and run.begin < stop < run.end), None)
        if cut is not None:
            stop = cut.begin if cut.begin > begin else cut.end
        if stop - begin > most:
            raise InputError(
                f"a picture of {stop - begin} tokens has to be read in one step, which takes "
                f"{most}; raise the chunk"
            )
        yield begin, stop
        begin = stop


def shared(held: Sequence[Soft], wanted: Sequence[Soft]) -> int:
    """The position up to which two lists of runs, each in order, are of the same content."""
    for a, b in zip_longest(held, wanted):
        if a is None or b is None or a.identity != b.identity:
            return min(run.begin for run in (a, b) if run is not None)
    return sys.maxsize


def before_block(position: int, soft: Sequence[Soft]) -> int:
    """The position itself, or the beginning of the block that it would cut."""
    inside = (run.begin for run in soft if run.is_block and run.begin < position < run.end)
    return next(inside, position)


def given(
    decoder: Decoder, ids: Tensor, positions: Tensor, soft: Sequence[Soft] = ()
) -> StepInputs | None:
    """What a step of row 0 brings beside ids (1, T) at consecutive positions; None for plain text.

    Ids that have their embeddings with a tower are no plain text either.
    """
    begin, end = (int(positions[0, 0]), int(positions[0, -1]) + 1) if soft else (0, 0)
    here = [run for run in soft if run.begin < end and run.end > begin]
    if not here:
        hard = decoder.modality_embeddings
        found = hard is not None and hard.contains(ids)
        return StepInputs(decoder.embed(ids)) if found else None
    embeds, reach = decoder.embed(ids).clone(), positions.clone()
    for run in here:
        first, last = max(run.begin, begin), min(run.end, end)
        place = slice(first - begin, last - begin)
        embeds[0, place] = run.embeds[first - run.begin : last - run.begin].to(embeds)
        if run.is_block:
            reach[0, place] = run.end - 1
    return StepInputs(embeds, reach if any(run.is_block for run in here) else None)
