"""Writing files: streamed out, and put in place whole.

A file is written beside its target and renamed, so that an interrupted write leaves the old one.
The target may be a link, which stays one: what it leads to is replaced.

    with replaced("out.gguf") as target: target.write(b"...")
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gemelo.errors import InputError
from gemelo.kernels.quants import Packed, unpacked_chunks
from gemelo.weights.temporary_files import (
    plain_os_errors,
    real_path,
    remove_files_left,
    sync_folder,
    unfinished_file,
)

PIECE_BYTES = 16 << 20
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


@contextmanager
def replaced(path: Path, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends, and vanishes when it fails.

    Raises `InputError` for a path where no file can be, `UnavailableError` when the disk refuses.
    Without `overwrite` a file that has taken the name meanwhile is left alone.
    """
    with plain_os_errors(path):
        real = real_path(path)
        mode = _mode_of_old(path, real)
        remove_files_left(real)
        with unfinished_file(real) as (file, unfinished):
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if overwrite:
                os.replace(unfinished, real)
            else:
                _put_where_nothing_is(unfinished, real)
        sync_folder(real.parent)


def _mode_of_old(path: Path, real: Path) -> int | None:
    """The permissions of the file that is replaced. What is no file is never replaced."""
    try:
        mode = os.stat(real).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise InputError(f"cannot write {path}: it is a folder; choose the name of a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot write {path}: it is a device or a pipe; choose another name")
    return stat.S_IMODE(mode)


def _put_where_nothing_is(unfinished: Path, real: Path) -> None:
    try:
        os.link(unfinished, real)
    except FileExistsError:
        raise InputError(f"{real} exists by now, and is left as it is") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(real):
            raise InputError(f"{real} exists by now, and is left as it is") from None
        os.replace(unfinished, real)


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
