"""Decoder: what an engine asks of a model that runs, whatever runs it.

Two implementations. `native_decoder.NativeDecoder` runs the decoder's program over its weights, on
the CPU; it is what every model on a CPU runs. `modules.decoder.ModuleDecoder` runs torch modules:
on CUDA, in training, and as the oracle of tests. Each makes the caches that it writes.

    scores, finite = decoder.step([ids], [positions], cache, logits_to_keep=1)

B rows, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gemelo.config import ModelConfig, Submodel
from gemelo.config.options import KVFormat
from gemelo.engine.kv import KVCache
from gemelo.engine.slots import Integers
from gemelo.kernels.quants import Floats
from gemelo.weights.tensors import Weights

Rows = Sequence[Sequence[int]]  # of ids or positions, as many in each


class StepInputs(NamedTuple):
    """What a step brings beside ids, where pictures or sounds are among its tokens.

    inputs_embeds (B, T, D) are used instead of the ids' own; attend_until (B, T) is the last
    position that each token sees, which for those of a picture lies ahead; None for their own.
    """

    inputs_embeds: Floats
    attend_until: Integers | None = None


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

    def step(
        self,
        ids: Rows,
        positions: Rows,
        cache: KVCache,
        logits_to_keep: int | None = None,
        inputs: StepInputs | None = None,
    ) -> tuple[Floats, bool]:
        """ids, positions (B, T) -> scores of all or the last tokens, (B * (T or logits_to_keep), V)
        float32, and whether all are finite; writes the cache.

        logits_to_keep 0 writes the cache and computes nothing else. Position -1 is padding. An
        image's tokens that see each other both ways have to be in one step.
        """

    def has_own_embeddings(self, ids: Sequence[int]) -> bool:
        """Whether there are ids past the text vocabulary, which have their embeddings elsewhere."""

    def embed(self, ids: Rows) -> Floats:
        """What ids (B, T) go in as, (B, T, D) float32, scaled; those of a modality included."""

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

    def cache(
        self, context: int, rows: int = 1, chunk: int = 512, kv_format: KVFormat | None = None
    ) -> KVCache:
        """An empty cache of so many rows."""
