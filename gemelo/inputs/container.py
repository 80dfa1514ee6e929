"""Media containers, opened inside a fence: the bytes that were given, and nothing else.

Some formats are lists of other files or of addresses (playlists, concatenations, session
descriptions), and a decoding library follows them. Handed a file by a stranger, it would read the
machine's other files or call out. So those formats are not on the list, and the library may use no
protocol to open anything by itself; all it has is one open file. A pipe that cannot be sought is
read as it comes, by `open_live`, so that what was said can be heard before the speaker is done.

    with open_container("talk.m4a", "audio") as container:
        stream = container.streams.best("audio")
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media import Kind, Readable, Source, name_of, opened

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import InputContainer

Amiss = Literal["packet", "end"]

# Formats whose content is somewhere else, or that read any text as a picture.
ELSEWHERE = frozenset(
    "concat dash hls image2 lavfi rtp rtsp sap sdp tty vobsub webm_dash_manifest".split()
)


@contextmanager
def open_container(source: Source, kind: Kind) -> Iterator[InputContainer]:
    """A container in a path, bytes or an open file, which can be sought; a pipe is read whole.

    Raises InputError for what is no container, and for whatever fails in it while it is open.
    """
    with opened(source, kind) as file, fenced(file, kind, name_of(source, kind)) as container:
        yield container


@contextmanager
def open_live(pipe: Readable, kind: Kind) -> Iterator[InputContainer]:
    """A container that is still being written, read no further than it is asked for.

    Raises InputError as `open_container` does. Formats with their index at the end fail here.
    """
    with fenced(Pipe(pipe), kind, name_of(pipe, kind)) as container:
        yield container


class Pipe:
    """A file that can only be read, in pieces as they arrive."""

    def __init__(self, file: Readable) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as soon as there are some; none at the end."""
        if isinstance(self.file, io.BufferedReader):  # whose read would wait for all of them
            return self.file.read1(size)
        return self.file.read(size)[:size]  # the library copies whatever it gets


@contextmanager
def fenced(file: BinaryIO | Pipe, kind: Kind, name: str) -> Iterator[InputContainer]:
    """The container in an open file; errors are told about `name`."""
    import av

    fences = {"protocol_whitelist": "none", "format_whitelist": self_contained()}
    try:
        with av.open(file, "r", container_options=fences, metadata_errors="replace") as container:
            yield container
    except GemeloError:
        raise
    except MemoryError:
        raise InputError(f"{name} needs more memory than there is") from None
    except Exception as error:  # av's own errors, and what a damaged index makes of numbers
        told = error.strerror if isinstance(error, OSError | av.FFmpegError) else str(error)
        said = str(told).partition(":")[0] or type(error).__name__
        raise InputError(
            f"{name} cannot be read ({said}): it is broken, no {kind} file, "
            "or a list of other files"
        ) from None


def decoded(
    container: InputContainer, stream: AudioStream | VideoStream, amiss: Counter[Amiss]
) -> Iterator[Any]:
    """Every frame of a stream in the order it is played; `amiss` counts what is none."""
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, IndexError):  # it ends inside a packet, or has a new stream there
            amiss["end"] += 1
            return
        try:
            frames = packet.decode()
        except FFmpegError:
            amiss["packet"] += 1
            continue
        yield from frames


@cache
def self_contained() -> str:
    """Names of all formats that hold what they play, as the library wants its list."""
    import av

    return ",".join(sorted(av.formats_available - ELSEWHERE))
