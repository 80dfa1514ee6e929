"""What a conversion may replace: asked before any work, said in one line, nothing lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemelo.checkpoints import convert as converting
from gemelo.checkpoints import destination
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.open import open_source
from gemelo.cli import run
from gemelo.config import Submodel
from gemelo.errors import GemeloError, InputError, UnavailableError


def inventory(folder: Path) -> dict[str, object]:
    """Every path under a folder, and what is there."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


@pytest.fixture
def home(
    tiny_directory: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """models/ with a directory, a GGUF and notes in it; the process stands beside it."""
    models = tmp_path / "models"
    models.mkdir()
    shutil.copytree(tiny_directory, models / "mine")
    shutil.copyfile(tiny_checkpoint, models / "mine.gguf")
    (models / "notes.txt").write_text("thesis")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def link(path: str, to: str) -> None:
    Path(path).symlink_to(to)


def only(folder: str, file: str) -> None:
    """A folder that holds the weights of a model, and another that only links to them."""
    Path(folder).mkdir()
    os.rename("models/mine/model.safetensors", f"{folder}/model.safetensors")
    Path("models/mine/model.safetensors").symlink_to(Path(f"{folder}/model.safetensors").absolute())


SOURCE, GGUF = "models/mine", "models/mine.gguf"
REFUSED: dict[str, tuple[str, str, Callable[[], object], str]] = {
    "parent of the source": (SOURCE, "models", lambda: None, "holds the source"),
    "grandparent": (SOURCE, "../" + "HERE", lambda: None, "holds the source"),
    "the source": (SOURCE, SOURCE, lambda: None, "is the source"),
    "folder of a GGUF source": (GGUF, "models", lambda: None, "holds the source"),
    "a link to the parent": (SOURCE, "l", lambda: link("l", "models"), "holds the source"),
    "source through a link": ("l/mine", "models", lambda: link("l", "models"), "holds the source"),
    "in the source": (SOURCE, "models/mine/bf16", lambda: None, "lies in the source"),
    "where the source's files are": (SOURCE, "d", lambda: only("d", ""), "holds the source"),
    "the same GGUF": (GGUF, GGUF, lambda: None, "is the source"),
    "its hard link": (GGUF, "h.gguf", lambda: os.link(GGUF, "h.gguf"), "is the source"),
    "its symbolic link": (GGUF, "l.gguf", lambda: link("l.gguf", GGUF), "is the source"),
    "a link to weights": (
        SOURCE,
        "l.gguf",
        lambda: link("l.gguf", f"{SOURCE}/model.safetensors"),
        "is the source",
    ),
    "notes": (SOURCE, "other", lambda: shutil.copytree("models", "other"), "holds 'mine'"),
    "a file for a folder": (SOURCE, "models/notes.txt", lambda: None, "not a folder"),
    "a folder for a file": (SOURCE, "d.gguf", lambda: os.mkdir("d.gguf"), "is a folder"),
    "a pipe": (SOURCE, "p.gguf", lambda: os.mkfifo("p.gguf"), "a device or a pipe"),
    "a pipe for a folder": (SOURCE, "p", lambda: os.mkfifo("p"), "not a folder"),
    "a device": (SOURCE, "/dev/full", lambda: None, "not a folder"),
    "a link to a device": (SOURCE, "l.gguf", lambda: link("l.gguf", "/dev/full"), "a device"),
    "in a file": (SOURCE, f"{GGUF}/b.gguf", lambda: None, "is a file, not a folder"),
    "deep in a file": (SOURCE, "models/notes.txt/a/b", lambda: None, "is a file, not a folder"),
    "a dangling link": (SOURCE, "l", lambda: link("l", "nowhere"), "which is not there"),
    "a dangling file": (SOURCE, "l.gguf", lambda: link("l.gguf", "no/where"), "not there"),
    "links in a circle": (SOURCE, "l", lambda: link("l", "l"), "round in circles"),
    "here": (SOURCE, ".", lambda: None, "is no name for a model"),
    "up": (SOURCE, "..", lambda: None, "is no name for a model"),
    "up from there": (SOURCE, "models/..", lambda: None, "is no name for a model"),
    "the root": (SOURCE, "/", lambda: None, "is no name for a model"),
    "too long a name": (SOURCE, "x" * 300, lambda: None, "File name too long"),
    "where a disk is mounted": (SOURCE, "/proc", lambda: None, "where a disk is mounted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, prepare, said = REFUSED[name]
    prepare()
    before = inventory(home)
    for writer in ("write_gguf", "write_safetensors"):
        monkeypatch.setattr(converting, writer, lambda *_, **__: pytest.fail("it began to write"))
    with pytest.raises(InputError, match=said):
        convert(Path(source), Path(target.replace("HERE", home.name)), overwrite=True)
    assert inventory(home) == before


def test_the_current_folder_by_its_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "empty").mkdir()
    monkeypatch.chdir(home / "empty")
    with pytest.raises(InputError, match="is the current folder"):
        convert(home / SOURCE, home / "empty", overwrite=True)


def test_a_mounted_source_is_the_same_by_both_names(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a bind mount, or of letters whose case the file system does not tell apart."""
    (home / "Models").mkdir()
    real = os.path.samefile
    alike = {str(home / "Models"), str(home / "models")}
    monkeypatch.setattr(
        os.path,
        "samefile",
        lambda one, other: {str(one), str(other)} <= alike or real(one, other),
    )
    with pytest.raises(InputError, match="holds the source"):
        convert(home / SOURCE, home / "Models", overwrite=True)


@pytest.mark.parametrize("target", ["out", "out.gguf"])
def test_what_force_may_replace(target: str, home: Path) -> None:
    convert(Path(SOURCE), Path(target), "f32")
    with pytest.raises(InputError, match="overwrite=True"):
        convert(Path(SOURCE), Path(target), "bf16")
    convert(Path(SOURCE), Path(target), "bf16", overwrite=True)
    assert load_checkpoint(Path(target)).config == load_checkpoint(Path(SOURCE)).config
    assert sorted(os.listdir(".")) == ["models", target]


def test_places_that_are_fine(home: Path) -> None:
    os.mkdir("empty")
    os.mkdir("disk")
    link("link", "disk/real")
    os.mkdir("disk/real")
    link("file.gguf", "disk/file.gguf")
    Path("disk/file.gguf").write_bytes(b"old")
    for source, target in (
        (SOURCE, "empty"),
        (SOURCE, "link"),
        (SOURCE, "file.gguf"),
        (SOURCE, "made/on/the/way"),
        (SOURCE, "models/mine/mine.gguf"),
        (SOURCE, "models/mine/mine.gguf"),  # once more, now that it is there
        (GGUF, "models/folder"),
        (GGUF, "models/other.gguf"),
        (SOURCE, "models/capital.GGUF"),
    ):
        convert(Path(source), Path(target), overwrite=True)
        assert open_source(Path(target)).shapes
    assert Path("models/capital.GGUF").is_file()
    assert Path("link").is_symlink() and Path("file.gguf").is_symlink()
    assert Path("models/notes.txt").read_text() == "thesis"
    assert not list(home.rglob(".*"))


def test_the_eye_beside_a_model_is_a_part_of_it(eyed_directory: Path, tmp_path: Path) -> None:
    convert(eyed_directory, tmp_path / "m.gguf", text_only=True)
    convert(eyed_directory, tmp_path / "mmproj-m.gguf", mmproj=True)
    before = inventory(tmp_path)
    with pytest.raises(InputError, match="is the source, or a part of it"):
        convert(tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf", overwrite=True)
    assert inventory(tmp_path) == before
    convert(eyed_directory, tmp_path / "mmproj-m.gguf", mmproj=True, overwrite=True)


def test_slice_goes_the_same_way(awake_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(awake_directory, tmp_path / "models" / "mine")
    config = open_source(awake_directory).config
    part = Submodel(tuple(config.ffn_widths))
    before = inventory(tmp_path)
    with pytest.raises(InputError, match="holds the source"):
        convert(tmp_path / "models" / "mine", tmp_path / "models", submodel=part, overwrite=True)
    assert inventory(tmp_path) == before


def test_an_error_midway_leaves_the_old_folder(home: Path) -> None:
    convert(Path(SOURCE), Path("out"))
    before = inventory(home)

    def fail(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(GemeloError, match="cannot write out: No space left on device; free"):
        convert(Path(SOURCE), Path("out"), overwrite=True, progress=fail)
    assert inventory(home) == before


def test_a_folder_that_was_set_aside_is_found(home: Path) -> None:
    """What a writer that was killed between its two renames leaves."""
    around = home / ".out.0123456789abcdef.part"
    (around / "new").mkdir(parents=True)
    (around / "unfinished-by-gemelo").touch()
    shutil.copytree(SOURCE, around / "old-0")
    assert open_source(home / "out").shapes
    with pytest.raises(InputError, match="overwrite=True"):
        convert(Path(SOURCE), Path("out"))
    convert(Path(SOURCE), Path("out"), overwrite=True)
    assert sorted(os.listdir(home)) == ["models", "out"]


def test_force_in_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", SOURCE, "models", "--force"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "another folder" in said


@pytest.mark.parametrize("target", ["out", "out.gguf", "new/folder/out.gguf", "models/mine.gguf"])
def test_a_disk_without_room_is_found_before_anything_is_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    before = inventory(home)
    source = Path("models/mine")
    monkeypatch.setattr(
        destination.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20)
    )
    told: list[str] = []
    with pytest.raises(UnavailableError, match=r"takes 3\.4 MiB, and 1\.0 MiB are free") as raised:
        convert(source, Path(target), "f32", overwrite=True, on_notice=told.append)
    assert target in str(raised.value) and not told and inventory(home) == before
    monkeypatch.setattr(
        destination.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 22)
    )
    assert convert(source, Path(target), "f32", overwrite=True).size_bytes > 1 << 21
