"""Whatever path is given to whichever door, one `GemeloError` comes out, and soon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import gemelo
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.mmproj import with_mmproj
from gemelo.checkpoints.open import open_source
from gemelo.cli.conversation import Conversation, as_turns
from gemelo.config import Submodel
from gemelo.errors import MAX_CHARS, GemeloError
from gemelo.inputs.media.audio import read_audio, stream_audio
from gemelo.inputs.media.image import read_image
from gemelo.inputs.media.video import read_video
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from tests.gemma3n import TINY_3N

pytestmark = pytest.mark.timeout(30)  # a pipe that is waited for, a device that never ends

DOORS: dict[str, Callable[[Path], object]] = {
    "load": gemelo.load,
    "convert": lambda path: convert(path, path.with_name("target.gguf")),
    "open": open_source,
    "tokenizer": Tokenizer.from_file,
    "picture": lambda path: read_image(str(path)),
    "sound": lambda path: read_audio(str(path)),
    "live-sound": lambda path: list(stream_audio(str(path))),
    "video": lambda path: read_video(str(path)),
    "submodel": lambda path: Submodel.read(path, TINY_3N),
    "conversation": lambda path: Conversation(as_turns).load(path),
}


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.gguf")
    return folder / "pipe.gguf"


def loop(folder: Path) -> Path:
    (folder / "loop.gguf").symlink_to(folder / "loop.gguf")
    return folder / "loop.gguf"


def dangling(folder: Path) -> Path:
    (folder / "dangling.gguf").symlink_to(folder / "gone")
    return folder / "dangling.gguf"


def holding(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "file.gguf").write_bytes(content)
        return folder / "file.gguf"

    return make


def sparse(folder: Path) -> Path:
    with (folder / "sparse.gguf").open("wb") as file:
        file.truncate(1 << 42)
    return folder / "sparse.gguf"


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"x")
    return folder / "file" / "m.gguf"


PATHS: dict[str, Callable[[Path], Path]] = {
    "absent": lambda folder: folder / "absent.gguf",
    "folder": lambda folder: folder,
    "pipe": pipe,
    "loop": loop,
    "dangling": dangling,
    "zero-device": lambda folder: Path("/dev/zero"),
    "null-device": lambda folder: Path("/dev/null"),
    "own-memory": lambda folder: Path("/proc/self/mem"),
    "no-end": lambda folder: Path("/proc/kmsg"),
    "long-name": lambda folder: folder / ("x" * 300),
    "long-path": lambda folder: folder / "/".join(["y" * 200] * 40),
    "nul": lambda folder: folder / "a\0b.gguf",
    "surrogate": lambda folder: folder / "a\ud800b.gguf",
    "below-a-file": below_a_file,
    "sparse": sparse,
    "empty": holding(b""),
    "one-byte": holding(b"\0"),
    "magic-alone": holding(b"GGUF"),
    "text": holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "page": holding(b"<!DOCTYPE html><html><body>404</body></html>"),
    "pickle": holding(b"\x80\x02}q\x00."),
    "zip": holding(b"PK\x03\x04" + bytes(100)),
    "escapes": holding(b"\x1b[2J\x1b]0;title\x07" * 100),
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_an_odd_path_is_one_error(
    door: Callable[[Path], object], path: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(GemeloError) as caught:
        door(path(tmp_path))
    said = str(caught.value)
    assert said.isprintable() and 0 < len(said) <= MAX_CHARS
    assert not (tmp_path / "target.gguf").exists()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_an_odd_mmproj_is_one_error(
    path: Callable[[Path], Path], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(GemeloError) as caught:
        with_mmproj(open_source(tiny_checkpoint), path(tmp_path))
    assert str(caught.value).isprintable()
