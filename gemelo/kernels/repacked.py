"""Repacked weights: sixteen rows of a matrix interleaved into panels, in huge pages.

A mapped file is memory in pages of 4 KiB, and rows lie in it one after the other. Processors read
large pages faster (by a third on the machines measured), and a product with few tokens needs no
sums across lanes when sixteen rows are interleaved (csrc/gemm/panels.h). So where memory allows
it, matrices move once, at the speed of a copy; the pages of the file are let go by whoever asked
for that (`memory.pages.release`), so that one copy stays. What cannot be interleaved (plain floats,
matrices of which single rows are read) moves as it is. Matrices that mostly meet zeros lie in
strips, a column or two of all rows each, so that a few columns can be read and the rest left.

A first answer need not wait for the move: until then the kernels read a matrix where the file has
it and interleave it on the way, at every product, which gives the bits of panels.

    panels = Panels({name: packed}, rows={...}, strips={...})
    panels.matrix(name, rows=8192)            # for the kernels: a leading part, wherever it lies
    unmoved = Unmoved({name: packed});  unmoved.matrix(name);  panels = unmoved.move()
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError
from gemelo.kernels import cpu, native
from gemelo.kernels.cpu import Layout
from gemelo.kernels.packed import Bytes, Format, Packed

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
    format: Format
    rows: int
    columns: int


_NONE: Mapping[str, Packed] = {}


def _ignore(blocks: Bytes) -> None:
    """What is done with moved blocks if nobody asks for anything."""


class Unmoved:
    """Matrices that are to move, and are read where the file has them until they do: those of
    panels with the bits that they will have, those of strips as rows."""

    def __init__(
        self,
        panels: Mapping[str, Packed],
        rows: Mapping[str, Packed] = _NONE,
        strips: Mapping[str, Packed] = _NONE,
        moved: Callable[[Bytes], object] = _ignore,
    ) -> None:
        """The arguments of `Panels`. The room for the copies is taken, and none of it touched, so
        that `move` cannot fail for want of it; MemoryError if there is none."""
        self._panels, self._rows, self._strips, self._moved = panels, rows, strips, moved
        self.room = large_pages(_placed(rows, panels, strips)[1])

    @property
    def nbytes(self) -> int:
        """Bytes that all copies will have."""
        return len(self.room)

    def has(self, name: str, columns: int | None = None) -> bool:
        """Whether a matrix will lie in panels, and its leading `columns` can be taken of them."""
        weight = self._panels.get(name)
        return weight is not None and (columns is None or _interleaves(weight.format, columns))

    def matrix(
        self,
        name: str,
        rows: int | None = None,
        columns: int | None = None,
        index: NDArray[np.int64] | None = None,
    ) -> Matrix:
        """A matrix that will lie in panels, or its leading part, where the file has it; the kernels
        sum its products as they will later. Single rows cannot be named there either."""
        assert index is None
        part = self._panels[name].prefix(rows, columns)
        shape = part.rows, part.columns
        return cpu.matrix_at(
            part.address, part.stride, part.format, shape, layout=Layout.ROWS_AS_PANELS
        )

    def move(self) -> Panels:
        """The copies. An interrupt leaves everything as it was, and it can be called again."""
        return Panels(self._panels, self._rows, self._strips, self._moved, self.room)


class Panels:
    """Copies of matrices for the native products of one process, by their names."""

    def __init__(
        self,
        panels: Mapping[str, Packed],
        rows: Mapping[str, Packed] = _NONE,
        strips: Mapping[str, Packed] = _NONE,
        moved: Callable[[Bytes], object] = _ignore,
        room: Bytes | None = None,
    ) -> None:
        """Copy matrices as panels, row by row, or as strips.

        `moved` is called with the blocks of each piece that was read for the last time. `room`
        (bytes) uint8 is where all copies lie, taken if it is not given; MemoryError, before any
        copy is made, if there is none.
        """
        self._places, nbytes = _placed(rows, panels, strips)
        self.room = large_pages(nbytes) if room is None else room
        for name, weight in (*panels.items(), *strips.items(), *rows.items()):
            for piece in _pieces(weight):
                self._move(name, weight, piece)
                moved(weight.blocks[piece])

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return len(self.room)

    def has(self, name: str, columns: int | None = None) -> bool:
        """Whether a matrix was moved, and so that its leading `columns` can be taken alone."""
        place = self._places.get(name)
        if place is None or place.layout is Layout.ROWS or columns is None:
            return place is not None
        return _interleaves(place.format, columns)

    def matrix(
        self,
        name: str,
        rows: int | None = None,
        columns: int | None = None,
        index: NDArray[np.int64] | None = None,
    ) -> Matrix:
        """A matrix that was moved, as the kernels take it: its leading rows and columns, or its
        rows at `index` (N,), which whoever asks keeps alive.

        Raises InputError for a part that is larger than the matrix, or that `has` has not.
        """
        place = self._places[name]
        rows = place.rows if rows is None else rows
        columns = place.columns if columns is None else columns
        fits = 0 <= rows <= place.rows and 0 <= columns <= place.columns
        if not fits or not self.has(name, columns):
            raise InputError(
                f"{name} was moved as {place.rows} x {place.columns}, of which {rows} x {columns} "
                "cannot be taken; take no more than there is, and whole units of 64 columns"
            )
        place.format.row_bytes(columns)  # whole blocks, of rows too
        assert index is None or place.layout is Layout.ROWS
        at = cpu.address_of(self.room) + place.start
        return cpu.matrix_at(at, place.stride, place.format, (rows, columns), index, place.layout)

    def _move(self, name: str, weight: Packed, piece: slice) -> None:
        """Copy some rows of a matrix, whole panels of them."""
        place = self._places[name]
        blocks, first = weight.blocks[piece], piece.start // PANEL_ROWS
        if place.layout is Layout.ROWS:
            copy = self.room[place.start + piece.start * place.stride :][: blocks.size]
            copy.reshape(blocks.shape)[...] = blocks
            return
        apart = place.stride if place.layout is Layout.STRIPS else 0
        at = cpu.address_of(self.room) + place.start
        native.extension.interleave(cpu.matrix(Packed(blocks, weight.format)), first, apart, at)


def _placed(
    rows: Mapping[str, Packed], panels: Mapping[str, Packed], strips: Mapping[str, Packed]
) -> tuple[dict[str, _Place], int]:
    """Where the copy of every matrix lies in the room, and the bytes of all."""
    places: dict[str, _Place] = {}
    end = 0
    copies = ((Layout.ROWS, rows), (Layout.PANELS, panels), (Layout.STRIPS, strips))
    for layout, weights in copies:
        for name, weight in weights.items():
            stride, shape = _stride(weight, layout), (weight.rows, weight.columns)
            places[name] = _Place(end, stride, layout, weight.format, *shape)
            end += -(-_nbytes(weight, layout) // _LINE) * _LINE
    return places, end


def _pieces(weight: Packed) -> list[slice]:
    """The rows of a matrix in pieces, so that little of it is there twice while it moves."""
    rows = weight.rows
    unit = _TOGETHER * PANEL_ROWS
    step = max(1, _PIECE_BYTES // max(1, weight.blocks.shape[1]) // unit) * unit
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def can_interleave(weight: Packed) -> bool:
    """Whether a matrix has panels: its format has, and its columns fill whole units."""
    return _interleaves(weight.format, weight.columns)


def _interleaves(format: Format, columns: int) -> bool:
    return cpu.panel_bytes(format, columns) > 0 and columns % 64 == 0


def large_pages(nbytes: int) -> Bytes:
    """(nbytes,) uint8 of zeros, in large pages where the system has some to give; MemoryError where
    it has none at all."""
    if not nbytes:
        return np.empty(0, np.uint8)
    try:
        if sys.platform == "win32":  # large pages need a privilege there
            return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
        room = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {nbytes} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(room, np.uint8)


def _stride(weight: Packed, layout: Layout) -> int:
    return {
        Layout.ROWS: weight.format.row_bytes(weight.columns),
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
    return -(-weight.rows // (together * PANEL_ROWS)) * together


def _panel_bytes(weight: Packed) -> int:
    """Bytes of sixteen rows, interleaved; 0 for a format that has no panels."""
    return cpu.panel_bytes(weight.format, weight.columns)
