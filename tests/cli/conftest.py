"""Commands run in this process, on a tiny model, with everything they say caught."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gemelo.cli import run
from tests.conftest import HEADS_OF_64, tiny_model, write_checkpoint

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{{ message.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gemelo(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Run the command line's words in this process: `gemelo("generate", "Hi", stdin=b"")`."""
    monkeypatch.setenv("GEMELO_MODEL", str(tiny_checkpoint))
    monkeypatch.setenv("GEMELO_CACHE", str(tmp_path / "cache"))

    def command(*words: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = run(words)
        return Ran(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def chat_directory(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny-it"
    shutil.copytree(tiny_directory, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def long_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a long context and a chat template: it can be interrupted in the middle."""
    config = dataclasses.replace(HEADS_OF_64, max_position_embeddings=65536)
    folder = write_checkpoint(tmp_path_factory.mktemp("long") / "tiny-long", tiny_model(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def start(*words: str, **streams: object) -> subprocess.Popen[bytes]:
    """A process of its own, for what only a process shows: signals, pipes, terminals."""
    environment = os.environ | {
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "gemelo", *words],
        env=environment,
        **streams,  # type: ignore[call-overload]
    )
