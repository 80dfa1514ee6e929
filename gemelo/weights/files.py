"""Writing files: streamed out, and put in place whole.

A file is written beside its target and renamed, so that an interrupted write leaves the old one.
The target may be a link, which stays one: what it leads to is replaced.

    with replaced("out.gguf") as target: target.write(b"...")
"""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gemelo.errors import InputError
from gemelo.kernels.quants import Format, Packed, converted
from gemelo.weights.temporary_files import (
    plain_os_errors,
    real_path,
    remove_files_left,
    sync_folder,
    unfinished_file,
)

PIECE_BYTES = 16 << 20  # as float32, or as they are where they stay so
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
            if mode is not None and sys.platform != "win32":
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # where an open file keeps its name
                file.close()
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


def check_shape(name: str, weight: Packed, announced: tuple[int, ...]) -> None:
    """Raise `InputError` for a weight that is not of the shape that its header has."""
    if weight.shape != tuple(announced):
        raise InputError(
            f"tensor {name!r} has shape {weight.shape}, but {tuple(announced)} was announced"
        )


def byte_pieces(weight: Packed, format: Format) -> Iterator[memoryview]:
    """The bytes of a weight in `format`, row after row, a few MiB at a time.

    Where it has the format already they are its own, untouched. Raises `InputError` and
    `UnsupportedError` as `pack` does.
    """
    row_bytes = weight.columns * 4 if weight.format != format else weight.blocks.shape[1]
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for start in range(0, weight.rows, step):
        part = Packed(weight.blocks[start : start + step], weight.format)
        yield np.ascontiguousarray(converted(part, format).blocks).reshape(-1).data
