"""Gemma 3n's per-layer embeddings (PLE) on disk, in memory or on a device, and reading their rows.

Half of a Gemma 3n file is a table of which a token needs one row (E4B: 8960 numbers of 2.3
billion). It takes part in no product, so it may stay on disk: rows are read for the layers that run
alone, asked for a chunk or a token ahead, and nothing but them is ever in the process's memory or
travels to an accelerator. Other runtimes map the table, which in time makes it resident, or hold it
on the device; `place_table` does that too.

    place_table(decoder, "disk")

B rows, T tokens, N tokens of all rows, V vocabulary, L layers, P width of a per-layer embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from gemelo.config.options import TablePlacement
from gemelo.engine.memory.pages import Backing, ask, backing, release
from gemelo.errors import InputError, UnavailableError
from gemelo.kernels.linear import QuantEmbedding, as_blocks
from gemelo.kernels.products import embedding
from gemelo.kernels.quants import Format, Packed
from gemelo.models.decoder import Decoder
from gemelo.models.layers import Embedding

Progress = Callable[[int, int], None]  # bytes copied, bytes in all

PIECE_BYTES = 16 << 20  # of a table that is copied: two of them are in memory beside the copy
_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class HeldTable:
    """Per-layer embeddings in memory, of the host or of a device (`Gemma3n.per_layer_table`)."""

    def __init__(self, table: Packed, width: int, dtype: torch.dtype) -> None:
        """table (V, L * P) in any format, `width` being P; rows come out in `dtype`."""
        self.layout = Layout.of(table, width, dtype)
        self.parts = table.blocks.view(-1, self.layout.part_bytes)

    def rows(self, ids: Tensor, kept: Sequence[int]) -> Tensor:
        """ids (B, T) on any device -> vectors of the layers `kept`, (B, T, len(kept), P) there."""
        found = self._found(ids, kept).to(ids.device)
        return self.layout.widened(found, kept).view(*ids.shape, len(kept), -1)

    def packed(self, ids: Sequence[int], kept: Sequence[int]) -> Packed:
        """The same of N ids as they are stored, (N * len(kept), P) on the CPU."""
        return self.layout.packed(self._found(torch.tensor(ids), kept).cpu(), kept)

    def _found(self, ids: Tensor, kept: Sequence[int]) -> Tensor:
        """Parts of rows as bytes, one in a line, where the table is."""
        places = ids.reshape(-1, 1).to(self.parts.device)  # (N, 1)
        if self.layout.parts > 1:
            places = places * self.layout.parts + torch.tensor(kept, device=places.device)
        return self.parts.index_select(0, places.view(-1))

    def prefetch(self, ids: Sequence[int]) -> None:
        """Nothing: it is all there."""


class FileTable:
    """Per-layer embeddings that stay in their file (`Gemma3n.per_layer_table`).

    Rows are read beside the map, so that a row takes no more memory than it is long.
    """

    def __init__(self, file: Backing, table: Packed, width: int, dtype: torch.dtype) -> None:
        """table (V, L * P), `width` being P, is the map of `file`; rows come out in `dtype`."""
        self.file, self.layout = file, Layout.of(table, width, dtype)
        self.num_rows, self.row_bytes = table.blocks.shape

    def rows(self, ids: Tensor, kept: Sequence[int]) -> Tensor:
        """ids (B, T) on any device -> vectors of the layers `kept`, (B, T, len(kept), P) there."""
        found = self._found(ids.reshape(-1).tolist(), kept)
        found = found.to(ids.device)  # narrow, and widened there
        return self.layout.widened(found, kept).view(*ids.shape, len(kept), -1)

    def packed(self, ids: Sequence[int], kept: Sequence[int]) -> Packed:
        """The same of N ids as they are stored, (N * len(kept), P) on the CPU."""
        return self.layout.packed(self._found(ids, kept), kept)

    def _found(self, ids: Sequence[int], kept: Sequence[int]) -> Tensor:
        """Parts of rows as bytes, one in a line."""
        runs = [(0, self.row_bytes)] if self.layout.parts == 1 else self._runs(kept)
        self.prefetch(ids)  # all at once: reading waits for one after another
        found = bytearray(len(ids) * sum(nbytes for _, nbytes in runs))
        buffer, filled = memoryview(found), 0
        for place in ids:
            for start, nbytes in runs:
                self.file.read(place * self.row_bytes + start, buffer[filled : filled + nbytes])
                filled += nbytes
        return torch.frombuffer(found, dtype=torch.uint8).view(-1, self.layout.part_bytes)

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
    """How the row of a token is made up, and its numbers read."""

    format: Format
    width: int  # P
    parts: int  # L, or 1 where a block of the format reaches from one layer into the next
    part_bytes: int
    dtype: torch.dtype

    @classmethod
    def of(cls, table: Packed, width: int, dtype: torch.dtype) -> Self:
        """Of a table (V, L * P) whose numbers are wanted in `dtype`."""
        parts = table.shape[1] // width if width % table.format.block == 0 else 1
        return cls(table.format, width, parts, table.blocks.shape[1] // parts, dtype)

    def packed(self, found: Tensor, kept: Sequence[int]) -> Packed:
        """Parts of N rows as bytes, one in a line -> a matrix (N * len(kept), P) of them."""
        if self.parts > 1:
            return Packed(found, self.format)
        return as_blocks(self.widened(found, kept).float().flatten(0, 1))

    def widened(self, found: Tensor, kept: Sequence[int]) -> Tensor:
        """Parts of N rows as bytes, one in a line -> the vectors of `kept`, (N, len(kept), P).

        Floats are not taken through float32, as `unpack` does.
        """
        stored = _FLOATS.get(self.format.name)
        if stored is None:
            every = torch.arange(len(found), device=found.device)
            values = embedding(every, Packed(found, self.format), self.dtype)
        else:
            values = found.view(stored).to(self.dtype)
        if self.parts > 1:
            return values.view(-1, len(kept), self.width)
        return values.view(len(found), -1, self.width)[:, list(kept)]


def place_table(
    decoder: Decoder,
    where: TablePlacement,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Keep the per-layer embeddings on "disk" (the map they are loaded as), in "ram", or on the
    "device". Call it once, on the whole model, before views of it are made.

    Copies need the table's size of memory and 32 MiB; `progress` gets bytes copied and in all.
    Raises InputError for "disk" when there is no map, UnavailableError when there is no room.
    """
    if where not in get_args(TablePlacement):
        raise InputError(
            f"per-layer embeddings {where!r}: not one of {', '.join(get_args(TablePlacement))}"
        )
    module: Embedding | QuantEmbedding = decoder.embed_tokens_per_layer
    table, file = as_packed(module), None
    if where == "disk":
        if not is_mapped(table.blocks):
            raise InputError(
                'the per-layer embeddings are in memory, not mapped from a file; choose "ram", or '
                "load the model in the format of its file"
            )
        file = backing(table.blocks)
    else:
        target = torch.device("cpu" if where == "ram" else device)
        table = Packed(copied(table.blocks, target, progress), table.format)
        hold(module, table.blocks)
    width, dtype = decoder.config.hidden_size_per_layer_input, decoder.embed_tokens.dtype
    if file is None:  # or a map whose file cannot be opened again, and is touched instead
        decoder.per_layer_table = HeldTable(table, width, dtype)
    else:
        decoder.per_layer_table = FileTable(file, table, width, dtype)


def as_packed(module: Embedding | QuantEmbedding) -> Packed:
    """A table as blocks, whatever it is held as; the same memory."""
    if isinstance(module, QuantEmbedding):
        return module.weight
    return as_blocks(module.weight.detach())


def hold(module: Embedding | QuantEmbedding, blocks: Tensor) -> None:
    """Let a table's module refer to a copy, so that what it referred to can go."""
    if isinstance(module, QuantEmbedding):
        module.blocks = blocks
    else:
        weight = blocks.view(module.weight.dtype)
        module.weight = nn.Parameter(weight, requires_grad=False)


def is_mapped(tensor: Tensor) -> bool:
    """Whether memory is borrowed, as that of a map is; what torch allocates itself can be resized.

    Good enough to refuse by; what is released is checked by page (`pages.release`).
    """
    return not tensor.untyped_storage().resizable()


def copied(source: Tensor, device: torch.device, progress: Progress | None = None) -> Tensor:
    """A matrix in memory of a device: itself if it is there, else copied in pieces, each of which
    is asked for while the one before is copied and let go after."""
    if source.device.type == device.type and not is_mapped(source):
        return source
    try:
        target = torch.empty_like(source, device=device)
    except RuntimeError as error:
        raise UnavailableError(
            f"no room for {source.nbytes / 1e9:.1f} GB of per-layer embeddings on {device}; "
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


def prepare(decoder: Decoder, ple: TablePlacement | None, device: torch.device) -> None:
    """Put the per-layer table where it was asked for, and sparse layers' columns together.

    Not asked, the table stays where it lies: in the file, if that could be mapped, else in memory,
    out of which rows travel to another device.
    """
    mapped = is_mapped(as_packed(decoder.embed_tokens_per_layer).blocks)
    if ple is not None or mapped or device.type != "cpu":
        place_table(decoder, ple or ("disk" if mapped else "ram"), device)
    decoder.transpose_down_proj()
