"""The target path of a conversion: what may be there, asked before any work is done.

gemelo never removes what it did not write. A place is a file that ends in .gguf or else a folder;
it is no part of the source, by whatever name, and a folder that is replaced holds a checkpoint and
nothing besides. What is replaced stays until the new one is whole: there has to be room for both.

    check_place(Path("my-model"), source=Path("model.gguf"), overwrite=True)
    check_room(Path("my-model"), 536_870_912)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from gemelo.checkpoints.companion import companions
from gemelo.checkpoints.source import Source
from gemelo.errors import InputError, UnavailableError
from gemelo.weights.folder import check_replaceable, is_own, recovered
from gemelo.weights.mapped import behind
from gemelo.weights.temporary_files import plain_os_errors, real_path


def is_gguf(target: Path) -> bool:
    """Whether a target is a GGUF file by its name, and not a folder."""
    return target.suffix.lower() == ".gguf"


def check_place(target: Path, source: Path, overwrite: bool) -> None:
    """Raise `InputError` for a target that cannot be written, or may not be replaced."""
    if target.name in ("", ".."):
        raise InputError(f"{target} is no name for a model; give one, such as {target / 'model'}")
    with plain_os_errors(target):
        real = real_path(target)
        recovered(real)
        if target.is_symlink() and not real.exists():
            raise InputError(f"{target} is a link to {real}, which is not there; choose another")
        if real.exists() and not overwrite:
            raise InputError(
                f"{target} exists; choose another name, or overwrite=True to replace it"
            )
        _check_parent(target, real)
        _check_apart(target, source, _files_in(source))
        if is_gguf(target):
            _check_file(target, real)
        else:
            check_replaceable(target, overwrite)
            _check_not_current(target, real)


def check_room(target: Path, size_bytes: int) -> None:
    """Raise `UnavailableError` if the target's disk has less room than it takes."""
    parent = next(up for up in real_path(target).parents if os.path.lexists(up))
    try:
        free_bytes = shutil.disk_usage(parent).free
    except OSError:  # the writer says what it meets
        return
    if size_bytes > free_bytes:
        needed, free = shown_size(size_bytes), shown_size(free_bytes)
        raise UnavailableError(
            f"cannot write {target}: it takes {needed}, and {free} are free on that disk; "
            "free some room there, or choose another disk"
        )


def shown_size(size_bytes: int) -> str:
    """Bytes for people: GiB, or less than one in MiB."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"


def check_apart(target: Path, source: Source, towers_only: bool) -> None:
    """Raise `InputError` for a target that is, or holds, a file that an open source reads."""
    maps = behind(source.tensor(name) for name in source.shapes)
    files = [*source.files, *(Path(mapped.path) for mapped in maps)]
    if not towers_only:
        files += companions(source.path)
    _check_apart(target, source.path, files)


def _check_apart(target: Path, source: Path, files: Iterable[Path]) -> None:
    """Files are compared by what they are: links, mounts and letter case give one many names."""
    real, inside = real_path(target), [real_path(file) for file in files]
    if any(_same(real, file) for file in (source, *inside)):
        raise InputError(f"{target} is the source, or a part of it; choose another name")
    if any(_same(real, up) for file in inside for up in file.parents):
        raise InputError(f"{target} holds the source, {source}; choose another folder")
    if not is_gguf(target) and any(_same(source, up) for up in real.parents):
        raise InputError(f"{target} lies in the source, {source}; choose another folder")


def _files_in(source: Path) -> Iterator[Path]:
    """The source, and what belongs to it in its folder."""
    yield source
    if source.is_dir():
        yield from (file for file in source.iterdir() if is_own(file.name))


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False


def _check_parent(target: Path, real: Path) -> None:
    """Folders that are missing are made, in one that is there and can be written to."""
    parent = next(up for up in real.parents if os.path.lexists(up))
    if not parent.is_dir():
        raise InputError(f"cannot write {target}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write {target}: {parent} may not be written to; choose another folder"
        )


def _check_file(target: Path, real: Path) -> None:
    if real.is_dir():
        raise InputError(f"{target} is a folder; a GGUF is a file, so choose another name")
    if real.exists() and not real.is_file():
        raise InputError(f"{target} is a device or a pipe; choose another name")


def _check_not_current(target: Path, real: Path) -> None:
    """Who stands in a folder would find himself in the old one, which is removed."""
    if _same(real, Path.cwd()):
        raise InputError(f"{target} is the current folder; run this from another, or choose a name")
