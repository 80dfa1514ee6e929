"""The Hugging Face hub: fetching a model's files into the hub library's cache.

The cache is that library's own, shared with every other tool, and so are its rules and settings
(HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN). The hub is asked once what a repository has, with a limit
on the wait and no second try, so that a machine without a network learns it at once. Of a
repository of GGUF files one is fetched, all parts of it and its mmproj; of any other the
safetensors, the config and the tokenizer. Room on the disk is looked at first.

    path = pull("google/gemma-3-1b-it")
    path = pull("ggml-org/gemma-3-4b-it-GGUF:Q8_0")     # or :FOLDER/FILE.gguf, or gemma3:4b-it-q8_0
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from inspect import signature
from pathlib import Path
from typing import Any

from gemelo.checkpoints import known
from gemelo.checkpoints.gguf_names import chosen, is_mmproj, mmproj_of, models, parts_of
from gemelo.checkpoints.headers import runs
from gemelo.checkpoints.hub_cache import (
    cache_path,
    cached_gguf,
    folder_of,
    gguf_files,
    has_directory,
    snapshot_of,
)
from gemelo.checkpoints.hub_errors import ASK_TIMEOUT_S, no_such_file, refusal
from gemelo.checkpoints.hub_names import HubName, parse
from gemelo.checkpoints.hub_progress import Progress, Total
from gemelo.errors import GemeloError, InputError, UnavailableError

CONFIG = "config.json"
_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")


def pull(name: str, revision: str | None = None, progress: Progress | None = None) -> Path:
    """Fetch a model of the hub, or what is missing of it; resumes what was interrupted.

    `owner/name` is a repository: its safetensors, or the usual one of its GGUF files (Q4_K_M);
    `owner/name:QUANT` and `owner/name:FILE.gguf` are one of these. Names of the table of known
    models (`gemma3:1b`, `gemma-3-1b-it`) and addresses of the hub's pages are read too.
    progress gets bytes fetched and in all; without one the hub library draws its own bars.
    Returns the directory or the file. Raises `GemeloError` with the cure.
    """
    if not isinstance(name, str):
        raise InputError(f"a model's name is a text, not {name!r:.60}")
    if name == known.DEMO:
        raise InputError(f"{name} is the embedded model: it is here, and nothing is fetched")
    wanted = parse(name)
    if wanted is None:
        raise InputError(
            f"{name}: not a hub id of the form owner/name or owner/name:FILE.gguf{_nearly(name)}"
        )
    wanted = wanted._replace(revision=revision or wanted.revision)
    cache_path()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough free disk space")  # we say it ourselves
            return _pull(wanted, progress)
    except GemeloError:
        raise
    except Exception as error:  # the hub's library raises its own, its client's and the system's
        raise refusal(wanted.repository, wanted.file, wanted.revision, error) from None


def _nearly(name: str) -> str:
    if known.is_other_family(name):
        return "; only Gemma 3 and Gemma 3n run here, and `gemelo list --known` has their names"
    close = known.suggestions(name)
    return f"; did you mean {' or '.join(close)}?" if close else "; `gemelo list --known` has names"


def _pull(wanted: HubName, progress: Progress | None) -> Path:
    from huggingface_hub import errors

    here = on_this_machine(wanted)
    if here is not None and _has_mmproj(wanted, here):
        return here
    try:
        commit, files = _ask(wanted)
        first, names = _to_fetch(wanted, files)
    except (errors.RevisionNotFoundError, errors.GatedRepoError):
        raise
    except Exception:
        if (here := here or _as_it_is(wanted)) is not None:
            return here
        raise
    _check_room(wanted, {name: files[name] for name in names}, commit)
    return _download(wanted, first, names, Total(progress, sum(files[n] for n in names)))


def on_this_machine(wanted: HubName) -> Path | None:
    """A GGUF of the cache that can only be what is meant: named, or of the usual type. Nobody is
    asked if its mmproj is missing; `pull` does that."""
    snapshot = snapshot_of(wanted.repository, wanted.revision)
    if snapshot is None or (not wanted.file and has_directory(snapshot)):
        return None
    tag = wanted.file or "Q4_K_M"
    return cached_gguf(wanted.repository, tag, wanted.revision)


def _has_mmproj(wanted: HubName, here: Path) -> bool:
    """Whether the cache has the towers of a GGUF too, or they are what was asked for."""
    snapshot = snapshot_of(wanted.repository, wanted.revision)
    if snapshot is None or is_mmproj(here.name):
        return True
    return mmproj_of(gguf_files(snapshot), here.relative_to(snapshot).as_posix()) is not None


def _as_it_is(wanted: HubName) -> Path | None:
    """What the cache has where the hub does not answer: a directory that is whole, or a GGUF."""
    snapshot = snapshot_of(wanted.repository, wanted.revision)
    if snapshot is None or wanted.file:
        return None
    if (snapshot / CONFIG).is_file() and runs(snapshot):
        return snapshot
    if has_directory(snapshot):
        return None
    return cached_gguf(wanted.repository, "", wanted.revision)


def _ask(wanted: HubName) -> tuple[str, dict[str, int]]:
    """The commit that a revision is at the hub, and sizes of its files in bytes."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(
        wanted.repository, revision=wanted.revision, timeout=ASK_TIMEOUT_S, files_metadata=True
    )
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return str(info.sha), files


def _to_fetch(wanted: HubName, files: Mapping[str, int]) -> tuple[str, list[str]]:
    """The file whose place is the model's, and all that are fetched; the first one is small."""
    own = [file for file in files if "/" not in file and _is_of_directory(file)]
    directory = CONFIG in own and any(fnmatchcase(file, "*.safetensors") for file in own)
    if directory and not wanted.file:
        return CONFIG, [CONFIG, *(file for file in own if file != CONFIG)]
    if wanted.file in files:
        file: str | None = wanted.file
    else:
        file = chosen(files, wanted.file)
    if file is None:
        raise _nothing(wanted, files)
    mmproj = None if is_mmproj(file) or file not in _models(files) else mmproj_of(files, file)
    return file, [*([mmproj] if mmproj else ()), *parts_of(file)]


def _models(files: Iterable[str]) -> set[str]:
    return {part for model in models(files) for part in parts_of(model)}


def _is_of_directory(file: str) -> bool:
    return any(fnmatchcase(file, pattern) for pattern in _FILES)


def _nothing(wanted: HubName, files: Mapping[str, int]) -> GemeloError:
    there = models(files)
    if wanted.file or there:
        return no_such_file(wanted.repository, wanted.file or "of a format that is read", there)
    return InputError(
        f"{wanted.repository} has no {CONFIG} with safetensors, and no GGUF file: it is no model "
        "that runs"
    )


# ---- fetching ------------------------------------------------------------------------------------


def _download(wanted: HubName, first: str, names: list[str], total: Total) -> Path:
    """Fetch files one after the other; the library's own way uses threads, which an interrupt has
    to wait for. Where the one that counts lies; all the others are of the same commit."""
    from huggingface_hub import hf_hub_download

    more: dict[str, Any] = {}
    if total.progress is not None and "tqdm_class" in signature(hf_hub_download).parameters:
        more["tqdm_class"] = total.bar()
    revision, paths = wanted.revision, dict[str, Path]()
    for name in names:
        paths[name] = Path(hf_hub_download(wanted.repository, name, revision=revision, **more))
        revision = _commit_of(paths[name], name)
    total.finish()
    return paths[first] if first != CONFIG else paths[first].parent


def _commit_of(path: Path, name: str) -> str:
    """The commit in whose snapshot a file lies."""
    return path.parents[len(Path(name).parts) - 1].name


# ---- room ----------------------------------------------------------------------------------------


def _check_room(wanted: HubName, files: Mapping[str, int], commit: str) -> None:
    """Raise `UnavailableError` where the cache's disk has less room than the files take."""
    there = folder_of(wanted.repository)
    snapshot = there / "snapshots" / commit
    missing = sum(size for name, size in files.items() if not (snapshot / name).is_file())
    begun = sum(size_of(path) for path in (there / "blobs").glob("*.incomplete"))
    needed, free = missing - begun, _free_bytes(there)
    if free is not None and needed > free:
        raise UnavailableError(
            f"{wanted} takes {_gigabytes(needed)} more, and the disk of {cache_path()} has "
            f"{_gigabytes(free)} free; free some room there, or set HF_HUB_CACHE to a folder on "
            "another disk"
        )


def _free_bytes(folder: Path) -> int | None:
    """Bytes free where a folder is or would be made; None where that means nothing, as in /proc."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            usage = shutil.disk_usage(place)
            return usage.free if usage.total else None
    return None


def size_of(path: Path) -> int:
    """Bytes of a file, through links; 0 where there is none."""
    with suppress(OSError):
        return path.stat().st_size if path.is_file() else 0
    return 0


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
