"""Embeddings of the ids past Gemma 3n's text vocabulary, which its towers have and not its decoder.

The end of an image, the placeholders, the padding: a few hundred ids whose embeddings come with the
towers, and go through a norm and a projection of theirs (`models.embedder`). They do not change, so
they are a small table, made when the first of them is met, without loading a tower.

    special = ModalityEmbeddings.of(source)
    special.rows([2, 262144])                     # {1: (D,)}

E tower width, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from gemelo.checkpoints.source import Source
from gemelo.config import AudioConfig, Vision3nConfig
from gemelo.kernels.quants import Floats, Packed, unpack


class Embedder:
    """The ids of one modality, and the table of their embeddings."""

    def __init__(
        self, tower: Vision3nConfig | AudioConfig, prefix: str, tensor: Callable[[str], Packed]
    ) -> None:
        """prefix is that of its weights' names: `embed_vision.` or `embed_audio.`."""
        self.vocab, self.eps, self.prefix, self.tensor = (
            tower.vocab, tower.rms_norm_eps, prefix, tensor
        )  # fmt: skip

    @cached_property
    def table(self) -> Floats:
        """Embeddings of all its ids, (len(vocab), D): as `models.embedder` has them."""
        rows = self._weight("embedding")  # (len(vocab), E)
        normed = rms_norm(rows, self.eps) * self._weight("hard_embedding_norm")
        projected = np.matmul(normed, self._weight("embedding_projection").T, dtype=np.float32)
        return rms_norm(projected, self.eps)

    def _weight(self, name: str) -> Floats:
        return unpack(self.tensor(f"{self.prefix}{name}.weight"))


class ModalityEmbeddings:
    """Embeddings of ids from `first` on, as far as they belong to a modality."""

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        self.embedders = embedders
        self.first = min(embedder.vocab.start for embedder in embedders)

    @classmethod
    def of(cls, source: Source) -> ModalityEmbeddings | None:
        """Those of an open source; None for a model that has none."""
        config = source.config
        towers = ((config.vision, "embed_vision."), (config.audio, "embed_audio."))
        embedders = [
            Embedder(tower, prefix, source.tensor)
            for tower, prefix in towers
            if isinstance(tower, Vision3nConfig | AudioConfig)  # others have no ids of their own
        ]
        return cls(embedders) if embedders else None

    def rows(self, ids: Sequence[int]) -> dict[int, Floats]:
        """By place in ids, the embeddings (D,) of those that belong to a modality."""
        return {
            place: embedder.table[id - embedder.vocab.start]
            for place, id in enumerate(ids)
            for embedder in self.embedders
            if id in embedder.vocab
        }


def rms_norm(x: Floats, eps: float) -> Floats:
    """x / rms(x) over the last dimension."""
    normed: Floats = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps))
    return normed
