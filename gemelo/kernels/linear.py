"""Quantised linear and embedding layers: the forwards of `models.layers`, over block formats.

A model is built with plain layers and these are put in their place, so no model file knows that
weights can be quantised. The blocks stay as they lie in the file, memory-mapped, and `products`
computes on them as they are, or decodes them a few rows at a time. Parameters keep the name
`weight` in messages and tables.

    linear = QuantLinear(packed);  y = linear(x, rows=8192)

D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemelo.errors import UnsupportedError
from gemelo.kernels import products
from gemelo.kernels.quants import FORMATS, Format, Packed


class QuantLinear(nn.Module):
    """y = x W^T with W in blocks; rows and columns select a leading part, as a view."""

    def __init__(self, weight: Packed) -> None:
        super().__init__()
        self.register_buffer("blocks", weight.blocks, persistent=False)
        self.format: Format = weight.format

    @property
    def weight(self) -> Packed:
        """The matrix (out, in) as it is stored."""
        blocks = self.blocks
        assert isinstance(blocks, Tensor)
        return Packed(blocks, self.format)

    def forward(self, x: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
        """x (..., columns) -> (..., rows) in x's dtype."""
        return products.linear(x, self.weight.prefix(rows, columns))

    def rows_at(self, x: Tensor, index: Tensor) -> Tensor:
        """Only the outputs at `index`: x (..., in) -> (..., len(index)), reading those rows."""
        return products.linear(x, self.weight, index)

    def columns_at(self, h: Tensor, index: Tensor, width: int) -> Tensor:
        """The product with an input of `width` that is h at `index` and zero elsewhere."""
        x = h.new_zeros(*h.shape[:-1], width).index_copy(-1, index, h)
        return self.forward(x, columns=width)


class QuantEmbedding(nn.Module):
    """Token rows and the tied head, over one quantised matrix (V, D)."""

    def __init__(self, weight: Packed, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("blocks", weight.blocks, persistent=False)
        self.format: Format = weight.format
        self.dtype = dtype

    @property
    def weight(self) -> Packed:
        """The matrix (V, D) as it is stored."""
        blocks = self.blocks
        assert isinstance(blocks, Tensor)
        return Packed(blocks, self.format)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> rows (B, T, D) in the activation dtype, unscaled."""
        return products.embedding(ids, self.weight, self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) -> scores over the vocabulary (..., V): the tied head."""
        return products.linear(x, self.weight)


def as_blocks(weight: Tensor) -> Packed:
    """A float matrix as blocks of one: it stays mapped, and is widened as it is used."""
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
    if weight.dtype not in names:
        raise UnsupportedError(f"weights of type {weight.dtype} are not run; convert them to bf16")
    return Packed(weight.view(torch.uint8), FORMATS[names[weight.dtype]])


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's own weights, quantised or not, children left out."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.nbytes for tensor in own)
