"""Removing models: only what gemelo or the hub's library wrote, and never a file of the user's.

A name is resolved to a plan first, which says what would go and how much that is; nothing is
touched before somebody has agreed to it. The hub's repositories go as a whole by `owner/name`, one
GGUF file of them by `owner/name:QUANT`; a conversion's files only while they are as they were
written (`written`). Everything else is refused with the command of the shell that would do it.

    plan = removal("owner/name:Q4_K_M");  print(plan.what, plan.size_bytes);  plan.carry_out()
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gemelo.checkpoints import hub_cache, hub_names, locate, ollama, written
from gemelo.checkpoints.gguf_names import is_mmproj, models, parts_of
from gemelo.checkpoints.hub import size_of
from gemelo.errors import InputError, UnavailableError


@dataclass(frozen=True)
class Removal:
    """What would be removed: in words with its place, its bytes, and the way to do it."""

    what: str
    size_bytes: int
    carry_out: Callable[[], None]


def removal(name: str) -> Removal:
    """The plan for a model's name, as `gemelo list` has it. Raises `InputError` for what is not
    here, or is not gemelo's to remove."""
    if name == "":  # as from an unset variable of a shell
        raise InputError("the model's name is empty; `gemelo list` shows what is here")
    path = locate.expanded(name)
    if os.path.lexists(path):
        return _of_path(name, path)
    if name == locate.DEMO:
        return _of_demo()
    if ("/" not in name or ":" in name) and ollama.find(name) is not None:
        raise InputError(f"{name} is Ollama's; `ollama rm {shlex.quote(name)}` removes it")
    wanted = hub_names.parse(name)
    folder = None if wanted is None else hub_cache.folder_of(wanted.repository)
    if wanted is None or folder is None or not folder.is_dir():
        raise InputError(f"{name} is not on this machine; `gemelo list` shows what is")
    return _of_file(wanted, folder) if wanted.file else _of_repository(wanted, folder)


# ---- the hub's cache -----------------------------------------------------------------------------


def _of_repository(wanted: hub_names.HubName, folder: Path) -> Removal:
    if folder.is_symlink():  # the hub's library would remove the link alone
        real = folder.resolve()
        raise InputError(
            f"{folder} is a link to {real}; `rm -r {shlex.quote(str(real))} "
            f"{shlex.quote(str(folder))}` removes both"
        )
    blobs = [path for path in folder.rglob("*") if not path.is_symlink()]
    return Removal(
        f"{wanted.repository}, all of it, from {folder}",
        sum(map(size_of, blobs)),
        lambda: hub_cache.remove_repository(wanted.repository),
    )


def _of_file(wanted: hub_names.HubName, folder: Path) -> Removal:
    """One GGUF of a repository; the last one takes the repository with it, mmproj and all."""
    snapshot = hub_cache.snapshot_of(wanted.repository, wanted.revision)
    path = hub_cache.cached_gguf(wanted.repository, wanted.file, wanted.revision)
    if snapshot is None or path is None:
        raise InputError(f"{wanted} is not on this machine; `gemelo list` shows what is")
    file = path.relative_to(snapshot).as_posix()
    parts = [snapshot / part for part in parts_of(file)]
    others = set(models(hub_cache.gguf_files(snapshot))) - {min(parts_of(file))}
    if not others and not is_mmproj(file) and not hub_cache.has_directory(snapshot):
        return _of_repository(wanted, folder)
    return Removal(
        f"{wanted.repository}:{file} from {folder}",
        sum(map(size_of, parts)),
        lambda: hub_cache.remove_files(wanted.repository, parts),
    )


# ---- gemelo's own --------------------------------------------------------------------------------


def _of_demo() -> Removal:
    path = locate.cache_folder() / locate.DEMO_FILE
    if not path.is_file():
        raise InputError(f"{locate.DEMO} is not joined: there is no {path}, and nothing to remove")
    files = [path, locate.seal_of(path)]
    again = "; its package stays, and the next use joins it again" if locate.is_installed() else ""
    return Removal(
        f"the joined {locate.DEMO}, {path}{again}", size_of(path), lambda: _unlink(files)
    )


def _of_path(name: str, path: Path) -> Removal:
    """What a conversion wrote, and is as it was; a link is followed to it, and goes too."""
    real = Path(os.path.realpath(path))
    if real == Path(os.path.realpath(locate.cache_folder() / locate.DEMO_FILE)):
        return _of_demo()
    one = next((one for one in written.written() if one.path == real), None)
    if one is None:
        cure = "it holds more than models"
        if not any(
            Path(part).is_relative_to(real) for part in (os.getcwd(), os.path.expanduser("~"))
        ):
            flag = "-r " if path.is_dir() and not path.is_symlink() else ""
            cure = f"`rm {flag}{shlex.quote(str(path))}` removes it"
        raise InputError(f"{name} was not written by gemelo, or has changed since; {cure}")
    link = [path] if path.is_symlink() else []
    return Removal(f"{real}, which gemelo wrote", one.size_bytes, lambda: _remove(one, link))


def _remove(one: written.Written, links: list[Path]) -> None:
    if not one.is_unchanged:
        raise InputError(f"{one.path} has changed meanwhile, and is left as it is")
    if one.path.is_dir():
        _unlink([one.path / name for name in one.files])
        one.path.rmdir()
        _unlink(links)
    else:
        _unlink([one.path, *links])


def _unlink(files: list[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"cannot remove {file}: {error.strerror}; look who may write to its folder"
            ) from None
