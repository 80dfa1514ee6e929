"""Text decoder: what Gemma 3 and Gemma 3n have in common, embeddings in and the tied head out.

`Gemma3` and `Gemma3n` are the two there are. Whoever runs modules holds either by this type, and
what one of them has nothing of is None there, so that nobody has to ask which one it is.

    hidden = decoder(ids, positions, cache, logits_to_keep=1)      # (B, 1, D)
    scores = decoder.logits(hidden[:, -1])                         # (B, V)

B rows, T tokens, D width, L layers, V vocabulary, P width of a per-layer embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from gemelo.config import ModelConfig, Submodel
from gemelo.models.layers import (
    Cache,
    Embedding,
    Linear,
    Module,
    RMSNorm,
    StepInputs,
    rounded,
    softcap,
)


class PerLayerTable(Protocol):
    """Per-layer embeddings out of the way, as a decoder asks for them: see
    `gemelo.engine.modules.decoder`."""

    def rows(self, ids: Tensor, kept: Sequence[int]) -> Tensor:
        """ids (B, T) -> their vectors for the layers `kept` of the whole model, (B, T, L, P)."""


class ModalityEmbeddings(Protocol):
    """Embeddings of ids past the text vocabulary: see
    `gemelo.engine.modules.decoder`."""

    def contains(self, ids: Tensor) -> bool:
        """Whether there are such ids."""

    def replace(self, x: Tensor, ids: Tensor) -> Tensor:
        """The embeddings x (B, T, D) of ids (B, T), with theirs in place."""


class Decoder(Module):
    """Token ids in, hidden states out; `logits` is the tied head, or `lm_head` where there is one.

    `modality_embeddings`, where there are any, is asked for ids of a tower, and `per_layer_table`
    instead of `embed_tokens_per_layer`. That and `per_layer_model_projection` are there where the
    config gives per-layer embeddings a width.
    """

    config: ModelConfig
    embed_tokens: Embedding
    embed_tokens_per_layer: Embedding
    per_layer_model_projection: Linear
    layers: nn.ModuleList
    norm: RMSNorm
    lm_head: Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layer_indices: Sequence[int] = config.layers  # in the whole model
        self.modality_embeddings: ModalityEmbeddings | None = None
        self.per_layer_table: PerLayerTable | None = None

    @abstractmethod
    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        logits_to_keep: int | None = None,
        inputs: StepInputs | None = None,
    ) -> Tensor:
        """ids, positions (B, T) -> normalised hidden states (B, T, D).

        `logits_to_keep` gives those of the last tokens alone; 0 writes the cache and computes
        nothing else. Position -1 is padding. `inputs` holds the embeddings where not all tokens are
        text; an image's tokens that see each other both ways have to be in one step.
        """

    @abstractmethod
    def view(self, submodel: Submodel) -> Decoder:
        """The nested model that a sub-model is: same storage, nothing copied. Its keys go to the
        places of the whole model in a cache, so that one cache serves both.

        Raises InputError for a decoder that nothing is nested in.
        """

    def embed(self, ids: Tensor) -> Tensor:
        """Rows times sqrt(D), the root rounded to the activation dtype as in training.

        Ids past the text vocabulary (end markers, mostly) have embeddings with their towers.
        """
        x = self.embed_tokens(ids)
        x = x * rounded(self.config.embed_scale, x)
        if self.modality_embeddings is None or not self.modality_embeddings.contains(ids):
            return x
        return self.modality_embeddings.replace(x, ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> next-token scores (..., V) in float32, soft-capped where asked."""
        tied = self.config.tie_word_embeddings
        scores = self.embed_tokens.project(hidden) if tied else self.lm_head(hidden)
        return softcap(scores.float(), self.config.final_logit_softcapping)
