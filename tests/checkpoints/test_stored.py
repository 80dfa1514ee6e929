"""What is listed: the hub's cache, Ollama's models, the working folder, and what was converted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gemelo.checkpoints import locate, ollama, written
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.stored import Stored, stored
from gemelo.checkpoints.written import Written
from gemelo.errors import InputError
from tests.checkpoints.conftest import in_ollama, keep
from tests.multimodal import EYED, write


def rows() -> dict[str, Stored]:
    return {one.name: one for one in stored() if one.name != "demo"}


# ---- the hub's cache -----------------------------------------------------------------------------


def test_a_row_for_each_file_of_a_repository(cache: Path, tiny_checkpoint: Path) -> None:
    names = ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "a/n-Q8_0.gguf", "mmproj-f16.gguf")
    snapshot = keep(cache, "models--acme--x", *[(name, tiny_checkpoint) for name in names])
    found = rows()
    assert list(found) == ["acme/x:a/n-Q8_0.gguf", "acme/x:Q4_K_M", "acme/x:m-Q8_0.gguf"]
    for name, one in found.items():
        assert locate.resolve(name) == one.path and one.origin == "hub"
        assert one.mmproj == snapshot / "mmproj-f16.gguf"


# ---- Ollama --------------------------------------------------------------------------------------


def test_models_of_ollama(cache: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    small = in_ollama(tmp_path / "ollama", "gemma3:1b", tiny_checkpoint)
    mine = in_ollama(tmp_path / "ollama", "me/mine:q8", tiny_checkpoint)
    other = tmp_path / "llama.gguf"
    other.write_bytes(tiny_checkpoint.read_bytes().replace(b"gemma3", b"llama3"))
    in_ollama(tmp_path / "ollama", "a-llama", other)
    other.unlink()
    found = rows()
    assert {name: one.path for name, one in found.items()} == {
        "gemma3:1b": small,
        "me/mine:q8": mine,
    }
    assert all(one.origin == "ollama" for one in found.values())
    for name, one in found.items():
        assert locate.resolve(name) == one.path
    assert ollama.find("gemma3") is None and ollama.find("a-llama") is not None


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"layers": 3}', b'{"layers": [3]}', b'{"layers": [{}]}', b"\xff\xfe"]
    + [b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:.."}]}'],
)
def test_manifests_that_are_broken(manifest: bytes, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "ollama/manifests/h/library/gemma3/1b"
    path.parent.mkdir(parents=True)
    path.write_bytes(manifest)
    assert rows() == {} and ollama.find("gemma3:1b") is None
    assert ollama.find("../../x:y") is None


# ---- the working folder --------------------------------------------------------------------------


def test_what_lies_in_the_working_folder(
    cache: Path, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    eyed = write(work / "eyed", EYED)
    convert(eyed, work / "eyed-Q8_0.gguf", text_only=True)
    convert(eyed, work / "mmproj-f16.gguf", "f16", mmproj=True)
    (work / "notes.gguf").write_text("mine")
    (work / "folder").mkdir()
    monkeypatch.chdir(work)
    found = rows()
    assert list(found) == ["eyed-Q8_0.gguf", "eyed"]
    assert found["eyed-Q8_0.gguf"].mmproj == work / "mmproj-f16.gguf"
    for name in found:
        assert locate.resolve(name).exists()
    monkeypatch.chdir(tmp_path)
    assert [one.origin for one in rows().values()] == ["written"]  # the directory was not converted


# ---- what was written ----------------------------------------------------------------------------


def test_what_was_converted_is_listed_by_its_path(
    cache: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    one = convert(tiny_directory, tmp_path / "far" / "one.gguf").path
    two = convert(tiny_directory, tmp_path / "far" / "two", "f32").path
    assert list(rows()) == [str(two), str(one)]
    assert rows()[str(two)].size_bytes == sum(file.stat().st_size for file in two.iterdir())
    (two / "notes.txt").write_text("mine")
    one.write_bytes(one.read_bytes() + b"x")
    assert rows() == {} and list(written.written()) == []


def test_the_record_is_robust(record: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    written.remember(file)
    written.remember(file)
    with record.open("ab") as raw:
        raw.write(b'\xff\n{}\n[]\n{"path": 3, "files": 4}\n{"path": "a", "files": {"": [4, 1]}}\n')
        raw.write(b'{"path": "/a", "files": {"": [1e999, 1]}}\n' + b"[" * 100_000 + b'\n{"pa')
    assert list(written.written()) == [Written(file, {"": (4, file.stat().st_mtime_ns)})]
    file.unlink()
    assert list(written.written()) == []
    written.remember(tmp_path / "nowhere")
    record.unlink()
    record.mkdir()
    written.remember(file)  # nothing is raised
    assert list(written.written()) == []
    record.rmdir()


def test_a_pipe_in_the_place_of_the_record_is_not_waited_for(record: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    os.mkfifo(record)
    writer = threading.Thread(target=written.remember, args=(file,), daemon=True)
    writer.start()
    writer.join(10)
    assert not writer.is_alive() and list(written.written()) == []


def test_many_writers_of_the_record(record: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.gguf" for number in range(40)]
    for file in files:
        file.write_bytes(b"GGUF")
    writers = [threading.Thread(target=written.remember, args=(file,)) for file in files]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(one.path for one in written.written()) == sorted(files)


def test_a_record_that_cannot_be_written_fails_no_conversion(
    tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "_record", lambda: Path("/proc/nowhere/record"))
    assert convert(tiny_directory, tmp_path / "x.gguf").path.is_file()


def test_a_link_to_a_model_is_a_row_of_its_own(cache: Path, tiny_checkpoint: Path) -> None:
    keep(cache, "models--acme--x", ("m-Q8_0.gguf", tiny_checkpoint))
    os.symlink(rows()["acme/x:Q8_0"].path or "", "link.gguf")
    assert list(rows()) == ["link.gguf", "acme/x:Q8_0"]


def test_a_link_is_remembered_as_what_it_leads_to(record: Path, tmp_path: Path) -> None:
    (tmp_path / "real.gguf").write_bytes(b"GGUF")
    os.symlink("real.gguf", tmp_path / "link.gguf")
    written.remember(tmp_path / "link.gguf")
    assert [one.path for one in written.written()] == [tmp_path / "real.gguf"]


# ---- local names win -----------------------------------------------------------------------------


def test_a_file_of_that_name_wins(cache: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    in_ollama(tmp_path / "ollama", "gemma3:1b", tiny_checkpoint)
    for name in ("gemma3:1b", "gemma-3-1b-it", "demo"):
        Path(name).write_bytes(b"mine")
        assert locate.resolve(name) == Path(name)
        Path(name).unlink()
    with pytest.raises(InputError, match="did you mean gemma3:1b"):
        locate.resolve("gemma3:1bb")


# ---- what cannot be looked into ------------------------------------------------------------------


def test_folders_that_nobody_may_read(cache: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for folder in ("locked", "far"):
        (tmp_path / folder).mkdir()
    (tmp_path / "far" / "x.gguf").write_bytes(tiny_checkpoint.read_bytes())
    code = (
        "from pathlib import Path; from gemelo.checkpoints import written\n"
        "from gemelo.checkpoints.stored import stored\n"
        "written.remember(Path('far/x.gguf'))\n"
        "print(*(one.name for one in stored() if one.name != 'demo'))"
    )
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:  # who may read everything
        less = "-dac_override,-dac_read_search"
        setpriv = shutil.which("setpriv") or pytest.skip("root, without setpriv")
        command = [setpriv, "--bounding-set", less, "--inh-caps", less, *command]
    (tmp_path / "locked").chmod(0)
    (tmp_path / "far").chmod(0o311)
    try:
        ran = subprocess.run(command, capture_output=True, text=True)
    finally:
        for folder in ("locked", "far"):
            (tmp_path / folder).chmod(0o755)
    assert ran.stderr == "" and ran.stdout.strip() == str(tmp_path / "far" / "x.gguf")
