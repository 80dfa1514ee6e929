"""Nothing of PyTorch, of media or of transformers can be imported; tiny models made with NumPy."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gemelo.checkpoints import written
from gemelo.checkpoints.convert import convert
from gemelo.cli import run
from gemelo.kernels import native
from tests_without_torch import ABSENT
from tests_without_torch.models import GEMMA3, GEMMA3N, SEEING_3N, write

if native.extension is not None:
    native.set_threads(1)  # the models are tiny


class Ran(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


def pytest_configure() -> None:
    if os.environ.get("GEMELO_NATIVE_REQUIRED") and native.module is None:
        raise pytest.UsageError("GEMELO_NATIVE_REQUIRED is set, but there are no native kernels")
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def own_record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A record of what conversions write, apart from the user's own."""
    path = tmp_path_factory.mktemp("record") / written.RECORD
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "_record", lambda: path)
        yield


@pytest.fixture(autouse=True)
def nothing_was_loaded() -> Iterator[None]:
    """After every test: none of them has come in by another way."""
    yield
    assert all(sys.modules[name] is None for name in ABSENT)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def gemma3(folder: Path) -> Path:
    """A Gemma 3 in float32, with a chat template."""
    return write(folder / "gemma3", GEMMA3)


@pytest.fixture(scope="session")
def gemma3n(folder: Path) -> Path:
    """A Gemma 3n of text in float32."""
    return write(folder / "gemma3n", GEMMA3N)


@pytest.fixture(scope="session")
def seeing_3n(folder: Path) -> Path:
    """A Gemma 3n with vision tower and audio encoder."""
    return write(folder / "seeing-3n", SEEING_3N)


@pytest.fixture(scope="session")
def quantised(gemma3: Path) -> Path:
    """The Gemma 3 as a GGUF file with 8-bit matrices."""
    path = gemma3.parent / "gemma3-q8_0.gguf"
    convert(gemma3, path, "q8_0")
    return path


@pytest.fixture(scope="session")
def with_mmproj(seeing_3n: Path) -> Path:
    """The same as a GGUF file with its towers in an mmproj file beside it."""
    place = seeing_3n.parent / "gguf"
    place.mkdir()
    convert(seeing_3n, place / "seeing.gguf", "f32", text_only=True)
    convert(seeing_3n, place / "mmproj-seeing.gguf", "f32", mmproj=True)
    return place / "seeing.gguf"


@pytest.fixture
def gemelo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command line: `gemelo("generate", "Hi", stdin="")`."""
    monkeypatch.setenv("GEMELO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMELO_MODEL", raising=False)

    def command(*words: object, stdin: str = "") -> Ran:
        source = io.BytesIO(stdin.encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(source, encoding="utf-8"))
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Ran(code, *capsys.readouterr())

    return command
