"""Parts of a model that do not make one: each fault is a line that names the file and the cure."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemelo.errors import GemeloError
from gemelo.kernels.quants import FORMATS, Packed, unpack
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf

FACTS = {"general.architecture": "gemma3", "general.name": "a", "list": np.arange(3)}


def part(
    folder: Path, number: int, names: str, count: int = 3, stem: str = "m", **changes: Any
) -> Path:
    facts: dict[str, Any] = dict(FACTS) if number == 1 else {}
    facts |= {
        "split.no": np.uint16(number - 1),
        "split.count": np.uint16(count),
        "split.tensors.count": np.int32(4),
    }
    facts |= {key.replace("__", "."): value for key, value in changes.items()}
    path = folder / f"{stem}-{number:05}-of-{count:05}.gguf"
    values = {key: value for key, value in facts.items() if value is not None}
    weights = {n: Packed.of(np.full(8, ord(n), np.float32)) for n in names}
    tensors = [(n, (8,), FORMATS["f32"], lambda n=n: weights[n]) for n in names]
    write_gguf(path, values, tensors)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [part(tmp_path, number, names) for number, names in ((1, ""), (2, "abc"), (3, "d"))]


def test_parts_are_one(parts: list[Path]) -> None:
    for path in parts:
        file = GGUFFile(path)
        assert file.path == path and file.paths == tuple(parts)
        assert file.names() == ["a", "b", "c", "d"]
        assert [unpack(file.tensor(name))[0] for name in file] == [97, 98, 99, 100]
        assert list(file.metadata) == list(FACTS)
        with pytest.raises(GemeloError, match="no tensor 'e'"):
            file.tensor("e")


def test_a_relative_name_and_a_link_will_do(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(GGUFFile(parts[1].name).names()) == 4
    (tmp_path / "hub").mkdir()
    for path in parts:  # as the hub's cache has it: names that point to blobs
        shutil.move(path, tmp_path / "hub" / path.stem)
        path.symlink_to(tmp_path / "hub" / path.stem)
    assert len(GGUFFile(parts[2]).names()) == 4


def test_one_part_of_one_and_none_of_none_are_whole_files(tmp_path: Path) -> None:
    for count in (1, 0):
        path = tmp_path / "any.gguf"
        shutil.move(part(tmp_path, 1, "abcd", count), path)
        assert GGUFFile(path).names() == ["a", "b", "c", "d"]


Fault = Callable[[Path], Any]
FAULTS: dict[str, tuple[Fault, str]] = {
    "missing": (lambda f: (f / "m-00002-of-00003.gguf").unlink(), "m-00002-of-00003.gguf is not"),
    "two missing": (
        lambda f: [(f / f"m-0000{n}-of-00003.gguf").unlink() for n in (1, 2)],
        "m-00001-of-00003.gguf and 1 more is not beside it",
    ),
    "a folder": (
        lambda f: [
            (f / "m-00002-of-00003.gguf").unlink(),
            (f / "m-00002-of-00003.gguf").mkdir(),
        ],
        "m-00002-of-00003.gguf is not beside",
    ),
    "another": (lambda f: part(f, 2, "abc", general__name="b"), "another model .* general.name"),
    "of another kind": (lambda f: part(f, 2, "abc", list=np.arange(4)), "another model .* list"),
    "of more tensors": (
        lambda f: part(f, 2, "abc", split__tensors__count=np.int32(5)),
        "another model .* split.tensors.count",
    ),
    "doubled tensor": (lambda f: part(f, 2, "abd"), "'d' is in .*00002.* and in .*00003"),
    "a tensor less": (lambda f: part(f, 2, "ab"), "split.tensors.count is 4, .* hold 3"),
    "a tensor more": (lambda f: part(f, 2, "abcx"), "split.tensors.count is 4, .* hold 5"),
    "doubled part": (
        lambda f: shutil.copy(f / "m-00003-of-00003.gguf", f / "m-00002-of-00003.gguf"),
        "part 3 of 3 by its key-values, and not part 2 of 3",
    ),
    "of fewer": (
        lambda f: part(f, 2, "abc", split__count=np.uint16(2)),
        "part 2 of 2 by its key-values, and not part 2 of 3",
    ),
    "not a part": (lambda f: part(f, 2, "abc", split__no=None), "split.no is None"),
    "broken": (lambda f: (f / "m-00002-of-00003.gguf").write_bytes(b"x"), "00002-of-00003.gguf"),
    "a text": (lambda f: part(f, 2, "abc", split__no="1"), "split.no is '1'"),
}


@pytest.mark.parametrize(("break_it", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_of_parts(parts: list[Path], tmp_path: Path, break_it: Fault, words: str) -> None:
    break_it(tmp_path)
    with pytest.raises(GemeloError, match=words):
        GGUFFile(parts[2])


def test_names_that_lead_nowhere(parts: list[Path], tmp_path: Path) -> None:
    renamed = {
        "other.gguf": "part 3 of 3 of a split GGUF; name all of them like NAME-00003-of-00003.gguf",
        "m-3-of-3.gguf": "name all of them like NAME-00003",
        "sha256-abc": "part 3 of 3",
        "m-00001-of-00003.gguf": "rename it to m-00003-of-00003.gguf",
        "m-00003-of-00004.gguf": "rename it to m-00003-of-00003.gguf",
    }
    for name, words in renamed.items():
        shutil.copy(parts[2], tmp_path / name)
        with pytest.raises(GemeloError, match=words):
            GGUFFile(tmp_path / name)


@pytest.mark.parametrize("count", [513, 65535, -2, True, "3", 2.0])
def test_counts_that_cannot_be(tmp_path: Path, count: Any) -> None:
    path = part(tmp_path, 1, "abcd", split__count=count)
    with pytest.raises(GemeloError, match="split.count is"):
        GGUFFile(path)
