"""Files on disk: mapped in without a copy, streamed out and put in place whole.

Weights are read through a private, copy-on-write memory map: pages come from the page cache when
they are touched, several processes share them, and a stray write never reaches the file. The map
reserves no memory, so a file larger than RAM opens too, which the maps of `torch.from_file` (and so
`safe_open`) refuse on Linux. Files are written beside their target and renamed, so that an
interrupted write leaves the old one.

    source = map_file("model.gguf")
    with replaced("out.gguf") as target: target.write(b"...")
"""

import mmap
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gemelo.errors import FileFormatError, InputError, UnavailableError
from gemelo.kernels.formats import Packed, unpacked_chunks

PIECE_BYTES = 16 << 20
MAP_NORESERVE = 0x4000  # Linux; the mmap module names it only from Python 3.13 on
WRONG_PLACE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def map_file(path: Path) -> mmap.mmap:
    """A private map of a file; InputError if it cannot be opened, FileFormatError if empty."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"cannot open {str(path)!r}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from error
    if not regular:  # opening a pipe would wait for its other end
        raise InputError(f"cannot open {path}: it is not a file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                return _map_privately(file.fileno(), size)
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from error
    raise FileFormatError(f"{path} is empty")


def _map_privately(descriptor: int, size: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    flags = mmap.MAP_PRIVATE | MAP_NORESERVE
    return mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


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
