"""The native products: block formats computed on directly, with whatever the processor has.

Where the extension was built, matrices stay as the file has them and are multiplied without being
expanded: few tokens by integer dot products that give a token the same numbers alone as among
sixteen, many tokens on panels of expanded rows (docs/kernels.md). Without it, or for formats that
it does not know, everything goes through `reference`, slowly and exactly.

    y = cpu.linear(x, packed)                    # (..., C) -> (..., R); the reference's signature
    GEMELO_ISA=generic gemelo generate ...       # or avx2, avx2_vnni, avx512, amx, neon, reference

The operators are registered with torch as `gemelo::linear` and `gemelo::embedding`, with fake
implementations, so that exporting and compiling know them. Called on plain tensors they skip the
dispatcher, which costs more than a small product. Legend: R rows, C columns.
"""

from __future__ import annotations

import os
from enum import Enum, auto
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, library

from gemelo.errors import InputError
from gemelo.kernels import reference
from gemelo.kernels.formats import FORMATS_BY_ID, Format, Packed

DTYPES = (torch.float32, torch.bfloat16)
MAX_THREADS = 1024
REFERENCE = "reference"


class Layout(Enum):
    """How a matrix lies: as in the file, or as one of the copies of `kernels.panels`. Names are the
    extension's."""

    ROWS, PANELS, STRIPS = auto(), auto(), auto()


def _extension() -> ModuleType | None:
    try:
        return import_module("gemelo.kernels._native")
    except ImportError:
        return None


def _chosen(module: ModuleType | None) -> ModuleType | None:
    """The compiled module, set to the instruction set that the environment asks for."""
    asked = os.environ.get("GEMELO_ISA", "")
    if not asked:
        return module
    if asked == REFERENCE:
        return None
    if module is None:
        raise InputError(
            f"GEMELO_ISA={asked}, but the native kernels were not built: install a C++ "
            "compiler and install gemelo again"
        )
    if asked not in module.names():
        raise InputError(
            f"GEMELO_ISA={asked}; this machine has {', '.join(module.names())}, {REFERENCE}"
        )
    module.use(asked)
    return module


# The child of a fork has none of torch's threads, and torch's OpenMP waits for them for good. The
# native products, which matter, make threads of their own there (kernels/csrc/runtime/pool.cpp).
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

if TYPE_CHECKING:
    from gemelo.kernels import _native

    extension = _native
else:
    extension = _extension()  # None where it was not built
native = _chosen(extension)  # None where nothing is to be computed by it, either

# The formats that it multiplies, by our names.
_FORMATS = {
    name.lower(): format
    for name, format in ({} if extension is None else extension.Format.__members__).items()
}
FORMATS = frozenset(_FORMATS)


def isa() -> str:
    """The instruction set in use, or "reference"."""
    return REFERENCE if native is None else str(native.name())


def what_is_lost() -> str | None:
    """A sentence for people whose installation has no native kernels; None if it has, or if the
    environment asked for the reference."""
    if native is not None or os.environ.get("GEMELO_ISA") == REFERENCE:
        return None
    return (
        "the native kernels were not built, so that quantised weights run ten times slower or "
        "worse; install a C++ compiler and install gemelo again"
    )


def instruction_sets() -> list[str]:
    """Those that this machine runs, the fastest first."""
    return [] if native is None else list(native.names())


def use(name: str) -> None:
    """Compute with one of `instruction_sets()`; InputError for another."""
    if native is None or name not in native.names():
        raise InputError(f"{name!r} is not one of {', '.join(instruction_sets()) or REFERENCE}")
    native.use(name)


def set_threads(count: int) -> None:
    """Threads of the native products, the caller's included, in this process."""
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads = {count}; expected 1 to {MAX_THREADS}")
    if native is not None:
        native.set_threads(count)


def read(memory: Tensor) -> None:
    """Read a contiguous tensor with all threads, as products read weights; for measuring."""
    if native is None:
        memory.view(torch.float32).sum()
    else:
        native.read(memory.data_ptr(), memory.nbytes)


def largest(scores: Tensor) -> int:
    """Where the largest of scores (V,) on the CPU is, the first if there are several.

    All threads look, each where it wrote, if a native step made the scores.
    """
    if native is None or scores.dtype != torch.float32 or not scores.is_contiguous():
        return int(scores.numpy().argmax())  # ten times as fast as torch's
    return extension.argmax(scores.data_ptr(), scores.numel())


def takes(x: Tensor, weight: Packed) -> bool:
    """Whether the native products run these; everything else is the reference's."""
    return (
        native is not None
        and weight.format.name in FORMATS
        and x.device.type == "cpu"
        and x.dtype in DTYPES
    )


def linear(x: Tensor, weight: Packed, index: Tensor | None = None) -> Tensor:
    """x (..., C) times weight (R, C) transposed: (..., R) in x's dtype, or only the rows that
    `index` (N) names: (..., N)."""
    if not takes(x, weight):
        return _reference_linear(x, weight, index)
    if type(x) is Tensor and not torch.compiler.is_compiling():
        return _linear(x, weight, index)
    out: Tensor = torch.ops.gemelo.linear(x, weight.blocks, weight.format.ggml_id, index)
    return out


def embedding(ids: Tensor, weight: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows of weight (R, C) that integer ids (...) name: (..., C) in `dtype`."""
    if not _gathers(ids, weight, dtype):
        return reference.embedding(ids, weight, dtype)
    if type(ids) is Tensor and not torch.compiler.is_compiling():
        return _embedding(ids, weight, dtype)
    out: Tensor = torch.ops.gemelo.embedding(ids, weight.blocks, weight.format.ggml_id, dtype)
    return out


def _gathers(ids: Tensor, weight: Packed, dtype: torch.dtype) -> bool:
    known = native is not None and weight.format.name in FORMATS
    return known and ids.device.type == "cpu" and dtype in DTYPES


def _reference_linear(x: Tensor, weight: Packed, index: Tensor | None) -> Tensor:
    return reference.linear(x, weight if index is None else reference.chosen_rows(weight, index))


def _linear(x: Tensor, weight: Packed, index: Tensor | None) -> Tensor:
    rows, columns = weight.shape
    if x.shape[-1:] != (columns,):
        raise InputError(
            f"an input of shape {tuple(x.shape)} does not fit a weight of {rows} x {columns}"
        )
    if index is not None:
        if index.dim() != 1:
            raise InputError(f"an index of shape {tuple(index.shape)}; expected one dimension")
        index = _checked(index, rows)
        rows = len(index)
    out = x.new_empty(*x.shape[:-1], rows)
    tokens = out.numel() // rows if rows else 0
    if not tokens or not columns:
        return out.zero_()
    inputs = x if x.is_contiguous() else x.contiguous()
    bf16 = x.dtype == torch.bfloat16
    extension.product(
        inputs.data_ptr(), columns, bf16, tokens, matrix(weight, index), out.data_ptr(), rows, bf16
    )
    return out


def _embedding(ids: Tensor, weight: Packed, dtype: torch.dtype) -> Tensor:
    rows, columns = weight.shape
    index = _checked(ids, rows)
    out = torch.empty(*ids.shape, columns, dtype=dtype)
    extension.gather(
        index.data_ptr(), index.numel(), matrix(weight),
        out.data_ptr(), columns, dtype == torch.bfloat16,
    )  # fmt: skip
    return out


def _checked(index: Tensor, rows: int) -> Tensor:
    """Row numbers as the kernels read them; InputError if one lies outside the matrix."""
    if index.is_floating_point() or index.dtype == torch.bool:
        raise InputError(f"ids must be integers, not {index.dtype}")
    index = index.to(torch.int64).contiguous()
    if index.numel():
        low, high = (int(end) for end in torch.aminmax(index))
        if low < 0 or high >= rows:
            raise InputError(f"row {low if low < 0 else high} of a matrix of {rows} rows")
    return index


def matrix(weight: Packed, index: Tensor | None = None) -> extension.Matrix:
    """What the kernels call a matrix: `weight`, or its rows at `index` (N,) int64, by address."""
    blocks = weight.blocks
    return matrix_at(blocks.data_ptr(), blocks.stride(0), weight.format, weight.shape, index)


def matrix_at(
    address: int,
    stride: int,
    format: Format,
    shape: tuple[int, int],
    index: Tensor | None = None,
    layout: Layout = Layout.ROWS,
) -> extension.Matrix:
    """The same of blocks at an address; `stride` bytes as in kernels/csrc/gemm/formats.h."""
    rows, place = (shape[0], 0) if index is None else (len(index), index.data_ptr())
    lies = extension.Layout[layout.name]
    return extension.Matrix(address, stride, _FORMATS[format.name], rows, shape[1], place, lies)


def panel_bytes(format: Format, columns: int) -> int:
    """Bytes of sixteen rows, interleaved; 0 for a format that has no panels."""
    return extension.panel_bytes(_FORMATS[format.name], columns)


def native_module() -> ModuleType:
    """The extension; only called where it computes."""
    assert native is not None
    return native


# ---- torch's operators ---------------------------------------------------------------------------


@library.custom_op("gemelo::linear", mutates_args=())
def _linear_operator(x: Tensor, blocks: Tensor, format: int, index: Tensor | None = None) -> Tensor:
    weight = _packed(blocks, format)
    product = _linear if takes(x, weight) else _reference_linear
    return product(x, weight, index)


@_linear_operator.register_fake
def _(x: Tensor, blocks: Tensor, format: int, index: Tensor | None = None) -> Tensor:
    rows = blocks.shape[0] if index is None else len(index)
    return x.new_empty(*x.shape[:-1], rows)


@library.custom_op("gemelo::embedding", mutates_args=())
def _embedding_operator(ids: Tensor, blocks: Tensor, format: int, dtype: torch.dtype) -> Tensor:
    weight = _packed(blocks, format)
    gather = _embedding if _gathers(ids, weight, dtype) else reference.embedding
    return gather(ids, weight, dtype)


@_embedding_operator.register_fake
def _(ids: Tensor, blocks: Tensor, format: int, dtype: torch.dtype) -> Tensor:
    return ids.new_empty(*ids.shape, _packed(blocks, format).shape[1], dtype=dtype)


def _packed(blocks: Tensor, format: int) -> Packed:
    """The matrix of a format's number; InputError for a number that no format has."""
    if format not in FORMATS_BY_ID:
        raise InputError(f"no block format has the number {format}")
    return Packed(blocks, FORMATS_BY_ID[format])
