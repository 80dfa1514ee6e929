"""`pull`, `list` and `convert`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import gemelo as library
from gemelo.checkpoints import stored
from gemelo.checkpoints.stored import Stored
from gemelo.cli.models import list_models
from tests.cli.conftest import Command

STORED = [
    Stored("demo", Path("/here/demo.gguf"), 3 << 20, origin="demo"),
    Stored("a/b:Q4_K_M", Path("/hub/b.gguf"), 5 << 20, Path("/hub/mmproj-f16.gguf"), "hub"),
]


def test_list(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "stored", lambda: iter(STORED))
    first, second = json.loads(gemelo("list", "--json").out)
    assert first == {
        "name": "demo",
        "path": "/here/demo.gguf",
        "size_bytes": 3 << 20,
        "mmproj": None,
        "origin": "demo",
    }
    assert second["mmproj"] == "/hub/mmproj-f16.gguf" and second["origin"] == "hub"
    _, row, other = gemelo("list").out.splitlines()
    assert row.split() == ["demo", "3.0", "MiB", "-", "/here/demo.gguf"]
    assert other.split() == ["a/b:Q4_K_M", "5.0", "MiB", "mmproj-f16.gguf", "/hub/b.gguf"]


def test_list_says_what_is_not_there_yet(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "stored", lambda: iter([Stored("demo", None, 3 << 20)]))
    (one,) = json.loads(gemelo("list", "--json").out)
    assert one["name"] == "demo" and one["path"] is None
    assert "joined from its package" in gemelo("list").out


def test_list_of_nothing(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "stored", lambda: iter(()))
    assert gemelo("list", "--json").out == "[]\n"
    ran = gemelo("list")
    assert (ran.code, ran.out) == (0, "") and "gemelo pull" in ran.err


def test_pull_prints_where_the_model_is(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, revision: str | None, progress: object) -> Path:
        asked.append((name, revision))
        return Path("/hub/it")

    monkeypatch.setattr(library, "pull", fetch)
    assert gemelo("pull", "owner/name", "--revision", "v1").out == "/hub/it\n"
    assert json.loads(gemelo("pull", "owner/name:f.gguf", "--json").out) == {
        "model": "owner/name:f.gguf",
        "path": "/hub/it",
    }
    assert asked == [("owner/name", "v1"), ("owner/name:f.gguf", None)]


def test_pull_refuses_what_is_no_hub_id(gemelo: Command) -> None:
    ran = gemelo("pull", "nonsense")
    assert ran.code == 2 and "owner/name" in ran.err


def test_convert_and_generate_from_the_result(
    gemelo: Command, tiny_directory: Path, tmp_path: Path
) -> None:
    target = tmp_path / "exact.gguf"
    ran = gemelo("convert", str(tiny_directory), str(target), "--json")
    assert json.loads(ran.out)["path"] == str(target)
    words = ("generate", "the", "--temperature", "0", "--max-tokens", "4", "--json", "-m")
    before, after = (json.loads(gemelo(*words, str(m)).out) for m in (tiny_directory, target))
    assert before["token_ids"] == after["token_ids"]


def test_convert_leaves_a_target_alone(
    gemelo: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "old.gguf"
    target.write_bytes(b"precious")
    ran = gemelo("convert", str(tiny_checkpoint), str(target))
    assert ran.code == 2 and "exists" in ran.err
    assert target.read_bytes() == b"precious"


def test_convert_tells_people_on_stderr(
    gemelo: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ran = gemelo("convert", str(tiny_checkpoint), str(tmp_path / "folder"), "--format", "bf16")
    assert (ran.code, ran.out) == (0, "") and "wrote" in ran.err
    assert (tmp_path / "folder" / "config.json").is_file()


def test_convert_says_what_to_run_next(
    gemelo: Command, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "my model.gguf"
    silent = gemelo("convert", str(tiny_directory), str(target))
    again = gemelo("convert", str(tiny_directory), str(target))
    assert again.code == 2 and again.err.endswith("choose another name, or --force to replace it\n")
    monkeypatch.setattr("gemelo.cli.convert.interactive", lambda: True)
    asked = gemelo("convert", str(tiny_directory), str(target), "--force")
    *_, command = asked.err.splitlines()
    assert command.endswith(" runs it") and "gemelo generate" not in silent.err
    words = shlex.split(command.removesuffix(" runs it"))
    ran = gemelo(*words[1:], "--max-tokens", "2", "-q")
    assert words[:4] == ["gemelo", "generate", "-m", str(target)] and ran.code == 0, ran.err
    quiet = gemelo("convert", str(tiny_directory), str(target), "--force", "-q")
    assert quiet.err == ""


def test_convert_says_before_it_writes_what_becomes_of_blocks(
    gemelo: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ran = gemelo("convert", str(tiny_checkpoint), str(tmp_path / "folder"))
    first, last = ran.err.splitlines()
    assert first.startswith("note: a directory cannot hold Q8_0: float32 is written, ")
    assert last.startswith("wrote ")
    for words in (("--json",), ("-q",)):
        quiet = gemelo("convert", str(tiny_checkpoint), str(tmp_path / f"x{words[0]}"), *words)
        assert bool(quiet.err) == (words == ("--json",)), quiet.err


@pytest.mark.parametrize("command", ["convert", "slice"])
def test_a_format_that_is_only_read(gemelo: Command, tmp_path: Path, command: str) -> None:
    ran = gemelo(command, "nowhere", str(tmp_path / "x.gguf"), "--format", "Q4_K_M")
    assert ran.code == 2 and "error: --format Q4_K_M is read, not written" in ran.err
    ran = gemelo(command, "nowhere", str(tmp_path / "x.gguf"), "--format", "Q8_0")
    assert ran.code == 2 and "nowhere" in ran.err and "--format" not in ran.err


def test_bench(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemelo.evals.machine.memory_bandwidth", lambda: 1e10)
    words = ("bench", "--prompt-tokens", "9", "--new-tokens", "3", "--repeat", "2")
    said = json.loads(gemelo(*words, "--json").out)
    assert said["repeat"] == 2 and said["memory_bandwidth_bytes_per_s"] == 1e10
    table = gemelo(*words).out
    for row in ("load to first token, s", "decode, tokens/s", "10.0 GB/s", "peak memory"):
        assert row in table
    ran = gemelo("bench", "--repeat", "0")
    assert ran.code == 2 and "--repeat 0: expected" in ran.err


def test_convert_to_a_place_at_home(
    gemelo: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert gemelo("convert", str(tiny_checkpoint), "~/mine.gguf").code == 0
    assert (tmp_path / "mine.gguf").is_file() and not (tmp_path / "~").exists()


def test_a_name_that_is_empty(gemelo: Command, tmp_path: Path) -> None:
    """As of a variable that was not set: the default would be a model that nobody asked for."""
    ran = gemelo("convert", "", str(tmp_path / "mine.gguf"))
    assert ran.code == 2 and "name is empty" in ran.err and not (tmp_path / "mine.gguf").exists()


# ---- names ---------------------------------------------------------------------------------------


def test_known_models_fit_a_page(gemelo: Command) -> None:
    ran = gemelo("list", "--known")
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 116 and len(lines) > 20
    assert lines[0].split()[-2:] == ["ACCESS", "READS"] and "gated: accept the licence" in ran.err
    (row,) = (line.split() for line in lines if line.startswith("gemma3:1b "))
    assert row[1] == "ggml-org/gemma-3-1b-it-GGUF" and row[-2:] == ["open", "text"]
    for name, ending in (
        ("gemma-3-4b-it", "gated   text, pictures"),
        ("gemma3n:e4b", "open    text"),
        ("gemma-3n-E4B-it", "gated   text, pictures, sound"),
    ):
        (found,) = (line for line in lines if line.startswith(f"{name} "))
        assert found.endswith(f" {ending}")
    first = json.loads(gemelo("list", "--known", "--json").out)[0]
    assert set(first) == {"name", "hub_id", "parameters", "size_bytes", "gated", "reads"}


def test_names_are_resolved_without_torch(tmp_path: Path) -> None:
    lines = [
        "from gemelo.cli import run",
        "from gemelo.checkpoints import locate",
        "codes = [run(['list', '--known', '--json']), run(['list']), run(['pull', 'nonsense'])]",
        "codes += [run(['pull', 'gemma3:1b']), run(['rm', '-f', 'acme/x'])]",
        "locate.resolve('here.gguf')",
        "print(codes, {'torch', 'numpy'} & set(sys.modules))",
    ]
    (tmp_path / "here.gguf").write_bytes(b"GGUF")
    environment = os.environ | {
        "GEMELO_CACHE": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OLLAMA_MODELS": str(tmp_path),
        "PYTHONPATH": str(Path(library.__file__).parents[1]),
    }
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(["import sys", *lines])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines()[-1] == "[0, 0, 2, 1, 2] set()"


def test_a_narrow_terminal_cuts_nothing(
    gemelo: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stored, "stored", lambda: iter(STORED))
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 20)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    list_models()
    assert capsys.readouterr().out.splitlines() == [
        "demo",
        "  3.0 MiB",
        "  /here/demo.gguf",
        "a/b:Q4_K_M",
        "  5.0 MiB",
        "  mmproj-f16.gguf",
        "  /hub/b.gguf",
    ]


# ---- rm ------------------------------------------------------------------------------------------


def test_rm_asks_unless_forced(
    gemelo: Command, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = library.convert(tiny_directory, tmp_path / "mine.gguf").path
    ran = gemelo("rm", str(target))
    assert ran.code == 2 and "--force" in ran.err and target.exists()
    monkeypatch.setattr("gemelo.cli.models.interactive", lambda: True)
    ran = gemelo("rm", str(target), stdin=b"n\n")
    assert (ran.code, ran.out) == (0, "") and "left as it is" in ran.err and target.exists()
    ran = gemelo("rm", str(target), stdin=b"y\n")
    assert ran.code == 0 and "removed" in ran.err and not target.exists()


def test_rm_of_several_looks_at_all_first(
    gemelo: Command, tiny_directory: Path, tmp_path: Path
) -> None:
    target = library.convert(tiny_directory, tmp_path / "mine.gguf").path
    (tmp_path / "yours.gguf").write_text("precious")
    ran = gemelo("rm", "-f", str(target), str(tmp_path / "yours.gguf"))
    assert ran.code == 2 and "`rm " in ran.err and target.exists()
    assert gemelo("rm", "--force", str(target), str(target)).code == 0
    assert not target.exists() and (tmp_path / "yours.gguf").exists()
