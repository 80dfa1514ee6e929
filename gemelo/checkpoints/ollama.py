"""Ollama's models on this machine: manifests that name blobs, which are GGUF files.

Ollama keeps a model as a manifest, `manifests/HOST/OWNER/NAME/TAG`, which lists layers by digest;
the layer of kind `image.model` is a GGUF, and lies in `blobs/`. So its short names can be run from
where they are. Nothing there is written or removed by gemelo; `ollama rm` does that.

    find("gemma3:1b")           # ~/.ollama/models/blobs/sha256-7cd4618c1faf...
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gemelo.errors import GemeloError
from gemelo.text_files import read_object

_MODEL = "application/vnd.ollama.image.model"
_DEFAULT_OWNER, _DEFAULT_TAG = "library", "latest"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_NAME = re.compile(r"(?:(?P<owner>[\w.-]+)/)?(?P<name>[\w.-]+)(?::(?P<tag>[\w.-]+))?", re.ASCII)


def folder() -> Path | None:
    """$OLLAMA_MODELS, else the user's own; None without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    return None


def find(name: str) -> Path | None:
    """The GGUF of a name as `ollama list` shows it; None where Ollama does not have it."""
    match, models = _NAME.fullmatch(name), folder()
    if match is None or models is None or ".." in name:
        return None
    inner = Path(match["owner"] or _DEFAULT_OWNER, match["name"], match["tag"] or _DEFAULT_TAG)
    with suppress(OSError):
        for manifest in sorted(models.glob(f"manifests/*/{inner}")):
            if (blob := _blob(models, manifest)) is not None:
                return blob
    return None


def listed() -> Iterator[tuple[str, Path]]:
    """Names and GGUF files of all that Ollama has, in order."""
    models = folder()
    if models is None:
        return
    found: list[Path] = []
    with suppress(OSError):
        found = sorted(models.glob("manifests/*/*/*/*"))
    for manifest in found:
        owner, name, tag = manifest.parts[-3:]
        if (blob := _blob(models, manifest)) is not None:
            yield (f"{name}:{tag}" if owner == _DEFAULT_OWNER else f"{owner}/{name}:{tag}"), blob


def _blob(models: Path, manifest: Path) -> Path | None:
    """The file of a manifest's model layer, if it is there."""
    with suppress(GemeloError, AttributeError, KeyError, TypeError):
        for layer in read_object(manifest)["layers"]:
            digest = _DIGEST.fullmatch(layer["digest"])
            if layer["mediaType"] == _MODEL and digest is not None:
                blob = models / "blobs" / f"sha256-{digest[1]}"
                return blob if blob.is_file() else None
    return None
