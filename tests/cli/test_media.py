"""Pictures and recordings on the command line: in their order, at their places, or refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import gemelo as library
from gemelo.inputs.media.panscan import PanScan
from gemelo.inputs.prompt.media_loader import VisionOptions
from tests.cli.conftest import Command
from tests.media import write_video
from tests.multimodal import photograph, recording, write_wave

SHORT = ("--max-tokens", "4", "--temperature", "0", "--ignore-eos")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    photograph(90, 30).save(tmp_path / "a.png")
    photograph(20, 30, seed=1).save(tmp_path / "b.png")
    write_wave(tmp_path / "c.wav", recording(1.0))
    write_video(tmp_path / "d.mp4", [0, 0.25, 0.5])
    return tmp_path


def test_files_come_in_the_order_given(gemelo: Command, awake_directory: Path, files: Path) -> None:
    first, second, sound = (str(files / name) for name in ("a.png", "b.png", "c.wav"))
    words = (f"--image={first}", "--audio", sound, "--image", second, "--image-size", "256")
    ran = gemelo("generate", "-m", str(awake_directory), *words, *SHORT, "--json", "the")
    assert ran.code == 0, ran.err
    model = library.load(awake_directory)
    parts = [{"type": "image", "path": first}, {"type": "audio", "path": sound}]
    parts += [{"type": "image", "path": second}, {"type": "text", "text": "the"}]
    prompt = model.prompt([{"role": "user", "content": parts}], VisionOptions(image_size=256))
    told = json.loads(ran.out)
    assert tuple(told["prompt_token_ids"]) == prompt.ids
    wanted = model.generate(prompt, max_tokens=4, temperature=0, ignore_eos=True)
    assert tuple(told["token_ids"]) == wanted.token_ids


@pytest.mark.parametrize("way", ["--chat", "--raw"])
def test_files_go_where_the_text_has_places(
    gemelo: Command, eyed_directory: Path, files: Path, way: str
) -> None:
    pictures = ("--image", str(files / "a.png"), "--image", str(files / "b.png"))
    said = "the<start_of_image>of<start_of_image>"
    words = ("generate", way, "-m", str(eyed_directory), *pictures, *SHORT, "--json")
    ran = gemelo(*words, said)
    ids = json.loads(ran.out)["prompt_token_ids"]
    assert ids.count(92) == 32
    tokenizer = library.load(eyed_directory).tokenizer
    assert ids.index(tokenizer.encode("the", bos=False)[0]) < ids.index(90)
    few = gemelo(*words, "the<start_of_image>")
    assert few.code == 2 and "1 times for 2 files" in few.err


def test_pan_and_scan(gemelo: Command, eyed_directory: Path, files: Path) -> None:
    options = ("--pan-and-scan", "--min-crop-size", "16", "--max-num-crops", "3")
    words = ("generate", "-m", str(eyed_directory), "--image", str(files / "a.png"), *SHORT)
    ran = gemelo(*words, *options, "--json", "the")
    assert json.loads(ran.out)["prompt_token_ids"].count(90) == 4
    vision_options = VisionOptions(PanScan(16, 3))
    parts = [{"type": "image", "path": str(files / "a.png")}, {"type": "text", "text": "the"}]
    prompt = library.load(eyed_directory).prompt(
        [{"role": "user", "content": parts}], vision_options
    )
    assert json.loads(ran.out)["prompt_token_ids"] == list(prompt.ids)
    wrong = gemelo(*words, "--pan-and-scan", "--max-num-crops", "1", "the")
    assert wrong.code == 2 and "--max-num-crops 1: give" in wrong.err
    alone = gemelo(*words, "--max-num-crops", "3", "the")
    assert alone.code == 2 and "--max-num-crops 3 says nothing without" in alone.err


def test_pan_and_scan_as_the_models_files_have_it(
    gemelo: Command, eyed_directory: Path, files: Path
) -> None:
    model = shutil.copytree(eyed_directory, files / "model")
    own = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}
    (model / "preprocessor_config.json").write_text(json.dumps(own | {"do_flip": True}))
    words = ("generate", "-m", str(model), "--image", str(files / "a.png"), *SHORT, "--json")
    for options, pictures in (
        ((), 4),
        (("--max-num-crops", "2"), 3),
        (("--no-pan-and-scan",), 1),
        (("--pan-and-scan", "--min-crop-size", "256"), 1),
    ):
        ran = gemelo(*words, *options, "the")
        assert json.loads(ran.out)["prompt_token_ids"].count(90) == pictures, options
    assert "note: preprocessor_config.json has settings of no effect here: 'do_flip'" in ran.err
    (model / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.4, 0.4]}')
    ran = gemelo(*words, "-q", "the")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert "image_mean = [0.4, 0.4, 0.4], and the model's towers were built for 0.5" in ran.err


def test_a_recording_too_short_for_a_token(
    gemelo: Command, awake_directory: Path, files: Path
) -> None:
    write_wave(files / "short.wav", recording(0.02))
    told = "short.wav lasts 0.0200 s, too short for an audio token: give one of 0.0321 s or more"
    for way in ("--chat", "--raw"):
        words = ("-m", str(awake_directory), "--audio", str(files / "short.wav"), way, *SHORT)
        ran = gemelo("generate", *words, "-q", "the")
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
        assert told in ran.err
    script = f"/audio {files / 'short.wav'}\nthe\nof\n"
    words = ("-m", str(awake_directory), "--max-tokens", "3", "--temperature", "0")
    ran = gemelo("chat", *words, stdin=script.encode())
    assert ran.code == 0 and told in ran.err
    assert ran.err.count("error:") == 1 and ran.out != "", "the talk goes on"


def test_what_cannot_be_taken_is_one_line(
    gemelo: Command, eyed_directory: Path, chat_directory: Path, files: Path
) -> None:
    picture, sound = str(files / "a.png"), str(files / "c.wav")
    for words, reason in (
        (("--image", picture), "reads text only and cannot take the picture"),
        (("-m", str(chat_directory), "--image", picture), "reads text only"),
        (
            ("-m", str(eyed_directory), "--audio", sound),
            "has no audio encoder and cannot take the recording",
        ),
        (("-m", str(eyed_directory), "--image", str(files / "no.png")), "no such file"),
        (("-m", str(eyed_directory), "--image", sound), "cannot be read as a picture"),
    ):
        ran = gemelo("generate", *words, *SHORT, "-q", "the")
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
        assert reason in ran.err


def test_an_error_names_the_option_and_its_number(
    gemelo: Command, eyed_directory: Path, files: Path
) -> None:
    good, remote = str(files / "a.png"), "https://host/cat.png"
    for way in ("--chat", "--raw"):
        words = ("-m", str(eyed_directory), "--image", good, "--image", remote, way, *SHORT)
        ran = gemelo("generate", *words, "-q", "the")
        assert ran.code == 2 and len(ran.err.splitlines()) == 1
        assert "--image 2: the picture is at https://host/cat.png: URLs are not" in ran.err


def test_notices_are_told(gemelo: Command, eyed_directory: Path, files: Path) -> None:
    Image.new("RGBA", (30, 30), (255, 0, 0, 0)).save(files / "clear.png")
    words = ("generate", "-m", str(eyed_directory), "--image", str(files / "clear.png"), *SHORT)
    assert "transparent parts are shown as white" in gemelo(*words, "the").err
    assert gemelo(*words, "-q", "the").err == ""


@pytest.mark.parametrize(
    ("kind", "name"), [("image", "a.png"), ("audio", "c.wav"), ("video", "d.mp4")]
)
def test_a_conversation_with_a_file(
    gemelo: Command,
    eyed_directory: Path,
    awake_directory: Path,
    files: Path,
    kind: str,
    name: str,
) -> None:
    model, saved = eyed_directory if kind == "image" else awake_directory, files / "talk.json"
    script = f"/{kind} {files / name}\nthe\n/save {saved}\nof\n"
    side = 256 if kind == "video" else None
    small = () if side is None else ("--image-size", str(side))
    words = ("chat", "-m", str(model), *small, "--max-tokens", "3", "--temperature", "0")
    ran = gemelo(*words, stdin=script.encode())
    assert ran.code == 0 and "goes with what you say next" in ran.err
    asked, answered = json.loads(saved.read_text())
    assert [part["type"] for part in asked["content"]] == [kind, "text"]
    told = library.load(model)
    wanted = told.generate(
        told.prompt([asked], VisionOptions(image_size=side)), max_tokens=3, temperature=0
    )
    assert answered["content"] == wanted.text
    again = gemelo(*words, stdin=f"/load {saved}\nof\n".encode())
    assert again.code == 0 and again.out.split("\n")[0] == ran.out.split("\n")[1]


def test_a_conversation_looks_at_files_as_its_options_say(
    gemelo: Command, eyed_directory: Path, awake_directory: Path, files: Path
) -> None:
    cropped = VisionOptions(PanScan(16, 3))
    small = VisionOptions(image_size=256, fps=4.0)
    for model, kind, name, options, vision_options in (
        (eyed_directory, "image", "a.png", ("--min-crop-size=16", "--max-num-crops=3"), cropped),
        (awake_directory, "video", "d.mp4", ("--image-size=256", "--fps=4"), small),
    ):
        pan = ("--pan-and-scan",) if vision_options is cropped else ()
        words = ("chat", "-m", str(model), *pan, *options, "--max-tokens", "3")
        script = f"/{kind} {files / name}\nthe\n/stats\n"
        ran = gemelo(*words, "--temperature", "0", stdin=script.encode())
        parts = [{"type": kind, "path": str(files / name)}, {"type": "text", "text": "the"}]
        held = library.load(model)
        prompt = held.prompt([{"role": "user", "content": parts}], vision_options)
        assert len(prompt.ids) != len(held.prompt([{"role": "user", "content": parts}]).ids)
        assert f"prompt: {len(prompt.ids)} tokens" in ran.err
        wanted = held.generate(prompt, max_tokens=3, temperature=0)
        assert ran.out == f"{wanted.text}\n"
    wrong = gemelo("chat", "-m", str(eyed_directory), "--image-size", "256")
    assert (
        wrong.code == 2 and "an image size of 256 pixels: this model takes pictures of" in wrong.err
    )
    wrong = gemelo("chat", "-m", str(eyed_directory), "--pan-and-scan", "--max-num-crops", "1")
    assert wrong.code == 2 and "--max-num-crops 1: give" in wrong.err


def test_files_that_a_conversation_cannot_take(
    gemelo: Command, eyed_directory: Path, files: Path
) -> None:
    script = f"/audio {files / 'c.wav'}\n/image {files / 'no.png'}\n/image\n/video\n"
    told = gemelo("chat", "-m", str(eyed_directory), stdin=script.encode()).err
    assert (
        "has no audio encoder" in told
        and "no such file" in told
        and "/image needs a file's name" in told
    )
    assert "/video needs a file's name" in told
    base = gemelo("chat", stdin=f"/image {files / 'a.png'}\n".encode())
    assert "reads text only" in base.err


def test_show_crops(gemelo: Command, files: Path) -> None:
    Image.new("RGB", (1200, 500)).save(files / "wide.png")
    ran = gemelo("show", "crops", str(files / "wide.png"), "--save", str(files / "crops"))
    assert ran.code == 0 and "1200 x 500, 768 image tokens" in ran.out
    names = sorted(path.name for path in (files / "crops").iterdir())
    assert names == ["wide-crop1.png", "wide-crop2.png", "wide-original.png"]
    again = gemelo("show", "crops", str(files / "wide.png"), "--save", str(files / "crops"))
    assert again.code == 2 and "exists already" in again.err
    listed = json.loads(gemelo("show", "crops", str(files / "wide.png"), "--json").out)
    assert [view["name"] for view in listed["views"]] == ["original", "crop1", "crop2"]


# ---- without the extra ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "file", "package", "needed"),
    [
        ("--image", "a.png", "PIL", "pictures need the extra media (pillow is not installed)"),
        ("--image", "a.png", "torch", "pictures need the extra media (torch is not installed)"),
        ("--audio", "c.wav", "av", "recordings need the extra media (av is not installed)"),
        ("--video", "d.mp4", "av", "videos need the extra media (av is not installed)"),
    ],
)
def test_a_missing_extra_is_said_before_a_model_is_looked_for(
    gemelo: Command,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    file: str,
    package: str,
    needed: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    ran = gemelo("generate", "-m", "acme/none-of-this-name", option, str(files / file), "the")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: {needed}: pip install 'gemelo[media]'\n"


def test_a_chat_goes_on_without_the_extra(
    gemelo: Command, eyed_directory: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    said = f"/image {files / 'a.png'}\nthe\n".encode()
    ran = gemelo("chat", "-m", str(eyed_directory), "--max-tokens", "2", stdin=said)
    assert "pictures need the extra media (pillow is not installed)" in ran.err
    assert ran.out


def test_a_transcription_without_the_extra(
    gemelo: Command, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    ran = gemelo("transcribe", str(files / "c.wav"), "-m", "acme/none-of-this-name")
    assert (ran.code, ran.out) == (2, "")
    assert "recordings need the extra media (av is not installed)" in ran.err
