"""Pages of memory-mapped weights: asked for ahead, let go when nobody needs them, read beside.

A page of a mapped file comes into memory when it is touched, which stops the computation until the
disk has answered; `ask` says beforehand. `release` takes pages out of the process again; they come
back from the file, or from the system's own cache of it, when they are touched next. For any other
memory that would be the end of what is in it, so no bookkeeping of ours is trusted: the kernel is
asked page by page, and only what it says is an unwritten page of a file goes. A written page of a
private map and all other memory stay.

A touch brings in more than was touched (64 KiB, or on new kernels whatever the system caches as
one piece, up to 2 MiB), which is no way to read a row here and there. `backing` finds the file that
an array maps, to read from that.

    ask(weight.blocks);  let_go_bytes = release(weight.blocks[8192:])
    backing(table.blocks).read(17 * row_bytes, memoryview(row))

None of it changes a value, so where the system has no such thing (any but Linux, as for `release`
and `backing`), nothing happens: 0 bytes are let go, no file is found.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from gemelo.errors import FileFormatError

PAGE_BYTES = mmap.PAGESIZE
_WILL_NEED, _DO_NOT_NEED = 3, 4  # advice of madvise(2), the same on Linux and macOS
_PAGEMAP = Path("/proc/self/pagemap")  # a 64-bit entry a page
_IN_MEMORY, _OF_A_FILE = np.uint64(1 << 63), np.uint64(1 << 61)

Pages = npt.NDArray[np.int64]  # page numbers: addresses over PAGE_BYTES
Flags = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


def ask(array: Array) -> None:
    """Have the pages of a contiguous array read soon, without waiting for them."""
    assert array.flags.c_contiguous
    if array.nbytes:
        address = _address(array)
        first = address // PAGE_BYTES * PAGE_BYTES
        _advise(first, address + array.nbytes - first, _WILL_NEED)


def release(array: Array) -> int:
    """Let go the whole pages inside an array that are unwritten pages of a file; their bytes.

    The array is contiguous, or a matrix whose rows are. What it holds does not change.
    """
    pages, wanted = _whole_pages(array)
    let_go = 0
    wanted &= _held(pages, _IN_MEMORY | _OF_A_FILE)
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    for first, stop in edges.reshape(-1, 2):
        nbytes = int(stop - first) * PAGE_BYTES
        if _advise(int(pages[first]) * PAGE_BYTES, nbytes, _DO_NOT_NEED):
            let_go += nbytes
    return let_go


def present_bytes(array: Array) -> int:
    """Bytes of the whole pages inside an array that this process has in memory now."""
    pages, wanted = _whole_pages(array)
    return int((wanted & _held(pages, _IN_MEMORY)).sum()) * PAGE_BYTES


def available_bytes() -> int:
    """Bytes of memory that the system could give without swapping; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = (line.split() for line in lines)
    return next((int(words[1]) * 1024 for words in found if words[0] == "MemAvailable:"), 0)


def _whole_pages(array: Array) -> tuple[Pages, Flags]:
    """The pages from an array's first to its last, and which of them lie in its rows whole."""
    nothing = np.empty(0, np.int64), np.empty(0, np.bool_)
    if not array.nbytes:
        return nothing
    address = _address(array)
    if array.flags.c_contiguous:
        first_page = -(-address // PAGE_BYTES)
        pages = np.arange(first_page, (address + array.nbytes) // PAGE_BYTES)
        return pages, np.ones(len(pages), np.bool_)
    assert array.ndim == 2 and array.strides[1] == array.itemsize
    starts = address + array.strides[0] * np.arange(len(array))
    first, stop = -(-starts // PAGE_BYTES), (starts + array[0].nbytes) // PAGE_BYTES
    first, stop = first[stop > first], stop[stop > first]
    if not len(first):
        return nothing
    change = np.zeros(stop[-1] - first[0] + 1, np.int8)
    change[first - first[0]] = 1
    change[stop - first[0]] -= 1  # where a row ends and the next begins, nothing changes
    return np.arange(first[0], stop[-1]), np.cumsum(change[:-1], dtype=np.int8) > 0


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _held(pages: Pages, flags: np.uint64) -> Flags:
    """Which of some consecutive pages have all of `flags` in the kernel's eyes."""
    if not len(pages):
        return np.empty(0, np.bool_)
    try:
        with _PAGEMAP.open("rb", buffering=0) as pagemap:
            raw = os.pread(pagemap.fileno(), 8 * len(pages), 8 * int(pages[0]))
    except OSError:  # not Linux, or locked away
        raw = b""
    entries = np.zeros(len(pages), np.uint64)
    entries[: len(raw) // 8] = np.frombuffer(raw[: len(raw) // 8 * 8], np.uint64)
    held: Flags = (entries & flags) == flags
    return held


def _advise(address: int, nbytes: int, advice: int) -> bool:
    """Whether the system took a piece of advice; `address` is that of a page."""
    madvise = _madvise()
    return madvise is not None and madvise(address, nbytes, advice) == 0


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """madvise(2) of the C library; the mmap module's would need the map and not an address."""
    if sys.platform not in ("linux", "darwin"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


# ---- the file behind a map -----------------------------------------------------------------------


class Backing:
    """The open file that an array is a map of. Positions count from the array's first byte."""

    def __init__(self, descriptor: int, path: bytes, start: int) -> None:
        """Takes over an open descriptor; start is where in the file the array begins."""
        self._descriptor, self._path, self._start = descriptor, path, start
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # read nothing around

    def __del__(self) -> None:
        os.close(self._descriptor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it only reads, from where it is told to

    def read(self, position: int, into: memoryview) -> None:
        """Fill a buffer; FileFormatError if the file has become too short for that."""
        if os.preadv(self._descriptor, [into], self._start + position) != len(into):
            raise FileFormatError(f"{os.fsdecode(self._path)} was cut short while it was in use")

    def ask(self, position: int, nbytes: int) -> None:
        """Have a part read into the system's cache soon, without waiting for it."""
        start = self._start + position
        os.posix_fadvise(self._descriptor, start, nbytes, os.POSIX_FADV_WILLNEED)


def backing(array: Array) -> Backing | None:
    """The file that a contiguous array is a map of.

    None for any other memory, for a file that has been replaced or removed since it was mapped, for
    a map that was written to, and where the system does not tell.
    """
    assert array.flags.c_contiguous
    mapped = _mapping(_address(array), array.nbytes)
    pages, _ = _whole_pages(array)
    if mapped is None or (_held(pages, _IN_MEMORY) & ~_held(pages, _OF_A_FILE)).any():
        return None
    try:
        descriptor = os.open(mapped.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    found = Backing(descriptor, mapped.path, mapped.offset)
    return found if _file_of(descriptor) == mapped.file else None


def _file_of(descriptor: int) -> tuple[bytes, bytes] | None:
    """Device and inode as maps have them, which differ from those of stat on some file systems."""
    try:
        with mmap.mmap(descriptor, 1, prot=mmap.PROT_READ) as probe:
            mapped = _mapping(np.frombuffer(probe, np.uint8).ctypes.data, 1)
    except (OSError, ValueError):  # not a file any more, or an empty one
        return None
    return None if mapped is None else mapped.file


class _Mapping(NamedTuple):
    """What lies behind an address: the file as the system counts them, its path, the offset."""

    file: tuple[bytes, bytes]  # device and inode
    path: bytes
    offset: int


def _mapping(address: int, nbytes: int) -> _Mapping | None:
    """The file that is mapped at an address and for `nbytes` from it, if one is."""
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:  # first-stop rights offset device inode path
        fields = line.split(maxsplit=5)
        first, stop = (int(part, 16) for part in fields[0].split(b"-"))
        if first <= address and address + nbytes <= stop and len(fields) == 6:
            path = fields[5].replace(rb"\012", b"\n")
            return _Mapping((fields[3], fields[4]), path, int(fields[2], 16) + address - first)
    return None
