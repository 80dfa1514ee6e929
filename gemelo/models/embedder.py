"""Multimodal embedder of Gemma 3n: tower features, and ids of a modality, as decoder embeddings.

Two ways lead into the decoder's space, with a norm each and one projection for both: features
of a tower, and the few ids past the text vocabulary that a modality has of its own (the end of
an image, the placeholder, the padding). What comes out has unit RMS and takes no further scale,
unlike text embeddings.

    x = embedder(features);  x = embedder.embed(ids)          # (B, J, D)

B rows, J tokens, E tower width, D decoder width.
"""

from __future__ import annotations

from torch import Tensor

from gemelo.models.layers import Embedding, Linear, Module, RMSNorm, rms_norm

NORM_OFFSET = 0.0  # weights multiply as they are


class MultimodalEmbedder(Module):
    """Features of a tower, or ids of its vocabulary, as decoder embeddings."""

    def __init__(self, vocab: range, width: int, text_width: int, eps: float) -> None:
        """vocab: the modality's own ids; `width` is E, `text_width` D."""
        super().__init__()
        self.vocab = vocab
        self.eps = eps
        self.embedding = Embedding(len(vocab), width)
        self.hard_embedding_norm = RMSNorm(width, eps, NORM_OFFSET)
        self.soft_embedding_norm = RMSNorm(width, eps, NORM_OFFSET)
        self.embedding_projection = Linear(width, text_width)

    @property
    def pad_id(self) -> int:
        """The id whose embedding stands in for a token that a clip is too short to fill."""
        return self.vocab[-1]

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, J, E) -> (B, J, D)."""
        return self.project(self.soft_embedding_norm(features))

    def embed(self, ids: Tensor) -> Tensor:
        """Ids of this vocabulary (B, J) -> (B, J, D)."""
        return self.project(self.hard_embedding_norm(self.embedding(ids - self.vocab.start)))

    def project(self, x: Tensor) -> Tensor:
        """(B, J, E) -> (B, J, D) with unit RMS."""
        return rms_norm(self.embedding_projection(x), self.eps).to(x.dtype)
