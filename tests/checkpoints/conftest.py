"""A hub played by a server of this machine's own, with whatever goes wrong, and an empty cache."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {
    "gated": (401, "GatedRepo"),
    "gated-403": (403, "GatedRepo"),
    "absent": (404, "RepoNotFound"),
    "private": (401, "RepoNotFound"),
    "no-revision": (404, "RevisionNotFound"),
    "forbidden": (403, ""),
    "not-here": (404, ""),
    "busy": (429, ""),
    "broken": (500, ""),
    "legal": (451, ""),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """/owner/name is a repository of `files`, or of one of the refusals."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}
    slow = False
    refused = ""

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.refused and f"/{self.refused}/resolve/" in path:  # who asks what it has is told
            return self.send(b"", 401, {"X-Error-Code": "GatedRepo"}, body)
        if path.endswith("/google/gemma-3-1b"):
            return self.send(b"", 401, {"X-Error-Code": "RepoNotFound"}, body)
        for name, (status, code) in REFUSALS.items():
            if f"/acme/{name}/" in path:
                return self.send(b"", status, {"X-Error-Code": code} if code else {}, body)
        if "/resolve/" in path:
            file = path.partition("/resolve/")[2].partition("/")[2]
            if file not in self.files:
                return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"}, body)
            etag = f'"{file.replace("/", "-")}"'
            return self.send(self.files[file], 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)
        files = [{"rfilename": name, "size": len(raw)} for name, raw in self.files.items()]
        answer = {"id": "acme/x", "sha": COMMIT, "siblings": files}
        self.send(json.dumps(answer).encode(), 200, {"Content-Type": "application/json"}, body)

    def send(self, raw: bytes, status: int, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        for at in range(0, len(raw) if body else 0, 1 << 16):
            self.wfile.write(raw[at : at + (1 << 16)])
            time.sleep(0.2 if self.slow and len(raw) > 1 << 20 else 0)


@pytest.fixture
def cache(tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, nothing converted, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("GEMELO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.fixture
def server(
    cache: Path, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Hub]]:
    """The hub answers, and its only repository is a tiny model."""
    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    here.silent = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=here.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{here.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(Hub, "files", {p.name: p.read_bytes() for p in tiny_directory.iterdir()})
    yield Hub
    here.silent.set()  # type: ignore[attr-defined]
    here.shutdown()
    here.server_close()


def keep(cache: Path, name: str, *files: tuple[str, Path], branch: str = "main") -> Path:
    """A repository in the cache, as the hub's library lays it out."""
    folder = cache / name
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / branch).write_text(COMMIT)
    for file, source in files:
        place = folder / "snapshots" / COMMIT / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
    return folder / "snapshots" / COMMIT


def files_of(directory: Path) -> list[tuple[str, Path]]:
    return [(path.name, path) for path in directory.iterdir()]


def in_ollama(folder: Path, name: str, model: Path) -> Path:
    """A model as Ollama keeps it; where its blob is."""
    digest = f"{len(name):064x}"
    blob = folder / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(model.read_bytes())
    base, _, tag = name.partition(":")
    owner = base if "/" in base else f"library/{base}"
    manifest = folder / "manifests" / "registry.example" / owner / (tag or "latest")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob
