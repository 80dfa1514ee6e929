"""Media containers opened with PyAV, demuxed and decoded under whitelists and a time budget.

Some formats are lists of other files or of addresses (playlists, concatenations, session
descriptions), and a decoding library follows them. Handed a file by a stranger, it would read the
machine's other files or call out. So there is a list of the formats that people have, those are not
on it, and the library may use no protocol to open anything by itself; all it has is one open file.
The decoders of sound are a list, too. A pipe that cannot be sought is read as it comes, by
`open_live`, so that a live recording can be transcribed before it is over. What takes much time and
gives little sound is given up.

    with open_container("talk.m4a", "audio") as container:
        stream = container.streams.best("audio")
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media.file_objects import Borrowed, Readable
from gemelo.inputs.media.mp4_boxes import check_boxes, is_boxes
from gemelo.inputs.media.parts import (
    MAX_STREAM_BYTES,
    NOUNS,
    Modality,
    Source,
    name_of,
    open_media,
    require_readers,
)

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoStream
    from av.container import InputContainer

Corruption = Literal["packet", "end"]
T = TypeVar("T")

# What people have: sound, pictures that move, and what holds both. None leads to another file.
FORMATS = frozenset(
    "aac ac3 aiff amr amrnb amrwb apng asf au av1 avi caf dts dtshd dv eac3 flac flv gif gsm h261 "
    "h263 h264 hevc ilbc ircam ivf loas m4v matroska mjpeg mlp mov mp3 mpeg mpegts mpegvideo mxf "
    "nistsphere nut obu ogg sox truehd tta vc1 voc w64 wav webm wtv wv yuv4mpegpipe".split()
)
SOUND_DECODERS = frozenset(
    "aac aac_latm ac3 adpcm_ima_qt adpcm_ima_wav adpcm_ms adpcm_swf adpcm_yamaha alac amrnb amrwb "
    "dca eac3 flac g722 g726 g726le gsm gsm_ms ilbc libopencore_amrnb libopencore_amrwb libopus "
    "libspeex libvorbis mlp mp1 mp1float mp2 mp2float mp3 mp3float nellymoser opus pcm_alaw "
    "pcm_bluray pcm_dvd pcm_f16le pcm_f24le pcm_f32be pcm_f32le pcm_f64be pcm_f64le pcm_mulaw "
    "pcm_s16be pcm_s16be_planar pcm_s16le pcm_s16le_planar pcm_s24be pcm_s24le pcm_s24le_planar "
    "pcm_s32be pcm_s32le pcm_s32le_planar pcm_s64be pcm_s64le pcm_s8 pcm_s8_planar pcm_u16be "
    "pcm_u16le pcm_u24be pcm_u24le pcm_u32be pcm_u32le pcm_u8 pcm_vidc s302m speex truehd tta "
    "vorbis wavpack wmalossless wmapro wmav1 wmav2 wmavoice".split()
)
BUDGET_S = 2.0  # of computing before there is any sound
CHECKS = 16  # one in so many looks at the clock
MOST_TRACKS = 64
MOST_ALLOCATED = 200 << 20  # a frame of 8K in 16 bits


class TimeBudget:
    """Time that decoding may take: some, and then as much as the sound lasts that it gave.

    What counts is computing from `begin` to `end`, which leaves out whatever is done with the
    sound, and neither waiting for a pipe nor for a disk.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.left_s = BUDGET_S
        self.since_s: float | None = None
        self.num_checks = 0

    def begin(self) -> None:
        """From here on time counts."""
        self.since_s = time.thread_time()

    def end(self) -> None:
        """Time no longer counts."""
        if self.since_s is not None:
            self.left_s -= time.thread_time() - self.since_s
            self.since_s = None

    def earn(self, sound_s: float) -> None:
        """There was some sound."""
        self.left_s += sound_s

    def check(self) -> None:
        """Raise InputError when it is used up."""
        self.num_checks += 1
        if self.since_s is None or self.num_checks % CHECKS:  # asking for the time takes time
            return
        if time.thread_time() - self.since_s > self.left_s:
            raise InputError(
                f"{self.name} takes too long to read for the little that is in it: it is broken, "
                "or made to keep readers busy; convert it to WAV with another program"
            )


class TimedFile:
    """A file whose reader has a time budget."""

    def __init__(self, file: BinaryIO | Pipe, time_budget: TimeBudget) -> None:
        self.file, self.time_budget = file, time_budget
        self.name = str(getattr(file, "name", ""))  # some formats are known by how it ends
        self.has_failed = False  # which the library may pass over; then it is to find the end
        if isinstance(file, Pipe):
            return
        self.seek, self.tell = self._seek, file.tell

    def read(self, size: int) -> bytes:
        """What the file reads."""
        return b"" if self.has_failed else self._tried(lambda: self.file.read(size))

    def _seek(self, offset: int, whence: int = 0) -> int:
        file = self.file
        assert not isinstance(file, Pipe)
        return -1 if self.has_failed else self._tried(lambda: file.seek(offset, whence))

    def _tried(self, act: Callable[[], T]) -> T:
        try:
            self.time_budget.check()
            return act()
        except BaseException:
            self.has_failed = True
            raise


@contextmanager
def open_container(
    source: Source, modality: Modality, time_budget: TimeBudget | None = None
) -> Iterator[InputContainer]:
    """A container in a path, bytes or an open file, which can be sought; a pipe is read whole.

    Raises InputError for what is no container, and for whatever fails in it while it is open;
    MissingExtraError without PyAV.
    """
    require_readers(modality)
    name = name_of(source, modality)
    time_budget = TimeBudget(name) if time_budget is None else time_budget
    with open_media(source, modality) as file:
        with input_errors(name, modality):
            check_boxes(name, file)
        with open_restricted(file, modality, name, time_budget) as container:
            yield container


@contextmanager
def open_live(
    file: Readable, modality: Modality, time_budget: TimeBudget
) -> Iterator[InputContainer]:
    """A container that is still being written, read no further than it is asked for.

    Raises InputError as `open_container` does. A format with its index at the end, or anywhere
    (MP4), is read whole first.
    """
    require_readers(modality)
    pipe = Pipe(Borrowed(file, NOUNS[modality]))
    name = name_of(file, modality)
    with input_errors(name, modality):
        whole = pipe.rest(name) if is_boxes(pipe.peek(8)) else b""
    with (
        open_container(whole, modality, time_budget)
        if whole
        else open_restricted(pipe, modality, name, time_budget) as container
    ):
        yield container


class Pipe:
    """A file that can only be read, in pieces as they arrive."""

    def __init__(self, file: Borrowed) -> None:
        self.file = file
        self.held = b""  # was looked at, and is still to be read

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as soon as there are some; none at the end."""
        if self.held:
            ahead, self.held = self.held[:size], self.held[size:]
            return ahead
        return self.file.read1(size)

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, which are still to be read; fewer at the end."""
        ahead = b""
        while len(ahead) < size and (piece := self.read(size - len(ahead))):
            ahead += piece
        self.held = ahead
        return ahead

    def rest(self, name: str) -> bytes:
        """All there is. Raises InputError for more than is read from a pipe."""
        pieces, size = [], 0
        while piece := self.read(1 << 20):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_STREAM_BYTES:
                raise InputError(
                    f"{name} has more than {MAX_STREAM_BYTES:,} bytes, which is what is read of a "
                    "pipe when the format needs all of it: give the file itself"
                )
        return b"".join(pieces)


@contextmanager
def open_restricted(
    file: BinaryIO | Pipe, modality: Modality, name: str, time_budget: TimeBudget
) -> Iterator[InputContainer]:
    """The container in an open file; errors begin with `name`."""
    import av

    fences = {
        "protocol_whitelist": "none",
        "format_whitelist": ",".join(sorted(FORMATS)),
        "max_streams": str(MOST_TRACKS),
    }
    if modality == "audio":
        fences["codec_whitelist"] = ",".join(sorted(SOUND_DECODERS))
    limit_allocations()
    with input_errors(name, modality):
        time_budget.begin()
        container = av.open(
            TimedFile(file, time_budget), "r", container_options=fences, metadata_errors="replace"
        )
        time_budget.end()
        with container:
            yield container


@cache
def limit_allocations() -> None:
    """Let the library take at most MOST_ALLOCATED bytes at once, in the whole process.

    It makes room for what a header claims, gigabytes even, before it looks for it.
    """
    from av import _core

    try:
        library = ctypes.CDLL(_core.__file__)
        library.av_max_alloc(ctypes.c_size_t(MOST_ALLOCATED))
    except (OSError, AttributeError):  # where a module does not hand on what it is linked with
        return


@contextmanager
def input_errors(name: str, modality: Modality) -> Iterator[None]:
    """Whatever fails in a file, as one line about `name`."""
    import av

    try:
        yield
    except GemeloError:
        raise
    except MemoryError:
        raise InputError(f"{name} needs more memory than there is") from None
    except Exception as error:  # av's own errors, and what a damaged index makes of numbers
        reason = error.strerror if isinstance(error, OSError | av.FFmpegError) else str(error)
        short = str(reason).partition(":")[0] or type(error).__name__
        if short == "Invalid argument":  # what the library says of a format that is not on its list
            short = "its format is not one of those that are read here"
        raise InputError(
            f"{name} cannot be read ({short}): it is broken, no {modality} file, "
            "or a list of other files"
        ) from None


def decode_frames(
    container: InputContainer,
    stream: AudioStream | VideoStream,
    corruptions: Counter[Corruption],
    time_budget: TimeBudget | None = None,
    on_packet: Callable[[Packet[Any]], None] = lambda packet: None,
) -> Iterator[Any]:
    """Every frame of a stream in the order it is played; `corruptions` counts what is none.

    The other streams are passed over. on_packet: called with each packet before it is decoded.
    Raises InputError once the time budget is used up.
    """
    from av.error import FFmpegError
    from av.stream import Discard

    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    packets = container.demux(stream)
    while True:
        try:
            if time_budget is not None:
                time_budget.check()
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, IndexError):  # it ends inside a packet, or has a new stream there
            corruptions["end"] += 1
            return
        on_packet(packet)
        try:
            frames = packet.decode()
        except FFmpegError:
            corruptions["packet"] += 1
            continue
        yield from frames
