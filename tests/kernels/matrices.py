"""Random matrices in every block format, and what to multiply them with."""

from __future__ import annotations

import torch
from torch import Tensor

from gemelo.kernels.formats import Format, Packed

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
MINIMA = ("q4_k", "q5_k")


def half_bytes(x: Tensor) -> Tensor:
    return x.half()[..., None].view(torch.uint8)


def scale_offsets(format: Format) -> list[int]:
    """Where a block keeps its half-precision scales (and minima)."""
    if format.name in MINIMA:
        return [0, 2]
    return [208] if format.name == "q6_k" else [0]


def random_weight(format: Format, rows: int, columns: int, seed: int = 0) -> Packed:
    """Random integers in every block, with scales of a usual size."""
    generator = torch.Generator().manual_seed(seed)
    if format.name in FLOATS:
        x = torch.randn(rows, columns, generator=generator).mul_(0.05)
        return Packed(x.to(FLOATS[format.name]).view(torch.uint8), format)
    size = (rows, format.row_bytes(columns))
    blocks = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    each = blocks.view(rows, -1, format.block_bytes)
    for at in scale_offsets(format):
        scales = torch.rand(each.shape[:2], generator=generator) * 0.001 + 0.0001
        each[:, :, at : at + 2] = half_bytes(scales)
    return Packed(blocks, format)


def random_input(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Activations with columns of very different sizes, as hidden states have them."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(shape[-1], generator=generator) * 3
    return (torch.randn(*shape, generator=generator) * spread).to(dtype)


def odd_columns(format: Format, number: int = 5) -> int:
    """An odd number of blocks; of plain floats, no multiple of any register."""
    return 16 * number - 3 if format.block == 1 else number * format.block
