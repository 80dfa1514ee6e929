"""What needs PyTorch says so in one line, with the command that brings it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemelo
from gemelo import MissingExtraError, Model
from tests_without_torch.conftest import Command


@pytest.fixture(scope="module", params=["seeing_3n", "with_mmproj"])
def model(request: pytest.FixtureRequest) -> Model:
    return gemelo.load(request.getfixturevalue(request.param))


@pytest.mark.parametrize(
    ("ask", "extra"),
    [
        (lambda model: model.logits("the"), "torch"),
        (lambda model: model.forward("the"), "torch"),
        (lambda model: model.encode_audio(np.zeros(16000, np.float32)), "media"),
        (lambda model: model.encode_image(b"GIF89a"), "media"),
        (lambda model: model.audio_stream(), "media"),
        (lambda model: gemelo.read_image(b"GIF89a"), "media"),
        (lambda model: gemelo.read_audio("talk.wav"), "media"),
        (lambda model: gemelo.transcribe(model, "talk.wav"), "media"),
        (lambda model: gemelo.load(model.checkpoint.path, device="cuda"), "torch"),
    ],
    ids=["logits", "forward", "sound", "picture", "stream", "image", "audio", "speech", "cuda"],
)
def test_the_library(model: Model, ask: Callable[[Model], Any], extra: str) -> None:
    with pytest.raises(MissingExtraError) as raised:
        ask(model)
    text = str(raised.value)
    assert "\n" not in text and f"pip install 'gemelo[{extra}]'" in text
    assert model.generate("the", temperature=0, max_tokens=2).token_ids, "text goes on"


def test_messages_with_media(model: Model) -> None:
    for kind in ("image", "audio", "video"):
        content = [{"type": kind, kind: b"GIF89a"}, {"type": "text", "text": "the"}]
        with pytest.raises(MissingExtraError, match=r"gemelo\[media\]"):
            model.chat([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("generate", "the", "--image", "cat.jpg"), "media"),
        (("generate", "the", "--audio", "talk.wav"), "media"),
        (("generate", "the", "--video", "film.mp4"), "media"),
        (("transcribe", "talk.wav"), "media"),
        (("show", "crops", "cat.jpg"), "media"),
        (("generate", "the", "--device", "cuda"), "torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_the_command_line(
    gemelo: Command, seeing_3n: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], extra: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "talk.wav", "film.mp4"):
        (tmp_path / name).write_bytes(b"RIFF")
    ran = gemelo(*words, *(() if words[0] == "show" else ("-m", seeing_3n)))
    lines = ran.err.strip().splitlines()
    assert ran.code == 2 and not ran.out
    assert len(lines) == 1 and f"pip install 'gemelo[{extra}]'" in lines[0]


def test_chat_says_so_and_goes_on(gemelo: Command, seeing_3n: Path, tmp_path: Path) -> None:
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(b"RIFF")
    said = f"the\n/image {picture}\nof\n"
    ran = gemelo("chat", "-m", seeing_3n, "--max-tokens", 2, "--temperature", 0, stdin=said)
    assert "pip install 'gemelo[media]'" in ran.err and "Traceback" not in ran.err
