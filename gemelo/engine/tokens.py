"""Tokens: token ids of a prompt, and the embedding spans (`inputs_embeds`) in place of some.

A vision tower or an audio encoder makes embeddings, which a step puts in place of those of the
placeholder ids. Two things follow. A picture of Gemma 3 is seen by itself both ways, so that all of
it goes through in one step: pieces end before it or after it (`grid`). And a cache that holds the
same ids need not hold the same picture: every span carries a key of what it was made from, and a
prefix is shared only as far as the keys agree.

    tokens = Tokens(ids, [EmbeddingSpan(begin=5, embeds=embeds, key=b"...", bidirectional=True)])
    tokens[:20].blocks                                            # [(5, 20)]

T tokens, J tokens of a span, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from gemelo.config import ModelConfig
from gemelo.engine.decoder import Decoder, StepInputs
from gemelo.engine.grid import Range
from gemelo.errors import ContextLengthError, InputError, one_line
from gemelo.inputs.tokenizer.token_ids import token_ids
from gemelo.kernels.quants import Floats

_REASON_CHARS = 160  # of what made no array


@dataclass(frozen=True, eq=False)
class EmbeddingSpan:
    """Embeddings (J, D) in place of those of the ids from `begin` on, as a tower made them.

    embeds are float32; other floats, and tensors of torch, are made so. key tells one picture or
    sound from another. bidirectional: its tokens see each other both ways. offset: how many of that
    picture's or sound's embeddings come before these.
    """

    begin: int
    embeds: Floats = field(repr=False)
    key: bytes
    bidirectional: bool = False
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "embeds", _floats(self.embeds))

    @property
    def end(self) -> int:
        """The index after the last."""
        return self.begin + len(self.embeds)

    def same(self, other: EmbeddingSpan) -> bool:
        """Whether it is the same content in the same place."""
        own = (self.begin, self.end, self.key, self.offset)
        return own == (other.begin, other.end, other.key, other.offset)

    def moved(self, by: int) -> EmbeddingSpan:
        """The same, so many indices later."""
        return replace(self, begin=self.begin + by)

    def within(self, begin: int, end: int) -> EmbeddingSpan:
        """The part of it between two indices, counted from the first of them."""
        first, last = max(self.begin, begin), min(self.end, end)
        skipped = first - self.begin
        embeds = self.embeds[skipped : last - self.begin]
        if self.bidirectional and len(embeds) < len(self.embeds):
            raise InputError(
                f"tokens {begin} to {end} cut a picture at {self.begin} to {self.end}, which has "
                "to be read in one step; cut before or after it"
            )
        return replace(self, begin=first - begin, embeds=embeds, offset=self.offset + skipped)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Ids and, in order, the spans of embeddings among them. Neither is copied."""

    ids: Sequence[int]
    spans: Sequence[EmbeddingSpan] = ()

    @classmethod
    def of(cls, ids: Sequence[int] | Tokens) -> Tokens:
        """Tokens as they are, or plain ids as tokens."""
        return ids if isinstance(ids, Tokens) else cls(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Tokens:
        """The tokens between two indices, with the spans' parts there.

        Raises InputError for a step other than 1, and where a bidirectional span would be cut.
        """
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise InputError(f"tokens[{part!r}]: expected tokens[begin:end]")
        begin, end, _ = part.indices(len(self))
        spans = [span for span in self.spans if span.begin < end and span.end > begin]
        return Tokens(self.ids[begin:end], [span.within(begin, end) for span in spans])

    def __add__(self, more: Tokens) -> Tokens:
        """These tokens and then more."""
        moved = (span.moved(len(self)) for span in more.spans)
        return Tokens([*self.ids, *more.ids], [*self.spans, *moved])

    def common_prefix(self, other: Tokens) -> int:
        """How many leading tokens the two have in common, embeddings included."""
        limit = min(len(self), len(other))
        for a, b in zip_longest(self.spans, other.spans):
            if a is None or b is None or not a.same(b):
                limit = min([limit, *(span.begin for span in (a, b) if span is not None)])
                break
        pairs = zip(self.ids[:limit], other.ids[:limit], strict=True)
        return next((index for index, (a, b) in enumerate(pairs) if a != b), limit)

    @property
    def blocks(self) -> list[Range]:
        """Where the bidirectional spans lie, which are read in one step each."""
        return [(span.begin, span.end) for span in self.spans if span.bidirectional]

    def uncut(self, index: int) -> int:
        """The index itself, or the beginning of the bidirectional span that it would cut."""
        return next((begin for begin, end in self.blocks if begin < index < end), index)


def checked(tokens: Tokens, config: ModelConfig, context: int, num_held: int = 0) -> Tokens:
    """Tokens that can be run after `num_held` others: some, in the vocabulary, within the context,
    their spans in order and inside. Raises InputError or ContextLengthError otherwise.
    """
    ids = token_ids(tokens.ids)
    if not ids:
        raise InputError("the prompt is empty; give at least one token")
    for token in (min(ids), max(ids)):
        if not 0 <= token < config.vocab_size:
            raise InputError(f"token id {token} is outside 0 to {config.vocab_size - 1}")
    if num_held + len(ids) > context:
        larger = " or take a larger context" if context < config.max_position_embeddings else ""
        raise ContextLengthError(
            f"the prompt has {num_held + len(ids)} tokens and the context holds {context} "
            f"(the model takes {config.max_position_embeddings}); give a shorter one{larger}"
        )
    _check_spans(tokens.spans, len(ids), config.hidden_size)
    return Tokens(ids, tokens.spans)


def _check_spans(spans: Sequence[EmbeddingSpan], length: int, width: int) -> None:
    free = 0  # the first index that no span has yet
    for span in spans:
        shape = tuple(span.embeds.shape)
        if len(shape) != 2 or shape[1] != width or not shape[0]:
            raise InputError(f"embeddings of shape {shape}; expected one or more of width {width}")
        if span.embeds.dtype != np.float32:
            raise InputError(f"embeddings of type {span.embeds.dtype}; expected floats")
        if not np.isfinite(span.embeds).all():
            raise InputError(f"embeddings at {span.begin} hold what is no finite float32")
        if not isinstance(span.begin, int | np.integer):
            raise InputError(f"embeddings at {span.begin!r:.60}; expected an index of the tokens")
        if span.begin < free or span.end > length:
            raise InputError(
                f"embeddings at {span.begin} to {span.end} of {length} tokens, where {free} is the "
                "first that is free: put spans in order, and inside"
            )
        free = span.end


def _floats(embeds: Any) -> Any:
    """Floats as float32 arrays, without a copy where they are; all else as it is. InputError for
    what is no array: a tensor without numbers or with few of them, lists of unequal lengths."""
    try:
        if hasattr(embeds, "detach"):  # a tensor, whatever its type and wherever it is
            embeds = embeds.detach().cpu()
            embeds = (embeds.float() if embeds.is_floating_point() else embeds).numpy(force=True)
        array = np.asarray(embeds)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"embeddings cannot be read as an array ({one_line(str(error), _REASON_CHARS)}); "
            "expected floats (J, D)"
        ) from None
    with np.errstate(over="ignore"):  # `checked` tells
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def step_inputs(decoder: Decoder, tokens: Tokens, position: int) -> StepInputs | None:
    """What a piece of tokens from `position` on brings beside ids; None for plain text.

    Ids that have their embeddings with a modality are no plain text either.
    """
    ids, spans = tokens.ids, tokens.spans
    if not spans:
        return StepInputs(decoder.embed(ids)) if decoder.has_own_embeddings(ids) else None
    embeds = decoder.embed(ids)
    attend_until = np.arange(position, position + len(ids), dtype=np.int64)
    for span in spans:
        embeds[span.begin : span.end] = span.embeds
        if span.bidirectional:
            attend_until[span.begin : span.end] = position + span.end - 1
    return StepInputs(embeds, attend_until if tokens.blocks else None)
