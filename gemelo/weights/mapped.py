"""Memory-mapped files, and whether they are still what was mapped.

Weights are read through a private, copy-on-write memory map: pages come from the page cache when
they are touched, several processes share them, and a stray write never reaches the file. The map
reserves no memory, so a file larger than RAM opens too, which the maps of `torch.from_file` (and so
`safe_open`) refuse on Linux. A map is given back when the last view of it is gone.

A map shows what becomes of its file: others may write over it, or cut it short. To touch what is
gone would end the process, were it not for csrc/runtime/mapped_files.h, which puts zeros there and
remembers it. So whoever begins a piece of work asks first whether files are as they were (`check`),
and whoever has computed something asks whether it was computed with zeros (`lost`). A file that is
replaced by another of its name, as downloads and `gemelo convert` do it, is no trouble: the map
keeps the old one. With GEMELO_SIGBUS=off, for hosts that own their signal handlers, the process's
SIGBUS stays as it was, and a touch of what is gone ends the process.

    source = map_file("model.gguf")
    check([source])                              # raises if it was written to since
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemelo.errors import FileFormatError, InputError
from gemelo.kernels.native import extension
from gemelo.kernels.packed import Bytes, Format, Packed, matrix_shape, own_dims

MAP_NORESERVE = 0x4000  # Linux; the mmap module names it only from Python 3.13 on


def _handles_sigbus() -> bool:
    """Whether the environment leaves the signal to us."""
    asked = os.environ.get("GEMELO_SIGBUS", "on")
    if asked not in ("on", "off"):
        raise InputError(f"GEMELO_SIGBUS={asked}; expected on or off")
    return asked == "on"


_watches = _handles_sigbus() and extension is not None


class Identity(NamedTuple):
    """Which file it is, and what it was."""

    device: int
    inode: int
    nbytes: int
    written: int  # when, in nanoseconds

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Mapped(mmap.mmap):
    """A map of a whole file that knows which."""

    path: str
    identity: Identity
    # Native, and gone with the map: a finaliser in Python may be cut short by Ctrl-C, and then
    # whatever is mapped at the same place next would be taken for this one.
    watch: object = None

    @property
    def address(self) -> int:
        return int(np.frombuffer(self, np.uint8).ctypes.data)

    @property
    def change(self) -> str | None:
        """What was done to the file since, in words; nothing, if another has taken its name."""
        try:
            now = Identity.of(os.stat(self.path))
        except OSError:
            return None
        if now == self.identity or now[:2] != self.identity[:2]:
            return None
        if now.nbytes < self.identity.nbytes:
            return f"was cut short while it was in use, to {now.nbytes} bytes"
        return "was written to while it was in use"


# By address; a map that is gone leaves its place to the next one there. A dictionary of references
# is copied in one go while other threads open files, which a WeakSet is not.
_maps: dict[int, weakref.ref[Mapped]] = {}


def map_file(path: Path) -> Mapped:
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
            identity = Identity.of(os.fstat(file.fileno()))
            if identity.nbytes:
                mapped = _map_privately(file.fileno(), identity.nbytes)
                mapped.path, mapped.identity = os.path.abspath(path), identity
                _watch(mapped)
                return mapped
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from error
    raise FileFormatError(f"{path} is empty")


def tensor_in(
    mapped: Mapped, start: int, nbytes: int, format: Format, shape: tuple[int, ...]
) -> Packed:
    """The tensor of so many bytes from `start` on, as a view that keeps the map."""
    data: Bytes = np.frombuffer(mapped, np.uint8)[start : start + nbytes]
    rows, columns = matrix_shape(shape)
    return Packed(data.reshape(rows, format.row_bytes(columns)), format, own_dims(shape))


def behind(weights: Iterable[Packed]) -> list[Mapped]:
    """The maps that weights lie in."""
    alive = [mapped for reference in list(_maps.values()) if (mapped := reference()) is not None]
    ranges = {mapped: range(mapped.address, mapped.address + len(mapped)) for mapped in alive}
    maps = set[Mapped]()
    for weight in weights:
        address = weight.address
        maps.update(mapped for mapped, addresses in ranges.items() if address in addresses)
    return list(maps)


def lies_in(weight: Packed, maps: Iterable[Mapped]) -> bool:
    """Whether a weight begins in one of some maps."""
    return any(0 <= weight.address - mapped.address < len(mapped) for mapped in maps)


def check(maps: Iterable[Mapped]) -> None:
    """Raise `FileFormatError` if a file is not what was mapped."""
    listen()
    for mapped in maps:
        if (change := mapped.change) is not None:
            raise FileFormatError(f"{mapped.path} {change}; load it again")


def listen() -> None:
    """From here on a file that is cut short is noticed, though others (Python's faulthandler, a
    handler of the caller's) may have taken the signal since the last time."""
    if _watches:
        extension.install_handler()


def lost() -> list[tuple[int, int]]:
    """Ranges of addresses where maps have zeros by now, because their files were cut short."""
    return extension.lost() if _watches else []


def _map_privately(descriptor: int, size: int) -> Mapped:
    if sys.platform != "linux":
        return Mapped(descriptor, size, access=mmap.ACCESS_COPY)
    flags = mmap.MAP_PRIVATE | MAP_NORESERVE
    return Mapped(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _watch(mapped: Mapped) -> None:
    """From now on, and until its memory is given back."""
    address = mapped.address
    _maps[address] = weakref.ref(mapped)
    if _watches:
        mapped.watch = extension.Watch(address, len(mapped))
