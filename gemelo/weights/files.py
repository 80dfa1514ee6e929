"""Files written: streamed out, and put in place whole.

A file is written beside its target and renamed, so that an interrupted write leaves the old one.

    with replaced("out.gguf") as target: target.write(b"...")
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gemelo.errors import InputError, UnavailableError
from gemelo.kernels.formats import Packed, unpacked_chunks

PIECE_BYTES = 16 << 20
WRONG_PLACE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends, and vanishes when it fails."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:  # an interrupt too must not leave half a file
        with suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            kind = InputError if isinstance(error, WRONG_PLACE) else UnavailableError
            raise kind(f"cannot write {path}: {error.strerror or error}") from error
        raise


def byte_pieces(tensor: Tensor | Packed, dtype: torch.dtype) -> Iterator[memoryview]:
    """The elements row by row as `dtype`, a few MiB at a time; a Packed matrix is expanded."""
    for part in float_parts(tensor):
        piece = part.to(device="cpu", dtype=dtype).contiguous().reshape(-1).view(torch.uint8)
        yield piece.numpy().data


def float_parts(tensor: Tensor | Packed) -> Iterator[Tensor]:
    """Some rows at a time, so that no second whole is needed; the next step may overwrite them."""
    if isinstance(tensor, Packed):
        for _, values in unpacked_chunks(tensor):
            yield values
        return
    rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    row_bytes = max(1, rows[:1].nbytes)
    yield from torch.split(rows, max(1, PIECE_BYTES // row_bytes))
