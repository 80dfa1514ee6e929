"""File-like objects of callers, wrapped: bytes and nothing else, and as many as were asked for.

A decoder takes an open file at its word: what is read goes into memory of the size that was asked
for, and fewer bytes are the end. But anything with the right methods is a file to Python: a socket
reads what has arrived, a wrapper may read too much, return None or text, or have the number of
another file. So whatever was handed in is read through here.

    file = Borrowed(anything, "recording")
    file.read(4096), file.seek(0)
"""

from __future__ import annotations

import io
import operator
from typing import Any, Protocol, runtime_checkable

from gemelo.errors import InputError

MAX_POSITION = (1 << 63) - 1
MAX_READ_BYTES = 1 << 30  # what is read at once when all is asked for


@runtime_checkable
class Readable(Protocol):
    """An open binary file, whatever its class."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def seekable(self) -> bool: ...


class Borrowed:
    """An open file, held to what a file does; it is never closed. `noun` is how errors call it."""

    def __init__(self, file: Readable, noun: str) -> None:
        self.file, self.noun = file, noun

    def read(self, size: int = -1, /) -> bytes:
        """`size` bytes; fewer only at the end."""
        wanted = MAX_READ_BYTES if size < 0 else size
        first = self.read1(wanted)
        if len(first) in (0, wanted):
            return first
        pieces, num_read = [first], len(first)
        while num_read < wanted and (piece := self.read1(wanted - num_read)):
            pieces.append(piece)
            num_read += len(piece)
        return b"".join(pieces)

    def read1(self, size: int, /) -> bytes:
        """What there is, `size` bytes at most; none at the end."""
        if size < 1:
            return b""
        file = self.file  # of a pipe, `read` would wait for all of them
        data: Any = file.read1(size) if isinstance(file, io.BufferedReader) else file.read(size)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(
                f"the {self.noun} is an open file whose read() gives {type(data).__name__}: "
                "open it in binary mode, and not as one that never waits"
            )
        if len(data) > size:
            raise InputError(
                f"the {self.noun} is an open file whose read({size}) gives {len(data):,} bytes: "
                "give its content instead"
            )
        return bytes(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go somewhere, and say where that is."""
        position: Any = self.file.seek(offset, whence)
        if position is None:  # as some wrappers have it
            position = getattr(self.file, "tell", lambda: None)()
        try:
            position = operator.index(position)
        except TypeError:
            position = -1
        if not 0 <= position <= MAX_POSITION:
            raise InputError(
                f"the {self.noun} is an open file whose seek() does not say where it is: "
                "give its content instead"
            )
        return int(position)

    def tell(self) -> int:
        """Where it is."""
        return self.seek(0, 1)

    def seekable(self) -> bool:
        """Whether it can go back."""
        return bool(self.file.seekable())

    def close(self) -> None:
        """It is borrowed."""
