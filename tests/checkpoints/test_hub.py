"""Fetching from the hub, which a server of this machine's own plays."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from gemelo.checkpoints import hub_cache, locate
from gemelo.checkpoints.gguf_names import parts_of
from gemelo.checkpoints.hub import pull
from gemelo.checkpoints.hub_errors import refusal
from gemelo.checkpoints.stored import stored
from gemelo.errors import GemeloError, InputError, UnavailableError
from gemelo.kernels.quants import unpack
from gemelo.weights.safetensors import Safetensors
from tests.checkpoints.conftest import COMMIT, Hub, files_of, keep
from tests.cli.conftest import start

# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "acme/x:",
        "acme/x:../x.gguf",
        "acme/x:a/../../x.gguf",
        "acme/x:/etc/x.gguf",
        "acme/x:a//x.gguf",
        "acme/x:a\\x.gguf",
        "acme",
        "acme/x/y",
        "acme/x/y:z.gguf",
        "/acme/x",
        "./acme:x",
        "a b/c d",
        "acme/" + "x" * 200,
    ],
)
def test_names_that_are_none(name: str, cache: Path) -> None:
    with pytest.raises(InputError, match="not a hub id|no such file"):
        pull(name)
    assert not cache.exists()


@pytest.mark.parametrize("file", ["BF16/g.gguf", "a/b/c/g.gguf", "g.gguf"])
def test_a_file_in_a_folder_by_the_same_name_everywhere(
    file: str, cache: Path, tiny_checkpoint: Path
) -> None:
    snapshot = keep(cache, "models--acme--x", (file, tiny_checkpoint))
    name = f"acme/x:{file}"
    assert pull(name) == locate.resolve(name) == snapshot / file
    (listed,) = (one.name for one in stored() if one.name != "demo")
    assert listed == ("acme/x:BF16" if file.startswith("BF16") else name)
    assert locate.resolve(listed) == snapshot / file


def test_every_part_of_a_split_file(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"BF16/m-{at:05}-of-00003.gguf" for at in (1, 2, 3)]
    monkeypatch.setattr(server, "files", dict.fromkeys(names, b"GGUF"))
    path = pull(f"acme/x:{names[1]}")
    assert path.name == "m-00002-of-00003.gguf" and len(list(path.parent.iterdir())) == 3
    assert parts_of("m-00001-of-99999.gguf") == ["m-00001-of-99999.gguf"]


# ---- fetching ------------------------------------------------------------------------------------


def test_pull_and_then_without_a_network(
    server: type[Hub], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.files, "onnx/model.safetensors", b"for others")
    monkeypatch.setitem(server.files, "README.md", b"for people")
    path = pull("acme/x")
    assert path.name == COMMIT and "model.safetensors" in os.listdir(path)
    assert not {"onnx", "README.md"} & set(os.listdir(path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", COMMIT):
        assert pull("acme/x", revision) == path
    assert [one.name for one in stored() if one.name != "demo"] == ["acme/x"]
    (path / "model.safetensors").unlink()
    with pytest.raises(UnavailableError, match="machine in part only, and HF_HUB_OFFLINE is set"):
        pull("acme/x")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("gated", UnavailableError, "is gated: accept its licence.*HF_TOKEN"),
        ("gated-403", UnavailableError, "is gated"),
        ("absent", InputError, "no such repository, or it is private.*HF_TOKEN"),
        ("private", InputError, "no such repository, or it is private"),
        ("no-revision", InputError, "has no revision 'v9'"),
        ("forbidden", UnavailableError, "refuses acme/forbidden .403.*token"),
        ("not-here", InputError, "no such repository"),
        ("busy", UnavailableError, "too many requests.*wait"),
        ("broken", UnavailableError, "could not give acme/broken .500.*later"),
        ("legal", UnavailableError, "could not give acme/legal .451"),
    ],
)
def test_what_the_hub_refuses(
    name: str,
    kind: type[GemeloError],
    said: str,
    server: type[Hub],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's tries
    for file in ("", ":m.gguf"):
        with pytest.raises(kind, match=said if file == "" or name != "not-here" else "no file"):
            pull(f"acme/{name}{file}", "v9")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            socket.gaierror(-2, "Name or service not known"),
            "cannot be reached (no network, or one ",
        ),
        (ConnectionError("[Errno -3] Temporary failure in name resolution"), "reached (no network"),
        (ConnectionError("Connection refused"), "cannot be reached: Connection refused;"),
    ],
)
def test_a_network_that_is_not_there(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    told = str(refusal("acme/x", "", None, error))
    assert told.startswith("acme/x is not on this machine, and the hub ") and why in told
    assert "Errno" not in told


def test_a_file_that_is_not_there_names_those_that_are(
    server: type[Hub], cache: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    monkeypatch.setattr(server, "files", {"a/x-q4_0.gguf": b"GGUF", "README.md": b""})
    with pytest.raises(InputError, match="no file 'q8'; it has a/x-q4_0.gguf$"):
        pull("acme/x:q8")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    keep(cache, "models--acme--y", ("Q4/y-q4_0.gguf", tiny_checkpoint))
    with pytest.raises(UnavailableError, match="no file 'Q8' on this machine, but Q4/y-q4_0"):
        pull("acme/y:Q8")
    assert pull("acme/y").name == "y-q4_0.gguf"


def refused(code: int) -> OSError:
    return OSError(code, os.strerror(code), "/hub/blobs/x")


DISK = {
    "full": (refused(errno.ENOSPC), "No space left on device.*free some room"),
    "quota": (refused(errno.EDQUOT), "quota"),
    "permission": (refused(errno.EACCES), "Permission denied.*may write to"),
    "read-only": (refused(errno.EROFS), "Read-only file system.*can be written"),
    "no folder": (refused(errno.ENOENT), "No such file.*HF_HUB_CACHE"),
    "a file": (refused(errno.ENOTDIR), "Not a directory.*HF_HUB_CACHE"),
    "in words": (RuntimeError("Data error: No space (os error 28)"), "No space left.*free some"),
}
NETWORK = {
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "reset": ConnectionResetError(errno.ECONNRESET, "Connection reset"),
    "time": TimeoutError(errno.ETIMEDOUT, "timed out"),
}


@pytest.mark.parametrize("name", DISK)
def test_a_fault_of_the_disk(name: str, server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    error, said = DISK[name]
    monkeypatch.setitem(server.files, "m.gguf", b"GGUF")

    def fail(*words: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    for asked in ("acme/x", "acme/x:m.gguf"):
        with pytest.raises(UnavailableError, match=f"cannot keep acme/x in the hub's.*{said}"):
            pull(asked)


@pytest.mark.parametrize("name", NETWORK)
def test_a_fault_of_the_network(
    name: str, server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.files, "m.gguf", b"GGUF")

    def fail(*words: object, **named: object) -> None:
        raise NETWORK[name]

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UnavailableError, match="the hub cannot be reached"):
        pull("acme/x:m.gguf")


def test_a_hub_that_is_down_is_asked_once_for_a_file(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*words: object, **named: object) -> None:
        raise ConnectionError("down")

    def again(*words: object, **named: object) -> None:
        pytest.fail("a download that asks again and again was begun")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", down)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", again)
    with pytest.raises(UnavailableError, match="the hub cannot be reached: down"):
        pull("acme/x:m.gguf")


def test_other_faults_are_lines_too(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server.files, "m.gguf", b"GGUF")

    def fail(*words: object, **named: object) -> None:
        raise OSError("Consistency check failed: file should be of size 2\nbut has size 1")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UnavailableError, match="could not be fetched: Consistency.*goes on where"):
        pull("acme/x:m.gguf")


@pytest.mark.parametrize("where", ["file", "file/under", "/proc/nowhere"])
def test_a_cache_that_cannot_be(
    where: str, server: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / where))
    for name in ("acme/x", "acme/x:config.json"):
        with pytest.raises(UnavailableError, match="cannot keep acme/x.*HF_HUB_CACHE"):
            pull(name)


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(UnavailableError, match="set HF_HOME"):
        pull("acme/x")
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", True), ("on", True), ("YES", True), ("True", True), ("0", False), ("off", False)],
)
def test_offline_is_read_as_the_library_reads_it(value: str, offline: bool, tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": value, "HF_HUB_CACHE": str(tmp_path)}
    code = (
        "from huggingface_hub import constants; from gemelo.checkpoints import hub_errors; "
        "e = ConnectionError('down'); "
        "print(constants.HF_HUB_OFFLINE, hub_errors.refusal('a/b', 'c.gguf', None, e))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith(str(offline)) and ("HF_HUB_OFFLINE is set" in said) == offline


@pytest.mark.parametrize("name", ["acme/x", "acme/x:model.safetensors"])
def test_an_interrupt_ends_a_pull_at_once(
    name: str, server: type[Hub], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched by then is no model yet, and is gone on with."""
    monkeypatch.setattr(server, "slow", True)
    monkeypatch.setitem(server.files, "model.safetensors", bytes(64 << 20))
    for variable, value in {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    pulling = start("pull", name)
    while not list(cache.rglob("*.incomplete")):
        assert pulling.poll() is None
        time.sleep(0.05)
    pulling.send_signal(signal.SIGINT)
    assert pulling.wait(timeout=20) == 130
    assert [one.name for one in stored() if one.name != "demo"] == []


def test_what_is_here_does_not_wait_for_a_hub_that_is_down(
    cache: Path, tiny_directory: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    rest = time.sleep

    def never(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            pytest.fail("it waits to try again")
        rest(seconds)  # the last answer of another test's hub

    monkeypatch.setattr(time, "sleep", never)
    snapshot = keep(
        cache, "models--acme--x", *files_of(tiny_directory), ("m.gguf", tiny_checkpoint)
    )
    assert pull("acme/x") == snapshot and pull("acme/x:m.gguf") == snapshot / "m.gguf"


# ---- what is here --------------------------------------------------------------------------------


def test_only_what_runs_is_listed(
    cache: Path, tiny_directory: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    llama, half = tmp_path / "llama.json", tmp_path / "half"
    llama.write_text('{"model_type": "llama"}')
    half.write_bytes(tiny_checkpoint.read_bytes()[:5000])
    whole = files_of(tiny_directory)
    keep(cache, "models--acme--whole", *whole)
    keep(cache, "models--acme--both", *whole, ("q/b.gguf", tiny_checkpoint))
    keep(cache, "models--acme--llama", ("config.json", llama))
    keep(cache, "models--acme--branch", *whole, branch="v2")
    keep(cache, "models--acme--half", ("half.gguf", half))
    keep(cache, "models--acme--int8", *[f for f in whole if f[0] != "model.safetensors"])
    write_as_integers(tiny_directory, cache / "models--acme--int8" / "snapshots" / COMMIT)
    keep(cache, "models--acme--no-words", *[f for f in whole if f[0] != "tokenizer.model"])
    keep(cache, "models--acme--no-weights", *[f for f in whole if f[0] != "model.safetensors"])
    keep(cache, "models--nobody", *whole)
    keep(cache, "datasets--acme--data", *whole)
    keep(cache, "spaces--acme--space", *whole)
    (cache / "models--acme--empty").mkdir()
    (cache / "models--acme--a-file").write_text("")
    names = {one.name: one for one in stored() if one.name != "demo"}
    assert list(names) == ["acme/both", "acme/both:q/b.gguf", "acme/whole"]
    for name, one in names.items():
        assert locate.resolve(name) == one.path
    assert names["acme/both:q/b.gguf"].size_bytes == tiny_checkpoint.stat().st_size
    assert names["acme/both"].size_bytes == sum(p.stat().st_size for _, p in whole)


def write_as_integers(source: Path, target: Path) -> None:
    file = Safetensors(source)
    small = {name: unpack(file.tensor(name)).astype(np.int8) for name in file}
    safetensors.numpy.save_file(small, target / "model.safetensors")


def test_a_cache_that_cannot_be_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(UnavailableError, match="cannot be read: Permission denied; set HF_HUB"):
        list(hub_cache.cached())


def test_a_cache_that_is_a_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("mine")
    with pytest.raises(UnavailableError, match="is a file; set HF_HUB_CACHE"):
        list(stored())


# ---- repositories of GGUF files ------------------------------------------------------------------


def gguf_repository(server: type[Hub], monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(server, "files", {name: b"GGUF" + name.encode() for name in names})


def fetched(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("acme/x", "m-Q4_K_M.gguf"),
        ("acme/x:latest", "m-Q4_K_M.gguf"),
        ("acme/x:q8_0", "m.q8_0.gguf"),
        ("acme/x:m.q8_0.gguf", "m.q8_0.gguf"),
        ("https://huggingface.co/acme/x/blob/main/m.q8_0.gguf", "m.q8_0.gguf"),
        ("hf.co/acme/x", "m-Q4_K_M.gguf"),
    ],
)
def test_one_file_and_its_mmproj(
    name: str, file: str, server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["config.json", "m-IQ1_S.gguf", "m-Q4_K_M.gguf", "m.q8_0.gguf", "imatrix.dat"]
    names += ["onnx/model.safetensors"]
    gguf_repository(server, monkeypatch, *names, "mmproj-BF16.gguf", "mmproj-F16.gguf")
    path = locate.resolve(name)
    assert path.name == file and fetched(path) == sorted([file, "mmproj-F16.gguf"])
    monkeypatch.setattr(server, "answer", lambda self, body: pytest.fail("the hub is asked again"))
    assert pull(name) == path


def test_a_short_name_is_fetched_and_then_runs_offline(
    server: type[Hub], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_repository(server, monkeypatch, "gemma-3-1b-it-Q4_K_M.gguf", "gemma-3-1b-it-Q8_0.gguf")
    path = pull("gemma3:1b")
    assert path == cache / "models--ggml-org--gemma-3-1b-it-GGUF/snapshots" / COMMIT / path.name
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate.resolve("gemma3:1b-it") == locate.resolve("gemma3:1b-it-q4_K_M") == path
    with pytest.raises(UnavailableError, match="no file 'Q8_0' on this machine, but gemma-3-1b-it"):
        pull("gemma3:1b-it-q8_0")


def test_an_mmproj_that_is_missing_is_fetched_by_pull_alone(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_repository(server, monkeypatch, "m-Q4_K_M.gguf")
    path = pull("acme/x")
    gguf_repository(server, monkeypatch, "m-Q4_K_M.gguf", "mmproj-f16.gguf")
    assert locate.resolve("acme/x") == path and fetched(path) == ["m-Q4_K_M.gguf"]
    assert pull("acme/x") == path and fetched(path) == ["m-Q4_K_M.gguf", "mmproj-f16.gguf"]
    gguf_repository(server, monkeypatch, "other.gguf")
    (path.parent / "mmproj-f16.gguf").unlink()
    assert pull("acme/x:Q4_K_M") == path  # the hub has it no more, and this machine has


def test_without_a_network_what_is_here_is_the_usual_one(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_repository(server, monkeypatch, "m-Q4_K_M.gguf", "m-Q8_0.gguf")
    path = pull("acme/x:Q8_0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull("acme/x") == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert pull("acme/x").name == "m-Q4_K_M.gguf"


def test_all_parts_of_the_type_that_is_meant(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [f"m-f16-{at:05}-of-00002.gguf" for at in (1, 2)]
    gguf_repository(server, monkeypatch, *parts, "m-Q4_K_M.gguf", "mmproj-model-f16.gguf")
    path = pull("acme/x:F16")
    assert path.name == parts[0] and fetched(path) == [*parts, "mmproj-model-f16.gguf"]


def test_types_that_are_not_read_only_if_asked_for(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_repository(server, monkeypatch, "m-UD-IQ1_S.gguf")
    with pytest.raises(InputError, match="no file 'of a format that is read'; it has m-UD-IQ1_S"):
        pull("acme/x")
    assert pull("acme/x:ud-iq1_s").name == "m-UD-IQ1_S.gguf"


def test_what_is_no_model(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_repository(server, monkeypatch, "config.json", "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no config.json with safetensors, and no GGUF file"):
        pull("acme/x")


# ---- before and during a download ----------------------------------------------------------------


def test_a_gated_repository_names_one_without_an_account(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "refused", "google/gemma-3-1b-it")
    with pytest.raises(UnavailableError) as caught:
        pull("gemma-3-1b-it")
    said = str(caught.value)
    for words in (
        "accept its licence at https://huggingface.co/google/gemma-3-1b-it",
        "`hf auth login` or set HF_TOKEN",
        "gemma3:1b is the same model without an account",
    ):
        assert words in said
    assert "\n" not in said and len(said) < 300


def test_an_id_that_is_nearly_right(server: type[Hub]) -> None:
    with pytest.raises(InputError, match="no such repository.*else try google/gemma-3-1b-"):
        pull("google/gemma-3-1b")


def test_a_hub_that_never_answers(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemelo.checkpoints.hub.ASK_TIMEOUT_S", 0.2)
    asked = []

    def wait(self: Hub, body: bool) -> None:
        asked.append(self.path)
        self.server.silent.wait(20)  # type: ignore[attr-defined]

    monkeypatch.setattr(server, "answer", wait)
    for name in ("acme/x", "acme/x:Q4_K_M", "acme/x:m.gguf"):
        with pytest.raises(UnavailableError, match="the hub cannot be reached"):
            pull(name)
    assert len(asked) == 3


def test_room_is_looked_at_first(
    server: type[Hub], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_repository(server, monkeypatch, "m-Q4_K_M.gguf")
    size = len(server.files["m-Q4_K_M.gguf"])
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=size - 1))
    with pytest.raises(
        UnavailableError, match=r"acme/x takes 0 MB more, .* has 0 MB free; .*HF_HUB_CACHE"
    ):
        pull("acme/x")
    assert not list(cache.rglob("*.gguf"))
    begun = cache / "models--acme--x" / "blobs" / "a.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"x")  # of what is begun only the rest is needed
    assert pull("acme/x").is_file()


def test_progress_is_of_all_files(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"m-Q4_K_M.gguf": bytes(30 << 20), "mmproj-f16.gguf": bytes(11 << 20)}
    monkeypatch.setattr(server, "files", files)
    told: list[tuple[int, int]] = []
    pull("acme/x", progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {41 << 20} and told[-1] == (41 << 20, 41 << 20)
    steps = [done for done, _ in told]
    assert steps == sorted(steps) and len(steps) > 3 and steps[0] < 11 << 20
