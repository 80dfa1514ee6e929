"""Open files of any making: a decoder gets the bytes it asked for, or there is one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media.audio import read_audio
from gemelo.inputs.media.container import TimeBudget, TimedFile
from gemelo.inputs.media.file_objects import Borrowed
from gemelo.inputs.media.image import read_image
from gemelo.inputs.media.video import read_video
from tests.inputs.bombs import encoded as pictured
from tests.inputs.recordings import encoded, stamped, voices
from tests.multimodal import photograph

RATE = 16_000
FILES: dict[str, tuple[Callable[[Any], Any], bytes]] = {
    "PNG": (read_image, pictured(photograph(40, 30), "PNG")),
    "TIFF": (read_image, pictured(photograph(40, 30), "TIFF", compression="tiff_lzw")),
    "WAV": (read_audio, encoded(voices(2, RATE, 0.5), RATE, "wav", "pcm_s16le")),
    "film": (read_video, stamped("mp4", "aac", pictures=(0, 1), num_packets=50)),
}


class Lent:
    """An open file with some methods replaced."""

    def __init__(self, held: bytes, **methods: Any) -> None:
        self.file = io.BytesIO(held)
        for name, method in methods.items():
            setattr(self, name, lambda *given, method=method: method(self.file, *given))

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def seekable(self) -> bool:
        return True


def failing(*given: Any) -> Any:
    raise RuntimeError("two\nlines")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    "methods",
    [
        {"read": lambda file, size=-1: file.read(min(size, 7) if size > 0 else size)},
        {"read": lambda file, size=-1: file.read(1)},
        {"read": lambda file, size=-1: bytearray(file.read(size))},
        {"read": lambda file, size=-1: memoryview(file.read(size))},
        {"seek": lambda file, offset, whence=0: file.seek(offset, whence) and None}
        | {"tell": lambda file: file.tell()},
        {"fileno": lambda file: 9999},
        {"getvalue": lambda file: b"nothing"},
        {"seekable": lambda file: False},
        {"seekable": lambda file: False, "read": lambda file, size=-1: file.read(1)},
        {"seekable": lambda file: False, "read": lambda file, size=-1: bytearray(file.read(size))},
    ],
)
def test_odd_files_are_read_as_they_are_meant(kind: str, methods: dict[str, Any]) -> None:
    read, held = FILES[kind]
    found, wanted = read(Lent(held, **methods)), read(held)
    if kind == "WAV":
        assert np.array_equal(found.values, wanted.values)
    elif kind == "film":
        assert len(found.frames) == len(wanted.frames) and found.notices == wanted.notices
    else:
        assert np.array_equal(np.asarray(found.image), np.asarray(wanted.image))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    "methods",
    [
        {"read": lambda file, size=-1: file.read()},
        {"read": lambda file, size=-1: file.read(size + 100_000 if size > 0 else size)},
        {"read": lambda file, size=-1: None},
        {"read": lambda file, size=-1: "text"},
        {"read": lambda file, size=-1: 5},
        {"read": failing},
        {"seek": lambda file, offset, whence=0: -5},
        {"seek": lambda file, offset, whence=0: 1 << 80},
        {"seek": lambda file, offset, whence=0: "here"},
        {"seek": failing},
        {"seekable": failing},
        {"seekable": lambda file: False, "read": lambda file, size=-1: "text"},
        {"seekable": lambda file: False, "read": lambda file, size=-1: None},
        {"seekable": lambda file: False, "read": failing},
    ],
)
def test_files_that_lie_are_one_line(kind: str, methods: dict[str, Any]) -> None:
    """Too many bytes were written behind the decoder's own, and ended the process."""
    read, held = FILES[kind]
    with pytest.raises(GemeloError) as caught:
        read(Lent(held, **methods))
    assert "\n" not in str(caught.value)


def test_reading_goes_on_until_there_is_enough() -> None:
    lent = Borrowed(Lent(b"0123456789", read=lambda file, size: file.read(min(size, 3))), "file")
    assert lent.read(0) == b"" and lent.read(8) == b"01234567" and lent.tell() == 8
    assert lent.read(8) == b"89" and lent.read(8) == b""
    assert lent.seek(-4, 2) == 6 and lent.read1(4) == b"678" and lent.read() == b"9"


def test_a_failure_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    """The library passes some over and reads on; each one more was a traceback at the terminal."""
    watched = TimedFile(io.BytesIO(b"abc"), TimeBudget("a.wav"))
    watched.file = Lent(b"", read=failing, seek=failing)  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        watched.read(3)
    assert watched.read(3) == b"" and watched.seek(0) == -1
    held = FILES["WAV"][1]
    endless = Lent(held, read=lambda file, size: file.read(size) or bytes(size))
    with pytest.raises(InputError, match="takes too long to read"):
        read_audio(endless)
    assert capfd.readouterr().err == ""


def test_pictures_may_be_borrowed_compressed() -> None:
    """A reader's number is of the file below, which holds other bytes."""
    import gzip

    packed = io.BytesIO(gzip.compress(FILES["TIFF"][1]))
    assert isinstance(Image.open(io.BytesIO(FILES["TIFF"][1])), Image.Image)
    assert read_image(gzip.GzipFile(fileobj=packed)).size == (40, 30)
