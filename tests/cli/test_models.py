"""`pull`, `list` and `convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gemelo as library
from gemelo.checkpoints import locate
from tests.cli.conftest import Command

STORED = [locate.Stored("demo", Path("/here/demo.gguf"), 3 << 20)]


def test_list(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "stored", lambda: iter(STORED))
    assert json.loads(gemelo("list", "--json").out) == [
        {"name": "demo", "path": "/here/demo.gguf", "size_bytes": 3 << 20}
    ]
    table = gemelo("list").out
    assert "demo" in table and "3.0 MiB" in table and "/here/demo.gguf" in table


def test_list_says_what_is_not_there_yet(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "stored", lambda: iter([locate.Stored("demo", None, 3 << 20)]))
    assert json.loads(gemelo("list", "--json").out) == [
        {"name": "demo", "path": None, "size_bytes": 3 << 20}
    ]
    assert "joined from its package" in gemelo("list").out


def test_list_of_nothing(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "stored", lambda: iter(()))
    assert gemelo("list", "--json").out == "[]\n"
    ran = gemelo("list")
    assert (ran.code, ran.out) == (0, "") and "gemelo pull" in ran.err


def test_pull_prints_where_the_model_is(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, revision: str | None) -> Path:
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


def test_bench(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemelo.evals.machine.memory_bandwidth", lambda: 1e10)
    words = ("bench", "--prompt-tokens", "9", "--new-tokens", "3", "--repeat", "2")
    said = json.loads(gemelo(*words, "--json").out)
    assert said["repeat"] == 2 and said["memory_bandwidth_bytes_per_s"] == 1e10
    table = gemelo(*words).out
    for row in ("load to first token, s", "decode, tokens/s", "10.0 GB/s", "peak memory"):
        assert row in table
    ran = gemelo("bench", "--repeat", "0")
    assert ran.code == 2 and "repeat = 0" in ran.err


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
