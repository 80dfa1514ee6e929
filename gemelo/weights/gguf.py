"""GGUF files read: tensors as views of memory maps, and key-values.

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

import torch
from torch import Tensor

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.kernels.quants import Format, Packed
from gemelo.weights.gguf_header import Header, TensorInfo, read_header
from gemelo.weights.gguf_split import Join, paths_of
from gemelo.weights.gguf_values import KeyValues
from gemelo.weights.mapped import map_file

TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


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
        header, data = _open(self.path)
        self.alignment = header.alignment
        self.paths = tuple(paths_of(self.path, header.values))
        join, notices = Join(self.paths), list[str]()
        self._tensors: dict[str, tuple[TensorInfo, Tensor]] = {}
        for part in self.paths:
            part_header, mapped = (header, data) if part == self.path else _open(part)
            if len(self.paths) > 1:
                join.add(part_header)
            self._tensors |= {name: (info, mapped) for name, info in part_header.tensors.items()}
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
        """The tensor's shape in PyTorch order (rows first)."""
        return self._tensor_info(name)[0].shape

    def format(self, name: str) -> Format:
        """How the tensor's elements are stored."""
        return self._tensor_info(name)[0].format

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""
        return self._tensor_info(name)[0].nbytes

    def tensor(self, name: str) -> Tensor | Packed:
        """The tensor as a view of a map: a float tensor, or a Packed matrix for block formats.

        A stack (n, rows, columns) in a block format is one matrix of n * rows.
        """
        info, mapped = self._tensor_info(name)
        data = mapped[info.start : info.start + info.nbytes]
        if info.format.name in TORCH_DTYPES:
            return data.view(TORCH_DTYPES[info.format.name]).view(info.shape)
        if len(info.shape) not in (2, 3):
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} is {info.format.name} with shape {info.shape}; "
                "block formats are read as matrices and stacks of them; store it as f32 or f16"
            )
        return Packed(data.view(math.prod(info.shape[:-1]), -1), info.format)

    def _tensor_info(self, name: str) -> tuple[TensorInfo, Tensor]:
        info = self._tensors.get(name)
        if info is None:
            raise FileFormatError(
                f"{self.path} has no tensor {name!r} (it holds {len(self._tensors)})"
            )
        return info


def _open(path: Path) -> tuple[Header, Tensor]:
    """The header of one file, and all its bytes."""
    mapped = map_file(path)
    return read_header(mapped, path), torch.frombuffer(mapped, dtype=torch.uint8)
