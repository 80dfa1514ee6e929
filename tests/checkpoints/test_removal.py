"""Removing: what would go, that it goes, and that nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gemelo.checkpoints import locate
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.removal import removal
from gemelo.checkpoints.stored import stored
from gemelo.errors import InputError, UnavailableError
from tests.checkpoints.conftest import COMMIT, in_ollama, keep


def linked(cache: Path, name: str, *files: str) -> Path:
    """A repository as the hub's library keeps it: blobs, and a snapshot of links to them."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for path in (folder / "refs", folder / "blobs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for file in files:
        (folder / "blobs" / f"of-{file}").write_bytes(b"GGUF" + file.encode())
        (snapshot / file).symlink_to(f"../../blobs/of-{file}")
    return snapshot


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_repository(cache: Path) -> None:
    linked(cache, "acme/x", "m-Q4_K_M.gguf", "mmproj-f16.gguf")
    linked(cache, "acme/y", "m-Q4_K_M.gguf")
    before = everything(cache / "models--acme--y")
    plan = removal("acme/x")
    assert plan.size_bytes >= 34 and "acme/x, all of it" in plan.what
    assert (cache / "models--acme--x").exists()
    plan.carry_out()
    assert not (cache / "models--acme--x").exists()
    assert everything(cache / "models--acme--y") == before
    with pytest.raises(InputError, match="acme/x is not on this machine"):
        removal("acme/x")


def test_repositories_of_the_same_commit(cache: Path) -> None:
    names = [f"acme/{letter}" for letter in "abcdefgh"]  # one renamed, duplicated, cached again
    for name in names:
        linked(cache, name, "m-Q4_K_M.gguf")
    while names:
        removal(names.pop()).carry_out()
        assert sorted(os.listdir(cache)) == [f"models--{n.replace('/', '--')}" for n in names]


@pytest.mark.parametrize("name", ["/", ".", "..", "~"])
def test_no_command_that_removes_what_one_lives_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        removal(name)
    assert "holds more than models" in str(refused.value) and "`rm" not in str(refused.value)


def test_a_repository_that_lies_elsewhere(cache: Path, tmp_path: Path) -> None:
    linked(cache, "acme/x", "m-Q4_K_M.gguf")
    real = tmp_path / "other disk"
    (cache / "models--acme--x").rename(real)
    (cache / "models--acme--x").symlink_to(real)
    before = everything(real)
    with pytest.raises(InputError, match="is a link to .*other disk; `rm -r .*` removes both"):
        removal("acme/x")
    assert everything(real) == before


def test_a_repository_that_was_begun(cache: Path) -> None:
    blob = cache / "models--acme--x" / "blobs" / "a.incomplete"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"GG")
    with pytest.raises(UnavailableError, match="`rm -r .*models--acme--x` removes what is left"):
        removal("acme/x").carry_out()


def test_by_a_short_name(cache: Path) -> None:
    linked(cache, "ggml-org/gemma-3-1b-it-GGUF", "gemma-3-1b-it-Q4_K_M.gguf")
    removal("gemma3:1b").carry_out()
    assert not list(cache.glob("models--*"))


def test_one_file_of_several(cache: Path) -> None:
    snapshot = linked(cache, "acme/x", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-f16.gguf")
    removal("acme/x:q8_0").carry_out()
    assert sorted(os.listdir(snapshot)) == ["m-Q4_K_M.gguf", "mmproj-f16.gguf"]
    blobs = cache / "models--acme--x" / "blobs"
    assert sorted(os.listdir(blobs)) == ["of-m-Q4_K_M.gguf", "of-mmproj-f16.gguf"]
    with pytest.raises(InputError, match="acme/x:q8_0 is not on this machine"):
        removal("acme/x:q8_0")
    removal("acme/x:Q4_K_M").carry_out()  # the last model takes the mmproj with it
    assert not (cache / "models--acme--x").exists()


def test_all_parts_of_a_split_file(cache: Path) -> None:
    parts = [f"m-f16-{at:05}-of-00002.gguf" for at in (1, 2)]
    snapshot = linked(cache, "acme/x", *parts, "m-Q8_0.gguf")
    removal("acme/x:F16").carry_out()
    assert os.listdir(snapshot) == ["m-Q8_0.gguf"]


def test_a_blob_of_two_snapshots_stays(cache: Path) -> None:
    snapshot = linked(cache, "acme/x", "m-Q4_K_M.gguf", "m-Q8_0.gguf")
    older = snapshot.with_name("0" * 40)
    older.mkdir()
    (older / "m-Q8_0.gguf").symlink_to("../../blobs/of-m-Q8_0.gguf")
    removal("acme/x:Q8_0").carry_out()
    assert (older / "m-Q8_0.gguf").read_bytes().startswith(b"GGUF")


def test_a_link_out_of_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    snapshot = linked(cache, "acme/x", "m-Q4_K_M.gguf")
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    (snapshot / "m-Q8_0.gguf").symlink_to(tmp_path / "mine.gguf")
    with pytest.raises(InputError, match="does not keep"):
        removal("acme/x:Q8_0").carry_out()
    assert (tmp_path / "mine.gguf").exists()


@pytest.mark.parametrize("inner", ["", "sub/"])
def test_a_link_to_a_folder_out_of_the_cache_is_refused(
    inner: str, cache: Path, tmp_path: Path
) -> None:
    snapshot = linked(cache, "acme/x", "m-Q4_K_M.gguf")
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a-Q8_0.gguf", "b-F16.gguf"):
        (mine / name).write_bytes(b"GGUF")
    if inner:
        (snapshot / "sub").symlink_to(mine)
    else:
        (snapshot / "m-Q4_K_M.gguf").unlink()
        snapshot.rmdir()
        snapshot.symlink_to(mine)
    with pytest.raises(InputError, match="mine is linked to, and the hub's cache does not keep it"):
        removal(f"acme/x:{inner}a-Q8_0.gguf").carry_out()
    assert everything(mine) == ["a-Q8_0.gguf", "b-F16.gguf"]


def test_what_a_conversion_wrote(tiny_directory: Path, cache: Path, tmp_path: Path) -> None:
    file = convert(tiny_directory, tmp_path / "one.gguf").path
    folder = convert(tiny_directory, tmp_path / "two", "f32").path
    os.symlink("one.gguf", tmp_path / "link.gguf")
    assert removal("link.gguf").size_bytes == file.stat().st_size
    removal("link.gguf").carry_out()
    removal(str(folder)).carry_out()
    assert not file.exists() and not folder.exists() and not os.path.lexists("link.gguf")
    assert [one.origin for one in stored()] in ([], ["demo"])


def test_what_has_changed_stays(tiny_directory: Path, cache: Path, tmp_path: Path) -> None:
    folder = convert(tiny_directory, tmp_path / "two", "f32").path
    plan = removal(str(folder))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="has changed meanwhile"):
        plan.carry_out()
    with pytest.raises(InputError, match=r"or has changed since; `rm -r .*two` removes it"):
        removal(str(folder))
    assert (folder / "config.json").exists()


def test_a_file_written_again_at_the_same_size_stays(
    tiny_directory: Path, cache: Path, tmp_path: Path
) -> None:
    folder = convert(tiny_directory, tmp_path / "two", "f32").path
    weights = folder / "model.safetensors"
    trained = bytes(255 - byte for byte in weights.read_bytes()[-64:])
    with weights.open("r+b") as file:  # as training does that saves to where it loaded
        file.seek(-64, os.SEEK_END)
        file.write(trained)
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 10**9))
    with pytest.raises(InputError, match="has changed since"):
        removal(str(folder))
    assert weights.read_bytes().endswith(trained)


@pytest.mark.parametrize("name", ["a file.gguf", "folder", "demo"])
def test_what_is_a_users_own(name: str, cache: Path, tmp_path: Path) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"GGUF")
    shown = {"folder": "rm -r folder", "demo": "rm demo"}.get(name, "rm 'a file.gguf'")
    with pytest.raises(InputError, match=f"was not written by gemelo.*`{shown}` removes it"):
        removal(name)


def test_an_empty_name_is_no_folder(cache: Path) -> None:
    with pytest.raises(InputError, match="the model's name is empty"):
        removal("")


def test_the_joined_demo(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="demo is not joined"):
        removal("demo")
    path = tmp_path / "cache" / locate.DEMO_FILE
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    locate.seal_of(path).write_text("seal")
    (path.parent / "history").write_text("mine")
    removal("demo").carry_out()
    assert os.listdir(path.parent) == ["history"]


def test_others(cache: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    in_ollama(tmp_path / "ollama", "gemma3:1b", tiny_checkpoint)
    with pytest.raises(InputError, match="`ollama rm gemma3:1b` removes it"):
        removal("gemma3:1b")
    for name in ("nonsense", "acme/x", "acme/x:Q8_0", "gemma3:4b"):
        with pytest.raises(InputError, match="not on this machine"):
            removal(name)
    keep(cache, "models--acme--x", ("m-Q8_0.gguf", tiny_checkpoint))
    with pytest.raises(InputError, match="not on this machine"):
        removal("acme/x:Q4_0")
