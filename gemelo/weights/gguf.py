"""GGUF files read: tensors as views of memory maps, and key-values.

Opening parses headers only (`gguf_header`); a tensor is a view, made when asked for: `Packed`, its
bytes as they lie, 16-bit floats and vectors included. The map lives as long as a view. A model in
several files (`gguf_split`) is one object, whichever of them is named: each is mapped where it
lies, and nothing is copied.

    file = GGUFFile("model.gguf")
    file.metadata["gemma3.block_count"], file.tensor("token_embd.weight")
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.kernels.quants import Format, Packed
from gemelo.weights.gguf_header import Header, TensorInfo, read_header
from gemelo.weights.gguf_split import Join, paths_of
from gemelo.weights.gguf_values import KeyValues
from gemelo.weights.mapped import Mapped, map_file, tensor_in


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
        header, mapped = _open(self.path)
        self.alignment = header.alignment
        self.paths = tuple(paths_of(self.path, header.values))
        join, notices = Join(self.paths), list[str]()
        self._tensors: dict[str, tuple[TensorInfo, Mapped]] = {}
        for part in self.paths:
            part_header, place = (header, mapped) if part == self.path else _open(part)
            if len(self.paths) > 1:
                join.add(part_header)
            self._tensors |= {name: (info, place) for name, info in part_header.tensors.items()}
            if part_header.unclaimed:
                notices.append(
                    f"{part.name} holds {part_header.unclaimed:,} bytes that belong to no tensor"
                )
        self.metadata = join.whole() if len(self.paths) > 1 else header.values
        self.notices = tuple(notices)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def only(self, names: Iterable[str]) -> GGUFFile:
        """The same with some of its tensors."""
        narrow = copy.copy(self)
        narrow._tensors = {name: self._tensors[name] for name in names}
        return narrow

    def names(self) -> list[str]:
        """Tensor names, in the file's order."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in PyTorch's order (rows first)."""
        return self._tensor_info(name)[0].shape

    def format(self, name: str) -> Format:
        """How the tensor's elements are stored."""
        return self._tensor_info(name)[0].format

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""
        return self._tensor_info(name)[0].nbytes

    def tensor(self, name: str) -> Packed:
        """The tensor as a view of a map.

        A stack (n, rows, columns) has its matrices one under the other. Raises UnsupportedError for
        vectors and tensors of four dimensions in blocks.
        """
        info, mapped = self._tensor_info(name)
        shape, format = info.shape, info.format
        if format.block > 1 and len(shape) not in (2, 3):
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} is {format.name} with shape {shape}; "
                "block formats are read as matrices and stacks of them; store it as f32 or f16"
            )
        return tensor_in(mapped, info.start, info.nbytes, format, shape)

    def _tensor_info(self, name: str) -> tuple[TensorInfo, Mapped]:
        info = self._tensors.get(name)
        if info is None:
            raise FileFormatError(
                f"{self.path} has no tensor {name!r} (it holds {len(self._tensors)})"
            )
        return info


def _open(path: Path) -> tuple[Header, Mapped]:
    """The header of one file, and the map of it."""
    mapped = map_file(path)
    return read_header(mapped, path), mapped
