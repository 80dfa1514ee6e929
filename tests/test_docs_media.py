"""Every command of docs/media.md runs as it stands, on tiny models under the names it uses."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from gemelo import Segment
from gemelo.cli import run
from tests.media import write_video
from tests.multimodal import AWAKE, EYED, photograph, recording, write, write_wave

PAGE = (Path(__file__).parent.parent / "docs" / "media.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "google").mkdir()
    write(folder / "google" / "gemma-3-4b-it", EYED)
    write(folder / "google" / "gemma-3n-E2B-it", AWAKE)
    photograph().save(folder / "cat.jpg")
    photograph(seed=1).save(folder / "dog.png")
    Image.new("RGB", (1200, 300)).save(folder / "panorama.png")
    write_wave(folder / "talk.wav", recording(1.0))
    write_video(folder / "walk.mp4", [0, 0.25, 0.5])
    return folder


def test_every_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("GEMELO_CACHE", str(place / "cache"))
    assert len(COMMANDS) >= 13
    for line in COMMANDS:
        command, _, source = line.partition(" < ")
        held = (place / source).read_bytes() if source else b""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(held)))
        words = shlex.split(command)[1:]
        if words[0] in ("generate", "transcribe"):
            words[1:1] = ["--max-tokens", "2"]
        if "google/gemma-3n-E2B-it" in words and words[0] == "generate":
            words[1:1] = ["--image-size", "256"]
        code = run(words)
        assert code == 0, (line, capsys.readouterr().err)
    assert (place / "crops" / "panorama-crop3.png").is_file()


def test_the_python(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (block,) = PYTHON
    names: dict[str, object] = {}
    exec(block, names)
    assert names["tokens"].shape[0] == 7  # type: ignore[attr-defined]
    assert names["embeddings"].shape == (16, 96)  # type: ignore[attr-defined]
    segment = names["segment"]
    assert isinstance(segment, Segment) and (segment.start_s, segment.end_s) == (0.0, 1.0)
