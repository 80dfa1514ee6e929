"""Why the hub gave nothing: what its library raises, as one line each with the cure.

That library raises its own errors, its HTTP client's and the system's; which client it has has
changed several times. A full disk is no network fault here, a gated repository no missing one, and
a repository that asks for an account is named with one that does not.

    raise refusal("google/gemma-3-1b-it", "", None, error)
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress

from gemelo.checkpoints import known
from gemelo.checkpoints.gguf_names import is_gguf
from gemelo.checkpoints.hub_cache import cache_path, gguf_files, snapshot_of
from gemelo.errors import GemeloError, InputError, UnavailableError, listed

ASK_TIMEOUT_S = 10.0  # for the hub to say what a repository has
_CLIENTS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
_PAGES = "https://huggingface.co"  # the hub's public pages, for people to open
_TOKEN = "run `hf auth login` or set HF_TOKEN=..."
# What systems say where a name has no address.
_NO_NAME = re.compile(
    r"Name or service not known|name resolution|nodename nor servname|getaddrinfo"
)
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


def refusal(repository: str, file: str, revision: str | None, error: Exception) -> GemeloError:
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
        where = getattr(reason, "filename", None) or cache_path()
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
    token = _TOKEN
    if isinstance(error, errors.GatedRepoError):
        return _gated(repository)
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{repository} has no revision {revision!r}; `main` is the usual one")
    if isinstance(error, errors.RepositoryNotFoundError):
        close = known.suggestions(repository)
        return InputError(
            f"{repository}: the hub has no such repository, or it is private; {token} if it is "
            f"yours, else {f'try {close[0]}' if close else 'look at the spelling'}"
        )
    if isinstance(error, errors.EntryNotFoundError) or (status == 404 and file):
        return no_such_file(repository, file, _gguf_there(repository, revision))
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


def _gated(repository: str) -> GemeloError:
    """What to do about a licence: where it is accepted, how the hub is told, what needs none."""
    from huggingface_hub import get_token

    free = known.without_account(repository)
    instead = f"; {free.name} is the same model without an account" if free else ""
    how = "with the account of your token" if get_token() else f"then {_TOKEN}"
    return UnavailableError(
        f"{repository} is gated: accept its licence at {_PAGES}/{repository} {how}{instead}"
    )


def no_such_file(repository: str, file: str, there: Sequence[str]) -> GemeloError:
    """The error of a file or quantisation type that a repository does not have."""
    files = listed(there) or "no GGUF file"
    return InputError(f"{repository} has no file {file!r}; it has {files}")


def _unreachable(
    repository: str, file: str, revision: str | None, reason: BaseException
) -> GemeloError:
    """Neither here nor, without a network, there."""
    from huggingface_hub import constants, errors

    offline = isinstance(reason, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached{_because(reason)}"
    here = _here(repository, revision)
    if here:
        lacks = f"no file {file!r}" if file else "no whole model"
        return UnavailableError(
            f"{repository} has {lacks} on this machine, but {listed(here)}, and {why}"
        )
    is_begun = snapshot_of(repository, revision) is not None
    lacks = "is on this machine in part only" if is_begun else "is not on this machine"
    return UnavailableError(f"{repository} {lacks}, and {why}; `gemelo list` shows what is here")


def _because(reason: BaseException) -> str:
    """Why a network did not answer, in words where the system's own say little."""
    if isinstance(reason, socket.gaierror) or _NO_NAME.search(str(reason)):
        return " (no network, or one that does not know the hub's name)"
    return f": {_line(reason)}"


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
    snapshot = snapshot_of(repository, revision)
    return [] if snapshot is None else gguf_files(snapshot)


def _gguf_there(repository: str, revision: str | None) -> list[str]:
    """GGUF files of a repository: on the hub, or on this machine where it does not answer."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # it only makes an error message better
        files = HfApi().model_info(repository, revision=revision, timeout=ASK_TIMEOUT_S).siblings
        return sorted(file.rfilename for file in files or () if is_gguf(file.rfilename))
    return _here(repository, revision)


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
