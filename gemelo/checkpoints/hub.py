"""The Hugging Face hub: fetching a repository's model, and what its cache on this machine holds.

The cache is the hub library's own, shared with every other tool, and so are its rules and settings
(HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN). What that library raises becomes errors here: a full disk
is no network fault, a gated repository no missing one.

    path = pull("google/gemma-3-1b-it")
    path = pull("owner/name:FOLDER/FILE.gguf")
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from gemelo.errors import GemeloError, InputError, UnavailableError, listed

CONFIG = "config.json"
_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")
_COMMIT = re.compile(r"[0-9a-f]{5,64}")
_PART = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_CLIENTS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
_MOST_PARTS = 1000
_DISK = {
    errno.ENOSPC: "free some room there, or set HF_HUB_CACHE to a folder on another disk",
    errno.EDQUOT: "free some of your quota, or set HF_HUB_CACHE to a folder on another disk",
    errno.EACCES: "set HF_HUB_CACHE to a folder that you may write to",
    errno.EPERM: "set HF_HUB_CACHE to a folder that you may write to",
    errno.EROFS: "set HF_HUB_CACHE to a folder on a disk that can be written",
    errno.ENOENT: "set HF_HUB_CACHE to a folder that can be made",
    errno.ENOTDIR: "set HF_HUB_CACHE to a folder",
    errno.EEXIST: "set HF_HUB_CACHE to a folder",
    errno.EISDIR: "set HF_HUB_CACHE to another folder",
    errno.ENAMETOOLONG: "set HF_HUB_CACHE to a folder with a shorter name",
    errno.EIO: "the disk is faulty; set HF_HUB_CACHE to a folder on another",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EFBIG: "set HF_HUB_CACHE to a folder on a disk that holds files of this size",
}


def is_hub_name(name: str) -> bool:
    """Whether a name has the form owner/name or owner/name:FILE."""
    repository = name.partition(":")[0]
    owner, _, rest = repository.partition("/")
    return bool(owner and rest) and "/" not in rest and not name.startswith((".", "~", "/"))


def pull(name: str, revision: str | None = None) -> Path:
    """Fetch a hub repository, or what is missing of it; resumes what was interrupted.

    `owner/name` fetches safetensors, config and tokenizer; `owner/name:FILE.gguf` that one file, or
    all parts of one that was split.
    """
    repository, colon, file = name.partition(":")
    if not is_hub_name(name) or (colon and not _is_file_name(file)):
        raise InputError(
            f"{name}: not a hub id of the form owner/name or owner/name:FILE.gguf, where FILE may "
            "lie in a folder"
        )
    _check_cache()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough free disk space")  # we say it ourselves
            if file:
                return _pull_file(repository, file, revision)
            return _pull_directory(repository, revision)
    except GemeloError:
        raise
    except Exception as error:  # the hub's library raises its own, its client's and the system's
        raise _refusal(repository, file, revision, error) from None


def _pull_file(repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    parts = parts_of(file)
    if any(not try_to_load_from_cache(repository, one, revision=revision) for one in parts):
        HfApi().model_info(repository, revision=revision)  # asks once; a download asks six times
    paths = [hf_hub_download(repository, one, revision=revision) for one in parts]
    return Path(paths[0])


def _pull_directory(repository: str, revision: str | None) -> Path:
    """The snapshot of a repository, its files fetched one after the other.

    The library's own way fetches several in threads, which an interrupt has to wait for.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        info = HfApi().model_info(repository, revision=revision)  # asks once, and waits for nobody
    except errors.RevisionNotFoundError:
        raise
    except Exception:
        if (here := _whole_snapshot(repository, revision)) is not None:
            return here
        raise
    there = [file.rfilename for file in info.siblings or ()]
    there = there or HfApi().list_repo_files(repository, revision=info.sha)
    if CONFIG not in there:
        files = listed(_ggufs(there))
        cure = f"it has {files}; ask for {repository}:FILE" if files else "it is no model that runs"
        raise InputError(f"{repository} has no {CONFIG}: {cure}")
    snapshot = Path(hf_hub_download(repository, CONFIG, revision=revision)).parent
    for file in there:
        if "/" not in file and any(fnmatchcase(file, pattern) for pattern in _FILES):
            hf_hub_download(repository, file, revision=snapshot.name)
    return snapshot


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


def gguf_files(snapshot: Path) -> list[str]:
    """GGUF files of a snapshot, in its folders too, as hub names have them."""
    found = (path for path in snapshot.rglob("*") if path.suffix.lower() == ".gguf")
    return sorted(path.relative_to(snapshot).as_posix() for path in found if path.is_file())


def parts_of(file: str) -> list[str]:
    """The file asked for, and the other parts of one that was split, as llama.cpp names them."""
    match = _PART.fullmatch(file)
    if match is None or not 1 < int(match[3]) <= _MOST_PARTS:
        return [file]
    names = [
        f"{match[1]}{number:05}-of-{match[3]}{match[4]}" for number in range(1, int(match[3]) + 1)
    ]
    return [file, *(name for name in names if name != file)]


def _is_file_name(file: str) -> bool:
    inner = file.split("/")
    return "\\" not in file and "\0" not in file and not {"", ".", ".."} & set(inner)


def _snapshot(repository: Path, revision: str) -> Path | None:
    """Where a repository's folder has a branch, tag or commit; None if it has not."""
    with suppress(OSError, ValueError):
        reference = repository / "refs" / revision
        commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
        path = repository / "snapshots" / commit
        if _COMMIT.fullmatch(commit) and path.is_dir():
            return path
    return None


def _check_cache() -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    if str(HF_HUB_CACHE).startswith("~"):  # as the library leaves it where nobody has a home
        raise UnavailableError(
            "there is no home directory for the hub's cache; set HF_HOME to a folder"
        )


def _whole_snapshot(repository: str, revision: str | None) -> Path | None:
    """A directory of the cache, if it has all that a model needs."""
    from gemelo.checkpoints.open import open_source

    snapshot = _snapshot(_folder(repository), revision or "main")
    try:
        if snapshot is not None and (snapshot / CONFIG).is_file():
            open_source(snapshot)
            return snapshot
    except GemeloError:
        pass
    return None


def _folder(repository: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _ggufs(files: Iterable[str]) -> list[str]:
    return sorted(file for file in files if file.lower().endswith(".gguf"))


# ---- why not -------------------------------------------------------------------------------------


def _refusal(repository: str, file: str, revision: str | None, error: Exception) -> GemeloError:
    """What the hub's library raised, as one line with its cure."""
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    reason = error if cause is None else cause
    if isinstance(reason, errors.HfHubHTTPError):
        return _refused_by_hub(repository, file, revision, reason)
    if isinstance(reason, errors.HFValidationError):
        return InputError(f"{repository}: not a hub id of the form owner/name: {_line(reason)}")
    code = _disk_code(reason)
    if code is not None:
        from huggingface_hub.constants import HF_HUB_CACHE

        where = getattr(reason, "filename", None) or HF_HUB_CACHE
        return UnavailableError(
            f"cannot keep {repository} in the hub's cache: {os.strerror(code)} ({where}); "
            f"{_DISK[code]}"
        )
    if _is_of_network(reason):
        return _unreachable(repository, file, revision, reason)
    return UnavailableError(
        f"{repository} could not be fetched: {_line(reason)}; the same command again goes on where "
        "this one stopped"
    )


def _refused_by_hub(
    repository: str, file: str, revision: str | None, error: Exception
) -> GemeloError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    token = "set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        return UnavailableError(
            f"{repository} is gated: accept its licence on the hub's page, then {token}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{repository} has no revision {revision!r}; `main` is the usual one")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{repository}: the hub has no such repository, or it is private; {token} if it is "
            "yours, else look at the spelling"
        )
    if isinstance(error, errors.EntryNotFoundError) or (status == 404 and file):
        return _no_such_file(repository, file, _gguf_there(repository, revision))
    if status in (401, 403):
        return UnavailableError(
            f"the hub refuses {repository} ({status}): your token may not read it; {token} with "
            "one that may"
        )
    if status == 404:
        return InputError(f"{repository}: the hub has no such repository; look at the spelling")
    if status == 429:
        return UnavailableError(
            f"the hub has had too many requests from here (429) to give {repository}; wait some "
            f"minutes, or {token}"
        )
    return UnavailableError(
        f"the hub could not give {repository} ({status or _line(error)}); try again later"
    )


def _no_such_file(repository: str, file: str, there: Sequence[str]) -> GemeloError:
    files = listed(there) or "no GGUF file"
    return InputError(f"{repository} has no file {file!r}; it has {files}")


def _unreachable(
    repository: str, file: str, revision: str | None, reason: BaseException
) -> GemeloError:
    """Neither here nor, without a network, there."""
    from huggingface_hub import constants, errors

    offline = isinstance(reason, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached: {_line(reason)}"
    here = _here(repository, revision)
    if not file and here:
        return InputError(
            f"{repository} has no {CONFIG} on this machine, but {listed(here)}; ask for "
            f"{repository}:FILE"
        )
    if here:
        return UnavailableError(
            f"{repository} has no file {file!r} on this machine, but {listed(here)}, and {why}"
        )
    return UnavailableError(
        f"{repository} is not on this machine, or not whole, and {why}; `gemelo list` shows what "
        "is here"
    )


def _is_of_network(error: BaseException) -> bool:
    """Whether the hub, or anything, was not reached; its library has changed clients often."""
    from huggingface_hub import errors

    kinds = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
    client = type(error).__module__.partition(".")[0]
    return isinstance(error, (*kinds, errors.LocalEntryNotFoundError)) or client in _CLIENTS


def _disk_code(error: BaseException) -> int | None:
    """The errno of a fault of the disk, also where a library has made it a text."""
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return None
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (match := re.search(r"os error (\d+)", str(error))):
        code = int(match[1])
    return code if code in _DISK else None


def _here(repository: str, revision: str | None) -> list[str]:
    """GGUF files of a repository that are on this machine."""
    snapshot = _snapshot(_folder(repository), revision or "main")
    return [] if snapshot is None else gguf_files(snapshot)


def _gguf_there(repository: str, revision: str | None) -> list[str]:
    """GGUF files of a repository: on the hub, or on this machine where it does not answer."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # it only makes an error message better
        return _ggufs(HfApi().list_repo_files(repository, revision=revision))
    return _here(repository, revision)


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
