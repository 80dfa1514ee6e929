"""Decoder: what an engine asks of a model that runs, whatever runs it.

Two implementations. `native_decoder.NativeDecoder` runs the decoder's program over its weights, on
the CPU; it is what every model on a CPU runs. `modules.decoder.ModuleDecoder` runs torch modules:
on CUDA, in training, and as the oracle of tests. Each makes the caches that it writes.

A step is a list of pieces: prompts, or single tokens, of as many sequences as there are, each with
a cache of its own. A token's bits are the same alone and in any company: which path it takes
depends on the piece it is in, and never on the step.

    [scores], finite = decoder.step([StepPiece(cache, ids, position=0, logits_to_keep=1)])

T tokens of a piece, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gemelo.config import ModelConfig, Submodel
from gemelo.config.options import KVFormat
from gemelo.engine.kv import KVCache
from gemelo.engine.slots import Integers
from gemelo.errors import InputError
from gemelo.kernels.quants import Floats
from gemelo.weights.tensors import Weights

FEW_TOKENS = 16  # up to here a token's bits are its own alone; the extension's kFewTokens


class StepInputs(NamedTuple):
    """What a piece brings beside ids, where pictures or sounds are among its tokens.

    inputs_embeds (T, D) are used instead of the ids' own; attend_until (T,) is the last position
    that each token sees, which for those of a picture lies ahead; None for their own.
    """

    inputs_embeds: Floats
    attend_until: Integers | None = None


class StepPiece(NamedTuple):
    """Consecutive tokens of one sequence, as one step takes them.

    A step may have several pieces of one cache, one behind the other. logits_to_keep is of how many
    of the last tokens scores are wanted; None is all, 0 writes the cache and computes nothing else.
    An image's tokens that see each other both ways have to be in one piece.
    """

    cache: KVCache
    ids: Sequence[int]
    position: int  # of the first token
    logits_to_keep: int | None = None
    inputs: StepInputs | None = None

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.position + len(self.ids)

    @property
    def num_scored(self) -> int:
        """Tokens that scores are wanted of."""
        return len(self.ids) if self.logits_to_keep is None else self.logits_to_keep

    @property
    def exact(self) -> bool:
        """Whether its tokens are so few that they take the path of one."""
        return len(self.ids) <= FEW_TOKENS


class Decoder(Protocol):
    """Token ids in, scores out. `weights` are the whole model's, also of a sub-model's view;
    `config` is that of what runs, layer_indices the whole's layers that do."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def weights(self) -> Weights: ...

    @property
    def layer_indices(self) -> Sequence[int]: ...

    @property
    def device_name(self) -> str:
        """Where it computes: "cpu", or a CUDA device."""

    @property
    def kv_format(self) -> KVFormat:
        """The format that its caches have if nobody asks for one."""

    def step(self, pieces: Sequence[StepPiece]) -> tuple[list[Floats], bool]:
        """The scores of every piece, (T or logits_to_keep, V) float32, in order, and whether all
        are finite; writes the caches."""

    def has_own_embeddings(self, ids: Sequence[int]) -> bool:
        """Whether there are ids past the text vocabulary, which have their embeddings elsewhere."""

    def embed(self, ids: Sequence[int]) -> Floats:
        """What ids (T,) go in as, (T, D) float32, scaled; those of a modality included."""

    def view(self, submodel: Submodel) -> Decoder:
        """The nested model that a sub-model is: same storage, nothing copied. Its keys go to the
        places of the whole model in a cache, so that one cache serves both.

        Raises InputError for a decoder that nothing is nested in.
        """

    def prepare(self, num_tokens: int) -> float:
        """Do once what makes all steps faster, if it pays before so many tokens: a first short
        prompt need not wait for it. Returns the seconds that it took. Results are the same before
        and after; a step does it where its caller has not."""

    def prefetch(self, ids: Sequence[int]) -> None:
        """Have what a step will look up for ids read ahead, if it lies out of the way."""

    def cache(self, context: int, chunk: int = 512, kv_format: KVFormat | None = None) -> KVCache:
        """An empty cache of one sequence."""


def check_pieces(pieces: Sequence[StepPiece], vocab_size: int) -> None:
    """Raise InputError for ids and counts that would be read elsewhere, and for pieces of one cache
    that do not lie one behind the other."""
    ends: dict[KVCache, int] = {}
    for piece in pieces:
        ids, tokens = piece.ids, len(piece.ids)
        if not tokens or not 0 <= piece.num_scored <= tokens or piece.position < 0:
            raise InputError(
                f"scores of {piece.num_scored} of {tokens} tokens at {piece.position}; expected "
                "some tokens, no more scores than there are, and no place before the first"
            )
        for id in (min(ids), max(ids)):
            if not 0 <= id < vocab_size:
                raise InputError(f"token id {id} is outside 0 to {vocab_size - 1}")
        before = ends.get(piece.cache, piece.position)
        if before != piece.position:
            raise InputError(
                f"a piece at {piece.position} of a cache whose piece before it ends at {before}"
            )
        ends[piece.cache] = piece.end


def make_room(pieces: Sequence[StepPiece]) -> None:
    """For the tokens of all pieces in their caches; see `KVCache.make_room`. If one has none, no
    cache has changed."""
    needs: dict[KVCache, tuple[int, int]] = {}  # tokens of this step, and where they end
    for piece in pieces:
        tokens, _ = needs.get(piece.cache, (0, 0))
        needs[piece.cache] = tokens + len(piece.ids), piece.end
    for cache, need in needs.items():
        cache.slots.check_room(*need)
    for cache, need in needs.items():
        cache.make_room(*need)
