"""Temporary files of a write in progress, and what a killed writer left of them.

An unfinished `NAME` is called `.NAME.<16 random digits>.part` and made exclusively, so that no two
writers of one target share a file, whatever their process ids are. Its writer holds a lock on it,
which the system gives back however the process ends: whose lock can be taken is left over, and the
next writer of that target removes it. On Windows nobody can rename or remove what somebody has
open, so there it is the open file itself that says whose writer lives; of a folder, its mark.

    with unfinished_file(real_path(Path("out.gguf"))) as (file, path): ...
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gemelo.errors import GemeloError, InputError, UnavailableError

if sys.platform != "win32":
    import fcntl

MARK = "unfinished-by-gemelo"  # lies in every unfinished folder, and says that it is one
MOST_NAME_BYTES = 200  # of the target's name in ours; file systems allow 255 in all
_TRIES = 100
_NO_WAITING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # for links, for pipes
_IN_USE = (32, 33, 1224)  # Windows: open elsewhere, locked, mapped as the weights of a model are
_WRONG_PLACE = {
    errno.ENOENT: "there is no such folder, or none can be made there",
    errno.ENOTDIR: "a part of the path is a file; choose a name in a folder",
    errno.EISDIR: "it is a folder; choose the name of a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}
_NO_ROOM = {
    errno.ENOSPC: "free some room there, or choose another disk",
    errno.EDQUOT: "free some of your quota there, or choose another disk",
    errno.EROFS: "choose a place on a disk that can be written",
    errno.EXDEV: "its folder cannot be moved there; choose another name",
    errno.EFBIG: "the disk holds no file of this size; choose another",
}


@contextmanager
def plain_os_errors(path: Path) -> Iterator[None]:
    """The system's refusals as one line each that names the target and the cure."""
    try:
        yield
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError) -> GemeloError:
    """The error of a target that the system does not let us write."""
    code = error.errno or 0
    cure = _WRONG_PLACE.get(code) or _NO_ROOM.get(code)
    kind = InputError if code in _WRONG_PLACE else UnavailableError
    if getattr(error, "winerror", None) in _IN_USE:
        cure, kind = "a program has it open; end that, or choose another name", UnavailableError
    return kind(f"cannot write {path}: {error.strerror or error}" + (f"; {cure}" if cure else ""))


def real_path(path: Path) -> Path:
    """Where the path leads, through all links; `InputError` for links that go round in circles."""
    try:
        real = Path(os.path.realpath(path))
        circular = real.is_symlink()
    except OSError as error:  # a name too long
        raise refusal(path, error) from None
    except ValueError as error:  # a NUL in the name
        raise InputError(f"cannot use {str(path)!r} as a path: {error}") from None
    if circular:
        raise InputError(f"{path} is a link that leads round in circles; choose another name")
    return real


@contextmanager
def unfinished_file(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `target`, locked, and its path; removed at the end if it is still there."""
    descriptor, path = _made(target, _new_file)
    try:
        with open(descriptor, "wb") as file:
            yield file, path
    finally:
        with suppress(OSError):
            os.unlink(path)


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, locked, with a mark in it. What it holds is the caller's."""
    descriptor, path = _made(target, _new_folder)
    try:
        os.close(os.open(path / MARK, os.O_CREAT | os.O_WRONLY, 0o666))
        yield path
    finally:
        os.close(descriptor)
        if sys.platform == "win32":  # where the mark could not be removed before
            with suppress(OSError):
                if os.listdir(path) == [MARK]:
                    os.unlink(path / MARK)
                    os.rmdir(path)


def leftovers(target: Path) -> Iterator[Path]:
    """What dead writers of `target` left, each locked while the caller deals with it."""
    ours = re.compile(rf"\.{re.escape(_stem(target.name))}\.[0-9a-f]{{16}}\.part")
    try:
        names = sorted(name for name in os.listdir(target.parent) if ours.fullmatch(name))
    except OSError:
        return
    for name in names:
        if sys.platform == "win32":
            if _is_closed(target.parent / name):
                yield target.parent / name
            continue
        descriptor = _taken(target.parent / name)
        if descriptor is not None:
            try:
                yield target.parent / name
            finally:
                os.close(descriptor)


def remove_files_left(target: Path) -> None:
    """Remove unfinished files of dead writers of `target`."""
    for path in leftovers(target):
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.unlink(path)


def _stem(name: str) -> str:
    """The target's name, as much of it as fits, with a digest where that is not all."""
    raw = os.fsencode(name)
    if len(raw) <= MOST_NAME_BYTES:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return f"{raw[: MOST_NAME_BYTES - 20].decode('utf-8', 'ignore')}-{digest}"


def _made(target: Path, make: Callable[[Path], int]) -> tuple[int, Path]:
    """A new and locked file or folder of a name that nobody else has; its descriptor and path."""
    for _ in range(_TRIES):
        path = target.with_name(f".{_stem(target.name)}.{secrets.token_hex(8)}.part")
        try:
            descriptor = make(path)
        except FileExistsError:
            continue
        if sys.platform == "win32" or (_locked(descriptor) is not False and _is(descriptor, path)):
            return descriptor, path
        os.close(descriptor)  # another writer took it for a leftover before we had locked it
    raise UnavailableError(f"cannot write {target}: no name is free beside it")


def _new_file(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)


def _new_folder(path: Path) -> int:
    os.mkdir(path, 0o700)  # nobody else's until it has its name
    if sys.platform == "win32":  # where folders cannot be opened
        return os.open(path / MARK, os.O_CREAT | os.O_WRONLY, 0o666)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _taken(path: Path) -> int | None:
    """A descriptor of a file or folder, if its lock is free; the lock is then ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_WAITING)
    except OSError:
        return None
    if _locked(descriptor) and _is(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None


def _is_closed(path: Path) -> bool:
    """Whether nobody has a file open, or the mark of a folder; for Windows."""
    open_while_alive = path / MARK if path.is_dir() else path
    try:
        os.rename(open_while_alive, open_while_alive)
    except OSError:
        return False
    return True


def _locked(descriptor: int) -> bool | None:
    """Whether we now hold the lock; None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to what was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Names in the folder reach the disk, where its file system can do that for folders."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
