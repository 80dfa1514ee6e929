"""Quantised linear and embedding layers: the forwards of `models.layers`, over block formats.

A model is built with plain layers and these are put in their place, so no model file knows that
weights can be quantised. On the CPU the blocks stay as they lie in the file, memory-mapped, and the
native kernels multiply them where they are, by address; what the kernels do not take is expanded a
few rows at a time (`models.blocks`): tensors of a device, other formats and dtypes, and torch's
fake tensors, which have a shape and no memory, so that a model can be exported. Parameters keep the
name `weight` in messages and tables.

    layer = QuantLinear(packed, device="cuda");  y = layer(x, rows=8192)

Legend: R rows (outputs), C columns (inputs), D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gemelo.errors import InputError, UnsupportedError
from gemelo.kernels import cpu, native
from gemelo.kernels.packed import FORMATS, Format, Packed, matrix_shape, own_dims
from gemelo.kernels.reference import checked_index
from gemelo.models import blocks as reference
from gemelo.models.blocks import Blocks

if TYPE_CHECKING:
    from gemelo.kernels._native import Matrix

DTYPES = (torch.float32, torch.bfloat16)  # of activations, which the kernels read and write
FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in FLOATS.items()}


class QuantLayer(nn.Module):
    """A matrix in blocks, here or on a device."""

    def __init__(self, weight: Packed, device: torch.device | str = "cpu") -> None:
        """On the CPU the layer refers to the memory that `weight` has."""
        super().__init__()
        self.register_buffer("blocks", bytes_of(weight).to(device), persistent=False)
        self.format: Format = weight.format

    @property
    def stored(self) -> Blocks:
        """The matrix as it is stored, where it is."""
        assert isinstance(self.blocks, Tensor)
        return Blocks(self.blocks, self.format)

    @property
    def weight(self) -> Packed:
        """The matrix as it is stored: a view on the CPU, a copy of what a device holds."""
        return Packed(self.stored.tensor.cpu().numpy(), self.format)


class QuantLinear(QuantLayer):
    """y = x W^T with W in blocks; rows and columns select a leading part, as a view."""

    def forward(self, x: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
        """x (..., columns) -> (..., rows) in x's dtype."""
        return linear(x, self.stored.prefix(rows, columns))


class QuantEmbedding(QuantLayer):
    """Token rows and the tied head, over one quantised matrix (V, D)."""

    def __init__(
        self, weight: Packed, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(weight, device)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> rows (B, T, D) in the activation dtype, unscaled."""
        return embedding(ids, self.stored, self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) -> scores over the vocabulary (..., V): the tied head."""
        return linear(x, self.stored)


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's own weights, quantised or not, children left out."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.nbytes for tensor in own)


# ---- products ------------------------------------------------------------------------------------


def takes(x: Tensor, weight: Blocks, dtype: torch.dtype) -> bool:
    """Whether `linear` of x, or `embedding` of ids x, runs natively with numbers of `dtype`."""
    return (
        native.module is not None
        and weight.format.name in cpu.FORMATS
        and x.device.type == weight.tensor.device.type == "cpu"
        and dtype in DTYPES
        and type(x) is Tensor  # others may have no memory
    )


def linear(x: Tensor, weight: Blocks, index: Tensor | None = None) -> Tensor:
    """x (..., C) times weight (R, C) transposed: (..., R) in x's dtype, or only the rows that
    `index` (N) names: (..., N)."""
    if not takes(x, weight, x.dtype):
        chosen = weight if index is None else reference.chosen_rows(weight, index)
        return reference.linear(x, chosen)
    rows, columns = weight.shape
    if x.shape[-1:] != (columns,):
        raise InputError(
            f"an input of shape {tuple(x.shape)} does not fit a weight of {rows} x {columns}"
        )
    if index is not None and index.dim() != 1:
        raise InputError(f"an index of shape {tuple(index.shape)}; expected one dimension")
    chosen_index = None if index is None else _numbers(index, rows)
    rows = rows if chosen_index is None else len(chosen_index)
    out = x.new_empty(*x.shape[:-1], rows)
    tokens = out.numel() // rows if rows else 0
    if not tokens or not columns:
        return out.zero_()
    inputs, bf16 = x.contiguous(), x.dtype == torch.bfloat16
    native.extension.product(
        inputs.data_ptr(), columns, bf16, tokens, _matrix(weight, chosen_index),
        out.data_ptr(), rows, bf16,
    )  # fmt: skip
    return out


def embedding(ids: Tensor, weight: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows of weight (R, C) that integer ids (...) name: (..., C) in `dtype`."""
    if not takes(ids, weight, dtype):
        return reference.embedding(ids, weight, dtype)
    rows, columns = weight.shape
    index = _numbers(ids, rows)
    out = torch.empty(*ids.shape, columns, dtype=dtype)
    native.extension.gather(
        cpu.address_of(index), index.size, _matrix(weight),
        out.data_ptr(), columns, dtype == torch.bfloat16,
    )  # fmt: skip
    return out


def _numbers(index: Tensor, rows: int) -> NDArray[np.int64]:
    return checked_index(index.detach().numpy(), rows)


def _matrix(weight: Blocks, index: NDArray[np.int64] | None = None) -> Matrix:
    tensor = weight.tensor
    return cpu.matrix_at(tensor.data_ptr(), tensor.stride(0), weight.format, weight.shape, index)


# ---- torch's tensors and ours, over the same memory ----------------------------------------------


def bytes_of(packed: Packed) -> Tensor:
    """The blocks of a tensor, (R, row_bytes) uint8, over the same memory, which stays alive."""
    if not packed.nbytes:
        return torch.empty(packed.blocks.shape, dtype=torch.uint8)
    return torch.from_numpy(np.asarray(_Writable(packed.blocks)))


def tensor_of(packed: Packed) -> Tensor:
    """A tensor of plain floats over the same memory, of its own shape; UnsupportedError for block
    formats, which `Blocks` is for."""
    dtype = FLOATS.get(packed.format.name)
    if dtype is None:
        raise UnsupportedError(f"weights in {packed.format.name} are blocks, and no plain floats")
    return bytes_of(packed).view(dtype).view(packed.shape)


def packed_of(weight: Tensor) -> Packed:
    """A tensor of floats, on the CPU, as blocks of one over the same memory if it is contiguous;
    UnsupportedError for other dtypes."""
    if weight.dtype not in _NAMES:
        raise UnsupportedError(f"weights of type {weight.dtype} are not run; convert them to bf16")
    shape = tuple(weight.shape)
    if not weight.numel():  # whose strides may be anything
        weight = torch.empty(shape, dtype=weight.dtype)
    matrix = weight.detach().reshape(matrix_shape(shape)).contiguous().view(torch.uint8)
    return Packed(matrix.numpy(), FORMATS[_NAMES[weight.dtype]], own_dims(shape))


class _Writable:
    """An array that torch takes without a word: it warns of those that may only be read, and
    nobody writes to a weight."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        address = cpu.address_of(array)
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.array = array  # stays alive
