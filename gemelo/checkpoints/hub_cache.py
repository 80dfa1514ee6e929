"""The hub library's cache on this machine: which snapshots it has, and removing from it.

The cache is shared with every other tool, and so are its rules: a repository is a folder of blobs
and of snapshots, one a commit, whose files are links to the blobs; `refs/main` names the newest.
Looking takes a few directory listings and asks nobody. Whole repositories are removed by the
library; it has no way to remove one file, which is done here: its link, and its blob once no
snapshot links to it.

    for name, snapshot in cached(): print(name, gguf_files(snapshot))
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gemelo.checkpoints.gguf_names import chosen, is_gguf, parts_of
from gemelo.checkpoints.hub_names import is_hub_name
from gemelo.errors import InputError, UnavailableError

_COMMIT = re.compile(r"[0-9a-f]{5,64}")


def cache_path() -> Path:
    """Where the hub's library keeps what it fetches. Raises `UnavailableError` without a home."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if str(HF_HUB_CACHE).startswith("~"):  # as the library leaves it where nobody has a home
        raise UnavailableError(
            "there is no home directory for the hub's cache; set HF_HOME to a folder"
        )
    return Path(HF_HUB_CACHE)


def folder_of(repository: str) -> Path:
    """The folder of a repository, which need not be there."""
    return cache_path() / f"models--{repository.replace('/', '--')}"


def cached() -> Iterator[tuple[str, Path]]:
    """Names and snapshots of the model repositories that the cache has at `main`, in order."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    try:
        folders = sorted(os.listdir(cache))
    except FileNotFoundError:
        return
    except OSError as error:
        what = "is a file" if cache.is_file() else f"cannot be read: {error.strerror}"
        raise UnavailableError(
            f"the hub's cache {cache} {what}; set HF_HUB_CACHE to a folder"
        ) from None
    for folder in folders:
        name = folder.removeprefix("models--").replace("--", "/")
        snapshot = _snapshot(cache / folder, "main")
        if folder.startswith("models--") and is_hub_name(name) and snapshot is not None:
            yield name, snapshot


def snapshot_of(repository: str, revision: str | None = None) -> Path | None:
    """The snapshot that the cache has of a repository at a branch, tag or commit."""
    return _snapshot(folder_of(repository), revision or "main")


def gguf_files(snapshot: Path) -> list[str]:
    """GGUF files of a snapshot, in its folders too, as hub names have them."""
    found = (path for path in snapshot.rglob("*") if is_gguf(path.name))
    return sorted(path.relative_to(snapshot).as_posix() for path in found if path.is_file())


def cached_gguf(repository: str, tag: str, revision: str | None) -> Path | None:
    """The GGUF that a file's name or a quantisation type means, with all its parts, if the cache
    has it; for "" the usual one of those that it has."""
    snapshot = snapshot_of(repository, revision)
    if snapshot is None:
        return None
    if tag and all((snapshot / part).is_file() for part in parts_of(tag)):
        return snapshot / tag
    file = chosen(gguf_files(snapshot), tag)
    return None if file is None else snapshot / file


def has_directory(snapshot: Path) -> bool:
    """Whether a snapshot has, or begins to have, a model in safetensors."""
    return any(snapshot.glob("*.safetensors"))


def _snapshot(repository: Path, revision: str) -> Path | None:
    """Where a repository's folder has a branch, tag or commit; None if it has not."""
    with suppress(OSError, ValueError):
        reference = repository / "refs" / revision
        commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
        path = repository / "snapshots" / commit
        if _COMMIT.fullmatch(commit) and path.is_dir():
            return path
    return None


# ---- removing ------------------------------------------------------------------------------------


def remove_repository(repository: str) -> None:
    """Remove all that the cache has of a model repository, by the hub library's own means."""
    from huggingface_hub import scan_cache_dir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other repositories that are damaged
        found = scan_cache_dir(cache_path())
    for repo in found.repos:
        if repo.repo_type == "model" and repo.repo_id == repository:
            commits = [revision.commit_hash for revision in repo.revisions]
            # A renamed or duplicated repository has the same commits: the library is shown no other
            alone = dataclasses.replace(found, repos=frozenset({repo}))
            alone.delete_revisions(*commits).execute()
    if (folder := folder_of(repository)).exists():
        raise UnavailableError(
            f"the hub's library removes no repository that is not whole; `rm -r "
            f"{shlex.quote(str(folder))}` removes what is left of {repository}"
        )


def remove_files(repository: str, files: list[Path]) -> None:
    """Remove single files of a snapshot, with their blobs where no other snapshot has them."""
    repository_folder = folder_of(repository).resolve()
    blobs, snapshots = repository_folder / "blobs", repository_folder / "snapshots"
    led = {file.resolve() for file in files if file.is_symlink()}
    for blob in led:
        if blob.parent != blobs:
            raise InputError(f"{blob} is linked to, and the hub's cache does not keep it")
    for folder in {file.parent.resolve() for file in files}:
        if not folder.is_relative_to(snapshots):
            raise InputError(f"{folder} is linked to, and the hub's cache does not keep it")
    try:
        for file in files:
            file.unlink()
        links = [one for one in folder_of(repository).glob("snapshots/**/*") if one.is_symlink()]
        for blob in led - {link.resolve() for link in links}:
            blob.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"cannot remove {error.filename}: {error.strerror}; look who may write to its folder"
        ) from None
