"""GGUF files read: the tensors as views of memory maps, and the key-values.

Opening parses headers only (`gguf_header`); a tensor is a view, made when asked for. A model in
several files (`gguf_split`) is one object, whichever of them is named: each is mapped where it
lies, and nothing is copied.

    file = GGUFFile("model.gguf")
    file.metadata["gemma3.block_count"], file.tensor("token_embd.weight")
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.kernels.formats import Format, Packed
from gemelo.weights.gguf_header import Header, Place, read_header
from gemelo.weights.gguf_split import joined, paths_of
from gemelo.weights.gguf_values import KeyValues
from gemelo.weights.mapped import map_file

TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class _Part(NamedTuple):
    """One file of a model."""

    path: Path
    header: Header
    data: Tensor


class GGUFFile:
    """One open model. Raises FileFormatError where a file is broken, naming what and where.

    `metadata` holds numbers, strings and bools as Python values, arrays of numbers as read-only
    numpy arrays, and arrays of strings as `Strings` (a vocabulary is decoded by the tokenizer that
    wants it); it also knows how each is stored. `notices` says what is odd and harmless.
    """

    path: Path
    paths: tuple[Path, ...]
    metadata: KeyValues
    alignment: int
    notices: tuple[str, ...]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        given = _open(self.path)
        others = paths_of(self.path, given.header.values)
        parts = [given if other == self.path else _open(other) for other in others]
        headers = [part.header for part in parts]
        self.paths = tuple(others)
        self.metadata = given.header.values if len(parts) == 1 else joined(headers, others)
        self.alignment = headers[0].alignment
        self.notices = tuple(
            f"{part.path.name} holds {part.header.unclaimed:,} bytes that belong to no tensor"
            for part in parts
            if part.header.unclaimed
        )
        self._places: dict[str, tuple[Place, Tensor]] = {
            name: (place, part.data) for part in parts for name, place in part.header.places.items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def only(self, names: Iterable[str]) -> GGUFFile:
        """The same with some of its tensors."""
        narrow = copy.copy(self)
        narrow._places = {name: self._places[name] for name in names}
        return narrow

    def names(self) -> list[str]:
        """Tensor names, in the file's order."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in PyTorch order (rows first)."""
        return self._place(name)[0].shape

    def format(self, name: str) -> Format:
        """How the tensor's elements are stored."""
        return self._place(name)[0].format

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""
        return self._place(name)[0].nbytes

    def tensor(self, name: str) -> Tensor | Packed:
        """The tensor as a view of a map: a float tensor, or a Packed matrix for block formats.

        A stack (n, rows, columns) in a block format is one matrix of n * rows.
        """
        place, mapped = self._place(name)
        data = mapped[place.start : place.start + place.nbytes]
        if place.format.name in TORCH_DTYPES:
            return data.view(TORCH_DTYPES[place.format.name]).view(place.shape)
        if len(place.shape) not in (2, 3):
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} is {place.format.name} with shape {place.shape}; "
                "block formats are read as matrices and stacks of them; store it as f32 or f16"
            )
        return Packed(data.view(math.prod(place.shape[:-1]), -1), place.format)

    def _place(self, name: str) -> tuple[Place, Tensor]:
        place = self._places.get(name)
        if place is None:
            raise FileFormatError(
                f"{self.path} has no tensor {name!r} (it holds {len(self._places)})"
            )
        return place


def _open(path: Path) -> _Part:
    mapped = map_file(path)
    header = read_header(mapped, path)
    return _Part(path, header, torch.frombuffer(mapped, dtype=torch.uint8))
