"""The front door: help, version, exit codes, and what happens when something breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gemelo as library
from gemelo.cli import app, models
from tests.cli.conftest import Command, start

GROUPS = (
    ["run"],
    ["generate"],
    ["chat"],
    ["transcribe"],
    ["tokenize"],
    ["pull"],
    ["list"],
    ["rm"],
    ["convert"],
    ["slice"],
    ["bench"],
)


def test_version(gemelo: Command) -> None:
    assert gemelo("--version").out == f"gemelo {library.__version__}\n"


def test_help_names_every_command_with_an_example_and_its_defaults(gemelo: Command) -> None:
    overview = gemelo("--help")
    assert overview.code == 0
    for words in (*GROUPS, ["show", "model"], ["show", "crops"]):
        assert f"\n  {words[0]} " in overview.out
        told = gemelo(*words, "--help")
        assert told.code == 0
        assert f"\n  gemelo {' '.join(words)}" in told.out, "an example"
    assert "[default: 0.95]" in gemelo("generate", "-h").out
    told = " ".join(gemelo("transcribe", "-h").out.split())
    for default in ("text", "4096", "0.0", "native", "(the model finds out)", "(as it is spoken)"):
        assert f"[default: {default}]" in told
    assert {command.name for command in app.registered_commands} == {words[0] for words in GROUPS}


def test_help_is_in_sections(gemelo: Command) -> None:
    told = gemelo("generate", "--help").out
    titles = ("Options", "Pictures and sound", "Model", "Sampling", "Output")
    places = [told.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    assert told.index("--top-k") > places[3]


def test_no_command_shows_the_help_and_fails(gemelo: Command) -> None:
    ran = gemelo()
    assert (ran.code, ran.out) == (2, "")
    assert "generate" in ran.err


def test_an_unknown_command(gemelo: Command) -> None:
    ran = gemelo("genrate", "x")
    assert ran.code == 2
    assert "genrate" in ran.err and "`gemelo --help`" in ran.err
    assert "Did you mean 'generate'?" in ran.err


def test_the_help_names_the_embedded_model_and_the_first_steps(gemelo: Command) -> None:
    told = gemelo("help").out
    assert told == gemelo("--help").out
    assert "gemelo run demo " in told and "gemelo run gemma3:1b " in told and "HF_TOKEN" in told
    assert gemelo("help", "show", "model").out == gemelo("show", "model", "--help").out
    assert gemelo("version").out == gemelo("--version").out


HEAVY = (
    "torch", "numpy", "PIL", "transformers", "rich", "huggingface_hub", "prompt_toolkit", "jinja2"
)  # fmt: skip


def run_and_list_heavy(words: list[str], folder: Path) -> tuple[str, str]:
    """What a process of its own says on stderr, and the heavy modules that it had loaded."""
    code = (
        "import sys\nfrom gemelo.cli import run\nrun(sys.argv[1:])\n"
        f"print('loaded:', *sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert ran.returncode == 0, ran.stderr
    told, _, loaded = ran.stderr.rpartition("loaded:")
    return told, loaded.strip()


@pytest.mark.parametrize(
    "words",
    [["--help"], ["generate", "--help"], ["--version"], ["help"], ["help", "run"], ["version"]],
)
def test_what_needs_no_model_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    assert run_and_list_heavy(words, tmp_path) == ("", "")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nope"], "No such command 'nope'"),
        (["generate", "x", "--top-p", "2"], "--top-p 2: expected 0 to 1"),
        (["generate", "x", "-m", "/gone/x.gguf"], "/gone/x.gguf: no such file"),
        (["generate", "x", "-m", "gone.gguf"], "gone.gguf: no such file"),
        (["generate", "x", "--image", "gone.png"], "--image gone.png: no such file"),
        (["generate", "x", "--audio", "gone.wav"], "--audio gone.wav: no such file"),
        (["generate", "x", "--mmproj", "gone.gguf"], "--mmproj gone.gguf: no such file"),
        (["generate", "--file", "gone.txt"], "cannot read gone.txt: No such file"),
        (["generate", "x", "--device", "tpu"], "--device tpu: expected auto, cpu, cuda"),
        (["generate", "x", "--threads", "0"], "--threads 0: expected 1 to 1024"),
        (["generate", "x", "--context", "0"], "--context 0: expected a whole number from 1 up"),
        (["generate", "x", "--fps", "0"], "--fps 0: expected a number above 0"),
        (["generate", "x", "--submodel", "E9B"], "sub-model 'E9B' is unknown"),
        (["generate", "x", "--submodel", "gone.toml"], "--submodel gone.toml: no such file"),
        (["generate", "x", "--speculate", "E2B:int3"], "--speculate E2B:int3: expected NAME or"),
        (["generate", "x", "--policy", "luck:1"], "--policy luck:1: expected latency:"),
        (["generate", "x", "--policy", "memory:x"], "--policy memory:x: expected latency:"),
        (["generate", "x", "--speculate", "E2B", "--policy", "memory:1"], "exclude each other"),
        (["chat", "/gone"], "/gone: no such file"),
        (["show", "model", "./gone.gguf"], "./gone.gguf: no such file"),
        (["show", "./gone.gguf"], "./gone.gguf: no such file"),
        (["bench", "/gone"], "/gone: no such file"),
        (["tokenize", "x", "-m", "/gone"], "/gone: no such file"),
    ],
)
def test_mistakes_are_found_before_anything_heavy_is_loaded(
    words: list[str], error: str, tmp_path: Path
) -> None:
    told, loaded = run_and_list_heavy(words, tmp_path)
    assert told.startswith(f"error: {error}") or error in told
    assert len(told.splitlines()) == 1 and loaded == ""


def test_a_model_of_the_environment_is_looked_for_where_none_is_named(
    gemelo: Command, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMELO_MODEL", "/gone")
    ran = gemelo("generate", "x")
    assert ran.code == 2 and ran.err.startswith("error: /gone: no such file")
    for words in (("chat", str(tiny_checkpoint)), ("chat", "-m", str(tiny_checkpoint))):
        assert gemelo(*words).code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--max-tokens", "abc"), "--max-tokens abc: expected a whole number (`gemelo generate"),
        (("-n", "abc"), "-n abc: expected a whole number"),
        (("--top-k", "1.5"), "--top-k 1.5: expected a whole number"),
        (("--top-p", "half"), "--top-p half: expected a number"),
        (("--n", ""), "--n '': expected a whole number"),
        (("--format", "bf17"), "--format bf17: expected native, bf16, f32, q8_0 or q4_0 (`"),
        (
            ("--format", "q4_k_m"),
            "--format q4_k_m: expected native, bf16, f32, q8_0 or q4_0; gemel",
        ),
        (("--format", "json"), "--format json: expected native, bf16, f32, q8_0 or q4_0; --json p"),
        (("--image", ""), "--image is empty: name a file"),
        (("--audio=",), "--audio is empty: name a file"),
        (("--mmproj", ""), "--mmproj is empty: name a file"),
        (("--temperature", "-1"), "--temperature -1: expected 0 to 100"),
        (("--temp", "-1"), "--temp -1: expected 0 to 100"),
        (("--repeat_penalty", "0"), "--repeat_penalty 0: expected 0.01 to 100"),
        (("--top-p", "0"), "--top-p 0: expected above 0, up to 1 (1 keeps all)"),
        (("--min-crop-size", "0"), "--min-crop-size 0: give a whole number from 1 up"),
        (("--stop", ""), "--stop has ''; each stop must be a text"),
    ],
)
def test_values_of_options_are_refused_by_name(
    gemelo: Command, words: tuple[str, ...], expected: str
) -> None:
    ran = gemelo("generate", *words, "Hi")
    assert (ran.code, ran.out) == (2, "") and len(ran.err.splitlines()) == 1
    assert ran.err.startswith(f"error: {expected}")


def test_other_commands_name_the_option_too(gemelo: Command) -> None:
    for command in (("chat",), ("run", "-p", "x"), ("transcribe", "x.wav")):
        ran = gemelo(*command, "--temperature", "101")
        assert ran.code == 2 and ran.err == "error: --temperature 101: expected 0 to 100\n"


def test_choices_are_taken_in_any_case(gemelo: Command) -> None:
    words = ("generate", "the", "--max-tokens", "2", "--format", "Q8_0", "--rebuild", "Off")
    assert gemelo(*words).code == 0


def broken(*arguments: object) -> None:
    raise KeyError("a key")


def test_a_bug_is_one_line_and_a_traceback_if_asked(
    gemelo: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "print_json", broken)
    ran = gemelo("list", "--json")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert "KeyError: 'a key'" in ran.err and "--verbose" in ran.err
    assert "Traceback" in gemelo("--verbose", "list", "--json").err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
        (OSError(5, "Input/output error", "f"), 1, "error: f: Input/output error"),
        (BrokenPipeError(), 1, ""),
        (MemoryError(), 1, "error: out of memory"),
    ],
)
def test_what_the_system_does_to_us(
    gemelo: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(models, "print_json", fail)
    monkeypatch.setattr("gemelo.cli._discard_stdout", lambda: None)  # it would be pytest's own
    ran = gemelo("list", "--json")
    assert ran.code == code
    assert ran.err.startswith(expected) and len(ran.err.splitlines()) <= 1


def test_a_reader_that_leaves_hears_no_complaint(tiny_checkpoint: Path) -> None:
    words = ("generate", "the", "-q", "--ignore-eos", "-m", str(tiny_checkpoint))
    with start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        process = start("--version", stdout=full, stderr=subprocess.PIPE)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.decode() == "error: No space left on device\n"


def test_a_current_folder_that_was_removed(
    gemelo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ran = gemelo("generate", "Hi")
    assert (ran.code, ran.out) == (2, "") and "the current folder was removed" in ran.err
