"""`gemelo transcribe`: files, pipes and microphones, in four formats."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemelo as library
from gemelo.cli.transcribe import clock, subtitles
from gemelo.config.languages import LANGUAGES
from gemelo.inputs.media.audio import stream_audio
from gemelo.transcription import Segment, transcribe
from tests.cli.conftest import Command, start
from tests.multimodal import recording, write_wave

CUES = [
    Segment(0.0, 2.5, "one", (1,), "stop"),
    Segment(2.5, 3.0, "", (), "stop"),
    Segment(3661.0, 3662.25, "two\n\nthree --> four", (1, 2), "stop"),
]


@pytest.fixture
def ear(awake_directory: Path) -> str:
    return str(awake_directory)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    write_wave(tmp_path / "talk.wav", recording(2.0))
    return tmp_path / "talk.wav"


def test_a_file_a_pipe_and_a_stream_say_the_same(gemelo: Command, ear: str, talk: Path) -> None:
    words = ("-m", ear, "--max-tokens", "5", "-q")
    file = gemelo("transcribe", str(talk), *words)
    pipe = gemelo("transcribe", "-", *words, stdin=talk.read_bytes())
    stream = gemelo("transcribe", str(talk), "--stream", *words)
    assert file.code == pipe.code == stream.code == 0, file.err
    assert file.out == pipe.out and file.out.split() == stream.out.split() != []


def test_json_has_times(gemelo: Command, ear: str, talk: Path) -> None:
    ran = gemelo("transcribe", str(talk), "-m", ear, "--format", "json", "--max-tokens", "5")
    told = json.loads(ran.out)
    (segment,) = told["segments"]
    assert (segment["start_s"], segment["end_s"]) == (0.0, 2.0)
    assert told["text"] == segment["text"] and len(segment["token_ids"]) == 5
    assert "stopped after 5 tokens; --max-tokens" in ran.err
    full = gemelo("transcribe", str(talk), "-m", ear, "--context", "60")
    assert "the context of 60 is full" in full.err and "--max-tokens" not in full.err


def test_the_towers_of_a_gguf(gemelo: Command, ear: str, talk: Path, tmp_path: Path) -> None:
    text, towers = tmp_path / "text" / "two.gguf", tmp_path / "towers" / "ear.gguf"
    for file, part in ((text, "--text-only"), (towers, "--mmproj")):
        file.parent.mkdir()
        assert gemelo("convert", ear, str(file), part).code == 0
    words = ("transcribe", str(talk), "--max-tokens", "5", "-q", "-m")
    model = library.load(text, mmproj=towers)
    (wanted,) = transcribe(model, stream_audio(str(talk), 10.0), max_tokens=5)
    for way in ("--repack", "--no-repack"):
        ran = gemelo(*words, str(text), "--mmproj", str(towers), way)
        assert ran.code == 0 and ran.out == f"{wanted.text}\n", ran.err
    deaf = gemelo(*words, str(text))
    assert deaf.code == 2 and "no audio encoder" in deaf.err


def test_segments(gemelo: Command, ear: str, tmp_path: Path) -> None:
    write_wave(tmp_path / "long.wav", recording(31.0))
    words = ("transcribe", str(tmp_path / "long.wav"), "-m", ear, "--max-tokens", "3")
    cut = gemelo(*words, "--segment", "--format", "json")
    assert len(json.loads(cut.out)["segments"]) == 2 and "30 s" not in cut.err
    whole = gemelo(*words, "--format", "json")
    assert len(json.loads(whole.out)["segments"]) == 1 and "longer than the 30 s" in whole.err


def test_verbose_says_what_each_segment_cost(gemelo: Command, ear: str, tmp_path: Path) -> None:
    write_wave(tmp_path / "long.wav", recording(32.0))
    words = ("transcribe", str(tmp_path / "long.wav"), "-m", ear, "--max-tokens", "3", "-v")
    lines = gemelo(*words, "--segment", "--seed", "7").err.splitlines()
    first, second, _, total = lines[-4:]
    cost = (
        r"encoded in [\d.]+ s; prompt \d+ tokens in [\d.]+ s \([\d.]+ tokens/s\), (\d+) reused; "
        r"answer 3 tokens in [\d.]+ s \([\d.]+ tokens/s\); [\d.]+ x real time"
    )
    reused = [
        re.fullmatch(f"segment {number}: {sound} s of sound, {cost}", line)
        for number, sound, line in ((1, "30.0", first), (2, "3.0", second))
    ]
    assert all(reused) and [found and int(found[1]) > 0 for found in reused] == [False, True]
    assert re.fullmatch(
        r"2 segments, 32.0 s of sound, encoded in .* s; prompts \d+ tokens in .* s; "
        r"answers 6 tokens in .* s; [\d.]+ x real time; seed 7; peak memory [\d.]+ [MG]iB",
        total,
    )


def test_the_order_of_the_lines_of_one_segment(gemelo: Command, ear: str, talk: Path) -> None:
    ran = gemelo("transcribe", str(talk), "-m", ear, "--max-tokens", "3", "-v", "--seed", "5")
    loaded, stopped, total = ran.err.splitlines()[-3:]
    assert loaded.startswith("loaded ") and stopped.startswith("stopped after 3 tokens")
    assert total.startswith("2.0 s of sound, encoded in ") and "; seed 5; peak memory " in total
    quiet = gemelo("transcribe", str(talk), "-m", ear, "--max-tokens", "3")
    assert "s of sound" not in quiet.err


def test_the_seed_that_was_drawn_gives_the_text_again(
    gemelo: Command, ear: str, tmp_path: Path
) -> None:
    write_wave(tmp_path / "long.wav", recording(32.0))
    words = ("transcribe", str(tmp_path / "long.wav"), "-m", ear, "--max-tokens", "4", "--segment")
    words = (*words, "--temperature", "1", "--format", "json")
    drawn = json.loads(gemelo(*words).out)
    again = json.loads(gemelo(*words, "--seed", str(drawn["seed"])).out)
    texts = [[one["token_ids"] for one in told["segments"]] for told in (drawn, again)]
    assert texts[0] == texts[1] and len(texts[0]) == 2


def test_languages_are_listed(gemelo: Command) -> None:
    ran = gemelo("transcribe", "--languages")
    assert ran.code == 0 and "es      Spanish, Castilian\n" in ran.out
    assert len(ran.out.splitlines()) == len(LANGUAGES)


WRONG = [
    (
        ["talk.wav", "-m", "demo"],
        "the embedded Gemma 3 270M has no audio encoder; transcribe needs",
    ),
    (["talk.wav"], "no model was named, and the embedded Gemma 3 270M has no audio encoder"),
    (["talk.wav", "--language", "klingon"], "--language klingon is unknown"),
    (["none.wav", "-m", "demo"], "cannot read none.wav: no such file"),
]


@pytest.mark.parametrize(("words", "reason"), WRONG)
def test_mistakes_are_found_before_torch_is_loaded(
    talk: Path, words: list[str], reason: str
) -> None:
    program = (
        "import sys; from gemelo.cli import run; code = run(sys.argv[1:]); "
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GEMELO_MODEL"}
    ran = subprocess.run(
        [sys.executable, "-c", program, "transcribe", *words],
        cwd=talk.parent,
        env=environment | {"PYTHONPATH": str(Path(library.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert reason in ran.stderr


def test_subtitles() -> None:
    assert subtitles(CUES, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\none\n\n"
        "2\n01:01:01,000 --> 01:01:02,250\ntwo\nthree --> four\n"
    )
    assert subtitles(CUES, "vtt") == (
        "WEBVTT\n\n1\n00:00:00.000 --> 00:00:02.500\none\n\n"
        "2\n01:01:01.000 --> 01:01:02.250\ntwo\nthree -> four\n"
    )
    assert clock(59.9996, ",") == "00:01:00,000"


def test_what_is_wrong_is_one_line(gemelo: Command, ear: str, talk: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp3").write_bytes(b"\0" * 100)
    write_wave(tmp_path / "short.wav", recording(0.02))
    for words, reason in (
        ((), "give a file"),
        ((str(talk), "--microphone"), "one of them"),
        ((str(talk), "--stream", "--format", "srt"), "--stream writes text"),
        ((str(talk), "--chain-of-thought"), "say what --translate-to"),
        ((str(talk), "--language", "xx"), "--language xx is unknown"),
        ((str(talk), "--translate-to", "Spanihs"), "--translate-to Spanihs is unknown; is Spanish"),
        ((str(talk), "--language", ""), "--language is empty"),
        ((str(talk),), "is a Gemma 3 and has no audio encoder; transcribe needs a Gemma 3n: -m"),
        ((str(tmp_path / "none.wav"),), "no such file"),
        ((str(tmp_path / "none.wav"), "-m", "/nowhere"), "/nowhere: no such file"),
        ((str(tmp_path),), "it is not a file"),
        (("", "-m", ear), "the name of the recording is empty"),
        ((str(tmp_path / "none.wav"), "-m", ear), "no such file"),
        ((str(tmp_path / "bad.mp3"), "-m", ear), "bad.mp3 cannot be read"),
        ((str(tmp_path / "short.wav"), "-m", ear), "lasts 0.0200 s, too short for an audio token"),
        ((str(tmp_path / "short.wav"), "-m", ear, "--segment"), "give one of 0.0321 s or more"),
    ):
        ran = gemelo("transcribe", *words, "-q")
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1), ran.err
        assert reason in ran.err


def test_an_empty_stdin_is_no_broken_recording(ear: str) -> None:
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with start("transcribe", "-", "-q", "-m", ear, **streams) as process:
        assert process.stderr is not None
        assert process.stderr.read().decode() == "error: stdin is empty: no recording came\n"
        assert process.wait(60) == 2


def test_a_microphone(gemelo: Command, ear: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    ran = gemelo("transcribe", "--microphone", "-m", ear)
    assert ran.code == 2 and "pip install 'gemelo[microphone]'" in ran.err
    assert "libportaudio2" in ran.err
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice(presses=3))
    ran = gemelo("transcribe", "--microphone", "-m", ear, "--format", "json", "--max-tokens", "2")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["segments"][0]["end_s"] == 1.5


def fake_sounddevice(presses: int) -> Any:
    """A microphone that hears noise; Ctrl-C is pressed after so many pieces."""
    import signal

    class InputStream:
        def __init__(self, rate: int, channels: int, dtype: str) -> None:
            self.left = presses

        def __enter__(self) -> InputStream:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def read(self, count: int) -> tuple[np.ndarray, bool]:
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)
            return recording(count / 16000)[:, None], False

    module = types.ModuleType("sounddevice")
    module.InputStream = InputStream  # type: ignore[attr-defined]
    module.PortAudioError = OSError  # type: ignore[attr-defined]
    return module
