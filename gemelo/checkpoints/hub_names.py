"""Hub ids: owner/name and what may follow it, as the hub's pages, llama.cpp and Ollama write them.

One function reads every form, for `pull` and for `-m` alike:

    parse("google/gemma-3-1b-it")                       a repository
    parse("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M")         a quantisation type, in any case
    parse("owner/name:FOLDER/FILE.gguf")                a file
    parse("https://huggingface.co/owner/name/blob/main/FILE.gguf")
    parse("hf.co/owner/name:Q8_0"), parse("hf://owner/name"), parse("gemma3:1b")
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gemelo.checkpoints import known
from gemelo.errors import InputError

_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://", re.IGNORECASE)
_ANY_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_VIEWS = {"tree", "blob", "resolve", "raw", "blame", "commits", "commit"}
_NO_MODELS = {"datasets", "spaces", "collections", "papers", "docs", "blog", "models"}
DEFAULT_TAG = "latest"  # Ollama's word for the tag that nobody named


class HubName(NamedTuple):
    """A repository, and the file or quantisation type of it that is meant; "" is the usual one."""

    repository: str
    file: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}:{self.file}" if self.file else self.repository


def is_hub_name(name: str) -> bool:
    """Whether a name has the form owner/name or owner/name:FILE."""
    repository = name.partition(":")[0]
    owner, _, rest = repository.partition("/")
    return bool(owner and rest) and "/" not in rest and not name.startswith((".", "~", "/"))


def parse(name: str) -> HubName | None:
    """What a name means on the hub; None for one that means nothing there.

    Raises `InputError` for what is nearly a hub id: a page of another site, a file's name that is
    none.
    """
    if _HOST.match(name):
        return _of_url(name)
    if _ANY_URL.match(name):
        raise InputError(
            f"{name}: only pages of the hub are fetched; download the file and give its path"
        )
    if (meant := known.hub_id(name)) is not None:
        name = meant
    return _of_id(name) if is_hub_name(name) else None


def _of_id(name: str) -> HubName:
    repository, colon, file = name.partition(":")
    if colon and not _is_file_name(file):
        raise InputError(
            f"{name}: not a hub id of the form owner/name, owner/name:QUANT or "
            "owner/name:FILE.gguf, where FILE may lie in a folder"
        )
    return HubName(repository, "" if file.lower() == DEFAULT_TAG else file)


def _of_url(url: str) -> HubName:
    """A page of the hub: of a repository, a branch (`tree`) or a file (`blob`, `resolve`)."""
    path = _HOST.sub("", re.split(r"[?#]", url)[0], count=1).strip("/")
    owner, _, rest = path.partition("/")
    if owner in _NO_MODELS or not rest:
        raise InputError(f"{url} is no model's page; that of one ends in owner/name")
    name, *inner = rest.split("/")
    meant = _of_id(f"{owner}/{name}")
    if len(inner) < 2 or inner[0] not in _VIEWS:
        return meant
    view, revision, *file = inner
    kept = None if revision == "main" else revision
    if view in ("tree", "commits", "commit") or not file:
        return HubName(meant.repository, meant.file, kept)
    return HubName(meant.repository, _of_id(f"{owner}/x:{'/'.join(file)}").file, kept)


def _is_file_name(file: str) -> bool:
    inner = file.split("/")
    return "\\" not in file and "\0" not in file and not {"", ".", ".."} & set(inner)
