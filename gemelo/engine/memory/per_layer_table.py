"""Gemma 3n's per-layer embeddings (PLE) on disk or in memory, and reading their rows.

Half of a Gemma 3n file is a table of which a token needs one row (E4B: 8960 numbers of 2.3
billion). It takes part in no product, so it may stay on disk: rows are read for the layers that run
alone, asked for a chunk or a token ahead, and nothing but them is ever in the process's memory or
travels to an accelerator. Other runtimes map the table, which in time makes it resident, or hold it
on the device; `table_of` puts it in memory too, and modules on a device can hold it there.

    table = table_of(weights, width=256, where="disk")
    table.packed(ids, kept=[0, 1, 4])             # (N * 3, 256), as the file has them

N tokens, V vocabulary, L layers, P width of a per-layer embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self, get_args

import numpy as np

from gemelo.config.options import TablePlacement
from gemelo.engine.memory.pages import Backing, ask, backing, release
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING
from gemelo.errors import InputError, UnavailableError
from gemelo.kernels import cpu
from gemelo.kernels.quants import Bytes, Format, Packed, unpack
from gemelo.weights.mapped import behind
from gemelo.weights.tensors import Weights

Progress = Callable[[int, int], None]  # bytes copied, bytes in all

PIECE_BYTES = 16 << 20  # of a table that is copied: two of them are in memory beside the copy


class HeldTable:
    """Per-layer embeddings in memory, or in a map that is touched."""

    def __init__(self, table: Packed, width: int) -> None:
        """table (V, L * P) in any format, `width` being P."""
        self.layout = Layout.of(table, width)
        self.parts = table.blocks.reshape(-1, self.layout.part_bytes)

    def packed(self, ids: Sequence[int], kept: Sequence[int]) -> Packed:
        """Vectors of N ids for the layers `kept`, (N * len(kept), P), as they are stored."""
        places = np.array(ids, np.int64)[:, None]  # (N, 1)
        if self.layout.parts > 1:
            places = places * self.layout.parts + np.array(kept, np.int64)
        return self.layout.packed(self.parts[places.ravel()], kept)

    def prefetch(self, ids: Sequence[int]) -> None:
        """Nothing: it is all there."""


class FileTable:
    """Per-layer embeddings that stay in their file.

    Rows are read beside the map, so that a row takes no more memory than it is long.
    """

    def __init__(self, file: Backing, table: Packed, width: int) -> None:
        """table (V, L * P), `width` being P, is the map of `file`."""
        self.file, self.layout = file, Layout.of(table, width)
        self.num_rows, self.row_bytes = table.blocks.shape

    def packed(self, ids: Sequence[int], kept: Sequence[int]) -> Packed:
        """Vectors of N ids for the layers `kept`, (N * len(kept), P), as they are stored."""
        runs = [(0, self.row_bytes)] if self.layout.parts == 1 else self._runs(kept)
        self.prefetch(ids)  # all at once: reading waits for one after another
        found = bytearray(len(ids) * sum(nbytes for _, nbytes in runs))
        buffer, filled = memoryview(found), 0
        for place in ids:
            for start, nbytes in runs:
                self.file.read(place * self.row_bytes + start, buffer[filled : filled + nbytes])
                filled += nbytes
        parts = np.frombuffer(found, np.uint8).reshape(-1, self.layout.part_bytes)
        return self.layout.packed(parts, kept)

    def prefetch(self, ids: Sequence[int]) -> None:
        """Have the rows of ids read from disk soon; `InputError` for an id that has none."""
        for place in set(ids):
            if not 0 <= place < self.num_rows:
                raise InputError(f"id {place} has no per-layer embedding; {self.num_rows} have one")
            self.file.ask(place * self.row_bytes, self.row_bytes)

    def _runs(self, kept: Sequence[int]) -> list[tuple[int, int]]:
        """Where in a row the parts of layers lie: (first byte, bytes), neighbours together."""
        runs: list[tuple[int, int]] = []
        for layer in kept:
            start, nbytes = layer * self.layout.part_bytes, self.layout.part_bytes
            if runs and sum(runs[-1]) == start:
                start, nbytes = runs[-1][0], runs.pop()[1] + nbytes
            runs.append((start, nbytes))
        return runs


class Layout(NamedTuple):
    """How the row of a token is made up."""

    format: Format
    width: int  # P
    parts: int  # L, or 1 where a block of the format reaches from one layer into the next
    part_bytes: int

    @classmethod
    def of(cls, table: Packed, width: int) -> Self:
        """Of a table (V, L * P)."""
        parts = table.columns // width if width % table.format.block == 0 else 1
        return cls(table.format, width, parts, table.blocks.shape[1] // parts)

    def packed(self, found: Bytes, kept: Sequence[int]) -> Packed:
        """Parts of N rows as bytes, one in a line -> a matrix (N * len(kept), P) of them; float32
        where a part is no matrix, or of a format that kernels do not read."""
        stored = Packed(found, self.format)
        if self.parts > 1 and self.format.name in cpu.FORMATS:
            return stored
        values = unpack(stored)
        if self.parts == 1:
            values = values.reshape(len(found), -1, self.width)[:, list(kept)]
        return Packed.of(np.ascontiguousarray(values).reshape(-1, self.width))


def table_of(
    weights: Weights,
    width: int,
    where: TablePlacement | None = None,
    progress: Progress | None = None,
) -> HeldTable | FileTable:
    """The per-layer embeddings of a model, P being `width`, on "disk" (the map they are loaded as),
    or in "ram"; None leaves them where they lie. Call it once, on the whole model.

    Copies need the table's size of memory and 32 MiB; `progress` gets bytes copied and in all.
    Raises InputError for "disk" when there is no map, UnavailableError when there is no room.
    """
    if where not in (None, *get_args(TablePlacement)):
        raise InputError(
            f"per-layer embeddings {where!r}: not one of {', '.join(get_args(TablePlacement))}"
        )
    table = weights[PER_LAYER_EMBEDDING]
    mapped = is_mapped(table)
    if where == "disk" and not mapped:
        raise InputError(
            'the per-layer embeddings are in memory, not mapped from a file; choose "ram", or '
            "load the model in the format of its file"
        )
    if where not in (None, "disk") and mapped:
        table = Packed(copied(table.blocks, progress), table.format)
        weights.replaced(PER_LAYER_EMBEDDING, table)
        mapped = False
    # A map whose file cannot be opened again is touched instead.
    file = backing(table.blocks) if mapped else None
    return HeldTable(table, width) if file is None else FileTable(file, table, width)


def is_mapped(weight: Packed) -> bool:
    """Whether a weight lies in the map of a file, all of it in one piece."""
    return bool(behind([weight])) and weight.blocks.flags.c_contiguous


def copied(source: Bytes, progress: Progress | None = None) -> Bytes:
    """A matrix copied to memory in pieces, each of which is asked for while the one before is
    copied and let go after."""
    try:
        target = np.empty_like(source)
    except MemoryError as error:
        raise UnavailableError(
            f"no room for {source.nbytes / 1e9:.1f} GB of per-layer embeddings; "
            'leave them on "disk"'
        ) from error
    rows = max(1, PIECE_BYTES // source.shape[1])
    ask(source[:rows])
    for start in range(0, len(source), rows):
        piece = source[start : start + rows]
        ask(source[start + rows : start + 2 * rows])
        target[start : start + rows] = piece
        release(piece)
        if progress is not None:
            progress(source[: start + rows].nbytes, source.nbytes)
    return target
