"""The front door: help, version, exit codes, and what happens when something breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gemelo as library
from gemelo.cli import app, models
from tests.cli.conftest import Command, start

GROUPS = (
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


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["--version"], ["nope"]])
def test_what_needs_no_model_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom gemelo.cli import run\nrun(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'rich', 'huggingface_hub', 'prompt_toolkit', 'jinja2'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--max-tokens", "abc"), "--max-tokens abc: expected a whole number (`gemelo generate"),
        (("--top-k", "1.5"), "--top-k 1.5: expected a whole number"),
        (("--top-p", "half"), "--top-p half: expected a number"),
        (("--n", ""), "--n '': expected a whole number"),
        (("--format", "q9"), "Invalid value for '--format': 'q9' is not one of 'native', "),
        (("--image", ""), "--image is empty: name a file"),
        (("--image", "a.png", "--audio="), "--audio is empty: name a file"),
        (("--mmproj", ""), "--mmproj is empty: name a file"),
    ],
)
def test_values_of_options_are_refused_by_name(
    gemelo: Command, words: tuple[str, ...], expected: str
) -> None:
    ran = gemelo("generate", *words, "Hi")
    assert (ran.code, ran.out) == (2, "") and len(ran.err.splitlines()) == 1
    assert ran.err.startswith(f"error: {expected}")


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
