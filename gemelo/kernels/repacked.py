"""Repacked weights: sixteen rows of a matrix interleaved into panels, in huge pages.

A mapped file is memory in pages of 4 KiB, and rows lie in it one after the other. Processors read
large pages faster (by a third on the machines measured), and a product with few tokens needs no
sums across lanes when sixteen rows are interleaved (csrc/gemm/panels.h). So where memory allows
it, matrices move once, when a model is loaded, at the speed of a copy; the pages of the file are
let go by whoever asked for that (`memory.pages.release`), so that one copy stays. What cannot be
interleaved (plain floats, matrices of which single rows are read) moves as it is. Matrices that
mostly meet zeros lie in strips, a column or two of all rows each, so that a few columns can be read
and the rest left.

    panels = Panels([packed, ...], rows=[up_proj, ...], strips=[down_proj, ...])
    panels.matrix(packed.prefix(8192))        # for the kernels: a leading part, wherever it lies
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gemelo.kernels import cpu, native
from gemelo.kernels.cpu import Layout
from gemelo.kernels.quants import Packed

if TYPE_CHECKING:
    from gemelo.kernels._native import Matrix

_LINE = 64  # bytes; matrices begin at whole cache lines
_PIECE_BYTES = 16 << 20
PANEL_ROWS = 16
_TOGETHER = 4  # panels whose strips are interleaved


class _Place(NamedTuple):
    start: int  # in the room, bytes
    stride: int  # from row to row or panel to panel; of strips, of a line of all panels
    layout: Layout


class Panels:
    """Copies of matrices for the native products of one process."""

    def __init__(
        self,
        panels: Sequence[Packed],
        rows: Sequence[Packed] = (),
        strips: Sequence[Packed] = (),
        moved: Callable[[Tensor], object] = lambda blocks: None,
    ) -> None:
        """Copy matrices as panels, row by row, or as strips.

        `moved` is called with the blocks of each piece that was read for the last time. `room`
        (bytes) uint8 is where all copies lie.
        """
        self._places: dict[int, _Place] = {}
        end = 0
        for layout, weights in zip(Layout, (rows, panels, strips), strict=True):
            for weight in weights:
                self._places[weight.blocks.data_ptr()] = _Place(
                    end, _stride(weight, layout), layout
                )
                end += -(-_nbytes(weight, layout) // _LINE) * _LINE
        self.room = large_pages(end)
        for weight in (*panels, *strips, *rows):
            for piece in _pieces(weight):
                self._move(weight, piece)
                moved(weight.blocks[piece])

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return self.room.nbytes

    def has(self, weight: Packed) -> bool:
        """Whether a matrix, or the one that it is a leading part of, was moved."""
        place = self._places.get(weight.blocks.data_ptr())
        return place is not None and (place.layout is Layout.ROWS or can_interleave(weight))

    def matrix(self, weight: Packed, index: Tensor | None = None) -> Matrix:
        """A matrix that `has` holds, as the kernels take it, or its rows at `index` (N,) int64."""
        start, stride, layout = self._places[weight.blocks.data_ptr()]
        assert index is None or layout is Layout.ROWS
        return cpu.matrix_at(
            self.room.data_ptr() + start, stride, weight.format, weight.shape, index, layout
        )

    def _move(self, weight: Packed, piece: slice) -> None:
        """Copy some rows of a matrix, whole panels of them."""
        start, stride, layout = self._places[weight.blocks.data_ptr()]
        blocks, first = weight.blocks[piece], piece.start // PANEL_ROWS
        if layout is Layout.ROWS:
            copy = self.room[start + piece.start * stride :][: len(blocks) * stride]
            copy.view(blocks.shape).copy_(blocks)
            return
        apart = stride if layout is Layout.STRIPS else 0
        at = self.room.data_ptr() + start
        native.extension.interleave(cpu.matrix(Packed(blocks, weight.format)), first, apart, at)


def _pieces(weight: Packed) -> list[slice]:
    """The rows of a matrix in pieces, so that little of it is there twice while it moves."""
    rows = len(weight.blocks)
    unit = _TOGETHER * PANEL_ROWS
    step = max(1, _PIECE_BYTES // max(1, weight.blocks.shape[1]) // unit) * unit
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def can_interleave(weight: Packed) -> bool:
    """Whether a matrix has panels: its format has, and its columns fill whole units."""
    return _panel_bytes(weight) > 0 and weight.shape[1] % 64 == 0


def large_pages(nbytes: int) -> Tensor:
    """(nbytes,) uint8 of zeros, in large pages where the system has some to give."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    room = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8)


def _stride(weight: Packed, layout: Layout) -> int:
    return {
        Layout.ROWS: weight.blocks.shape[1],
        Layout.PANELS: _panel_bytes(weight),
        Layout.STRIPS: _panels(weight, layout) * _LINE,
    }[layout]


def _nbytes(weight: Packed, layout: Layout) -> int:
    if layout is Layout.ROWS:
        return weight.nbytes
    return _panels(weight, layout) * _panel_bytes(weight)


def _panels(weight: Packed, layout: Layout) -> int:
    """How many panels a matrix has; strips have whole fours of them."""
    together = _TOGETHER if layout is Layout.STRIPS else 1
    return -(-len(weight.blocks) // (together * PANEL_ROWS)) * together


def _panel_bytes(weight: Packed) -> int:
    """Bytes of sixteen rows, interleaved; 0 for a format that has no panels."""
    return cpu.panel_bytes(weight.format, weight.shape[1])
