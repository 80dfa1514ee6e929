"""A checkpoint's folder is replaced whole or not at all, whatever stops its writer, and when."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gemelo.errors import GemeloError, InputError, UnavailableError
from gemelo.kernels.quants import FORMATS, Packed, unpack
from gemelo.weights import folder as folders
from gemelo.weights.files import replaced
from gemelo.weights.folder import recovered, replaced_folder
from gemelo.weights.safetensors import Safetensors, write_safetensors

# What a writer does to the disk, one after the other.
STEPS = ("open", "mkdir", "chmod", "fchmod", "fsync", "rename", "replace", "link", "unlink")
STEPS += ("rmdir", "listdir")


def write(path: Path, value: float, shards: int = 1, overwrite: bool = True) -> None:
    """A checkpoint of two tensors that all are `value`."""
    weight = Packed.of(np.full(8, value, np.float32))
    tensors = [(n, (8,), FORMATS["f32"], lambda: weight) for n in "ab"]
    with replaced_folder(path, overwrite) as inside:
        write_safetensors(inside, tensors, max_shard_bytes=64 // shards)
        (inside / "config.json").write_text(f'{{"value": {value}}}')


def value_of(path: Path) -> float:
    """Which checkpoint a folder has, all of it."""
    file = Safetensors(path)
    values = {float(x) for name in file.names() for x in unpack(file.tensor(name))}
    assert set(file.names()) == {"a", "b"} and len(values) == 1
    value = values.pop()
    assert (path / "config.json").read_text() == f'{{"value": {value}}}'
    return value


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk takes its time to sync; hundreds of writes need not wait for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["exchange", "aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of taking the target's name."""
    if request.param == "aside":
        monkeypatch.setattr(folders, "exchanged", lambda one, other: False)
    return str(request.param)


class Stop:
    """Calls `act` before or after the n-th step of a writer."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.number, self.act, self.taken = number, act, 0

    def __call__(self) -> None:
        self.taken += 1
        if self.taken == self.number:
            self.act()

    def around(self, step: Callable[..., object]) -> Callable[..., object]:
        def stopped(*arguments: object, **named: object) -> object:
            self()
            result = step(*arguments, **named)
            self()
            return result

        return stopped


@contextmanager
def stopping(number: int, act: Callable[[], None]) -> Iterator[Stop]:
    stop = Stop(number, act)
    with pytest.MonkeyPatch.context() as patch:
        for step in STEPS:
            patch.setattr(os, step, stop.around(getattr(os, step)))
        patch.setattr(folders, "exchanged", stop.around(folders.exchanged))
        yield stop


def interrupt() -> None:
    raise KeyboardInterrupt


def refuse() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("act", [interrupt, refuse])
def test_stopped_between_any_two_steps(way: str, act: Callable[[], None], tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, 1.0)
    number, outcomes = 0, set()
    while True:
        number += 1
        with stopping(number, act) as stop:
            try:
                write(target, 2.0, shards=2)
            except (KeyboardInterrupt, GemeloError, OSError):
                pass
        outcomes.add(value_of(target))
        write(target, 1.0)
        assert os.listdir(tmp_path) == ["model"], number
        if stop.taken < number:
            break
    assert outcomes == {1.0, 2.0} and number > 40


def test_killed_between_any_two_steps(tmp_path: Path) -> None:
    """The script forks, so it is a process of its own, without the threads of this one."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.weights.test_folder", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert all(int(steps) > 40 for steps in ran.stdout.split())


def kill_at_every_step(parent: Path) -> int:
    target, number, outcomes = parent / "model", 1, set()
    write(target, 1.0)
    while died_at(number, target):
        recovered(target)
        outcomes.add(value_of(target))
        write(target, 1.0)
        assert os.listdir(parent) == ["model"], (number, os.listdir(parent))
        number += 2  # after one step is before the next
    assert value_of(target) == 2.0 and outcomes == {1.0, 2.0}
    return number


def died_at(number: int, target: Path) -> bool:
    """Fork a writer that dies at a step; whether it did."""
    child = os.fork()
    if child == 0:
        with stopping(number, lambda: os._exit(9)):  # nothing is tidied up, as by SIGKILL
            write(target, 2.0, shards=2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_writer_that_still_lives_is_left_alone(way: str, tmp_path: Path) -> None:
    target = tmp_path / "model"
    with replaced_folder(target) as first:
        (first / "model.safetensors").write_bytes(b"first")
        write(target, 2.0)
        assert (first / "model.safetensors").read_bytes() == b"first"
        write(target, 3.0)
        assert not recovered(target) and value_of(target) == 3.0
    assert (target / "model.safetensors").read_bytes() == b"first"  # the last one wins whole
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_another_writer_takes_between_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "exchanged", lambda one, other: False)
    target = tmp_path / "model"
    write(target, 1.0)
    rename, others = os.rename, [5.0]

    def meanwhile(one: Path, other: Path) -> None:
        if os.fspath(one).endswith("/new") and others and not target.exists():
            write(target, others.pop())
        rename(one, other)

    monkeypatch.setattr(os, "rename", meanwhile)
    write(target, 2.0)
    assert value_of(target) == 2.0 and not others
    assert os.listdir(tmp_path) == ["model"]


def test_without_overwrite_what_came_meanwhile_stays(way: str, tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(InputError, match="exists"):
        with replaced_folder(target, overwrite=False) as inside:
            (inside / "config.json").write_text("{}")
            write(target, 1.0)
    assert value_of(target) == 1.0
    assert os.listdir(tmp_path) == ["model"]


def test_what_is_laid_into_the_target_meanwhile_is_kept(way: str, tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, 1.0)
    with pytest.raises(InputError, match=r"holds 'notes.txt'"):
        with replaced_folder(target) as inside:
            (inside / "config.json").write_text("{}")
            (target / "notes.txt").write_text("mine")
    assert (target / "notes.txt").read_text() == "mine" and value_of(target) == 1.0


def test_permissions_and_links_stay(way: str, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk" / "real", 1.0)
    (tmp_path / "disk" / "real").chmod(0o750)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    write(tmp_path / "link", 2.0)
    assert (tmp_path / "link").is_symlink() and value_of(tmp_path / "disk" / "real") == 2.0
    assert (tmp_path / "disk" / "real").stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path / "disk") == ["real"]


def foreign(path: Path, kind: str) -> None:
    """Something in a checkpoint's folder that no checkpoint has."""
    made: dict[str, Callable[[], object]] = {
        "README.md": lambda: (path / "README.md").write_text("mine"),
        ".gitattributes": lambda: (path / ".gitattributes").write_text(""),
        "model.gguf": lambda: (path / "model.gguf").write_bytes(b"GGUF"),
        "Config.json": lambda: (path / "Config.json").write_text(""),
        "tokenizer.json": lambda: (path / "tokenizer.json").mkdir(),
        "tokenizer.model": lambda: (path / "tokenizer.model").symlink_to("/nowhere"),
        "processor_config.json": lambda: os.mkfifo(path / "processor_config.json"),
        "model-1-of-2.safetensors": lambda: (path / "model-1-of-2.safetensors").touch(),
        "optimizer.pt": lambda: (path / "optimizer.pt").touch(),
        ".config.json.part": lambda: (path / ".config.json.part").touch(),
    }
    made[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "README.md",
        ".gitattributes",
        "model.gguf",
        "Config.json",
        "tokenizer.json",
        "tokenizer.model",
        "processor_config.json",
        "model-1-of-2.safetensors",
        "optimizer.pt",
        ".config.json.part",
    ],
)
def test_a_folder_that_holds_anything_else_is_refused(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, 1.0)
    foreign(target, kind)
    before = sorted(os.listdir(target))
    with pytest.raises(InputError, match=f"holds '{kind}'.*another folder"):
        write(target, 2.0)
    assert sorted(os.listdir(target)) == before and value_of(target) == 1.0
    assert os.listdir(tmp_path) == ["model"]


def test_files_of_a_model_without_one_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text("settings")
    with pytest.raises(InputError, match="holds 'config.json' but no safetensors"):
        write(tmp_path / "app", 1.0)
    assert (tmp_path / "app" / "config.json").read_text() == "settings"


def test_only_what_is_certainly_ours_is_removed(tmp_path: Path) -> None:
    """Names that look like leftovers, with things in them that do not."""
    kept = [
        ".model.0123456789abcdef.part/thesis.txt",  # no mark in it
        ".model.0123456789abcdef.part/new/config.json",
        ".model.0123456789abcdee.part/unfinished-by-gemelo",
        ".model.0123456789abcdee.part/new/thesis.txt",
        ".model.0123456789ABCDEF.part",
        ".model.part",
        ".modelx.0123456789abcdef.part",
        ".other.0123456789abcdef.part",
        "model.0123456789abcdef.part",
    ]
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "config.json").write_text("mine")
    (tmp_path / ".model.0123456789abcdee.part" / "old-0").symlink_to(tmp_path / "away")
    write(tmp_path / "model", 1.0)
    assert all((tmp_path / name).read_text() == "mine" for name in kept)
    assert (tmp_path / "away" / "config.json").read_text() == "mine"
    assert value_of(tmp_path / "model") == 1.0


def test_a_disk_that_is_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model", 1.0)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(full))
    with pytest.raises(UnavailableError, match=r"cannot write .*model.*No space left.*free some"):
        write(tmp_path / "model", 2.0)
    assert value_of(tmp_path / "model") == 1.0 and os.listdir(tmp_path) == ["model"]


def test_what_cannot_be_put_back_at_once_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "exchanged", lambda one, other: False)
    target, rename = tmp_path / "model", os.rename
    write(target, 1.0)

    def once(one: Path, other: Path) -> None:
        if Path(other) == target:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(one, other)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(UnavailableError, match=r"what was there is whole in .*\.part/old-0"):
        write(target, 2.0)
    monkeypatch.setattr(os, "rename", rename)
    assert recovered(target) and value_of(target) == 1.0


def test_a_folder_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model", 1.0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="may not be written to"):
        write(tmp_path / "model", 2.0)


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("act", [interrupt, refuse])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_stopped_between_any_two_steps(
    act: Callable[[], None], overwrite: bool, tmp_path: Path
) -> None:
    target, number, outcomes = tmp_path / "file", 0, set()
    while True:
        number += 1
        target.unlink(missing_ok=True)
        if overwrite:
            target.write_bytes(b"old")
        with stopping(number, act) as stop:
            try:
                with replaced(target, overwrite) as file:
                    file.write(b"new")
            except (KeyboardInterrupt, GemeloError, OSError):
                pass
        outcomes.add(target.read_bytes() if target.exists() else b"old")
        target.unlink(missing_ok=True)
        with replaced(target) as file:
            file.write(b"next")
        assert os.listdir(tmp_path) == ["file"], number
        if stop.taken < number:
            break
    assert outcomes == {b"old", b"new"}


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with replaced(target) as first:
        first.write(b"one" * 10_000)
        with replaced(target) as second:
            second.write(b"other")
        assert target.read_bytes() == b"other"
    assert target.read_bytes() == b"one" * 10_000
    with pytest.raises(InputError, match="exists by now"):
        with replaced(tmp_path / "new", overwrite=False) as file:
            (tmp_path / "new").write_bytes(b"mine")
            file.write(b"ours")
    assert (tmp_path / "new").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "new"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(one: Path, other: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    for name in ("a", "b"):
        with replaced(tmp_path / name, overwrite=False) as file:
            file.write(b"whole")
    with pytest.raises(InputError, match="exists by now"), replaced(tmp_path / "a", False):
        pass
    assert (tmp_path / "b").read_bytes() == b"whole" and len(os.listdir(tmp_path)) == 2


def test_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "a device or a pipe"),
        (Path("/dev/full"), "a device or a pipe"),
        (tmp_path / "round", "round in circles"),
        (tmp_path / "file" / "inner", "Not a directory"),
        (tmp_path / "nowhere" / "file", "no such folder"),
        (tmp_path / ("x" * 300), "shorter name"),
        (tmp_path / "a\0b", "as a path"),
    ):
        with pytest.raises(InputError, match=said):
            with replaced(path) as file:
                file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe", "round"]


def test_long_names_links_and_permissions_of_files(tmp_path: Path) -> None:
    long, real = tmp_path / ("é" * 120), tmp_path / "real"
    real.write_text("old")
    real.chmod(0o600)
    (tmp_path / "link").symlink_to(real)
    for path in (long, tmp_path / "link"):
        with replaced(path) as file:
            file.write(b"new")
    assert long.read_bytes() == real.read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink() and real.stat().st_mode & 0o777 == 0o600


if __name__ == "__main__":
    parent = Path(sys.argv[1])
    os.fsync = lambda descriptor: None  # type: ignore[misc]
    print(kill_at_every_step(parent))
    (parent / "model").rename(parent.with_name(f"{parent.name}-done"))
    folders.exchanged = lambda one, other: False  # type: ignore[assignment]
    print(kill_at_every_step(parent))
