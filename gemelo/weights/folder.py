"""Checkpoint folders: which files are a checkpoint's own, and how it is replaced whole.

A new folder grows inside an unfinished one beside its target, `.NAME.<16 digits>.part/new`. When
all of it is on the disk, it takes the target's name: by an exchange of the two names at one moment,
which Linux offers, or by setting the old one aside and putting it back if the new one cannot
follow. So at every moment the old or the new is whole, under the target's name; or, where a process
was killed between the two steps of the second way, as `old-0` in the unfinished folder, from where
`recovered` puts it back. Nothing is ever removed but files of the names below.

    with replaced_folder(Path("my-model")) as folder: (folder / "config.json").write_text(...)
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemelo.errors import GemeloError, InputError, UnavailableError
from gemelo.weights.temporary_files import (
    MARK,
    leftovers,
    plain_os_errors,
    real_path,
    refusal,
    sync_folder,
    unfinished_folder,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_OTHER_FILES = {"config.json", "model.safetensors.index.json", *TOKENIZER_FILES}
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{16}\.part")
_NEW, _OLD = "new", "old-"
_TRIES = 16  # against other writers that come between two steps
_CHANGED_MEANWHILE = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_SYNCED = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY  # there only a writer may sync


@contextmanager
def replaced_folder(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """A folder to fill with a checkpoint; it becomes `path` when the block ends.

    Raises `InputError` where `path` is no checkpoint's folder, or is there without `overwrite`,
    also if it became so meanwhile.
    """
    with plain_os_errors(path):
        real = real_path(path)
        check_replaceable(path, overwrite)
        remove_folders_left(real)
        with unfinished_folder(real) as around, _by_its_name(path, around):
            try:
                new = around / _NEW
                os.mkdir(new)
                yield new
                if real.is_dir():
                    os.chmod(new, stat.S_IMODE(os.stat(real).st_mode))
                _sync(new)
                _put(path, real, around, overwrite)
                sync_folder(real.parent)
            finally:
                _put_back(around, real)
                _remove_unless_waiting(around, real)


@contextmanager
def _by_its_name(path: Path, around: Path) -> Iterator[None]:
    """A refused write of a file in the unfinished folder is one of the folder it will be."""
    try:
        yield
    except GemeloError as error:
        if isinstance(error.__cause__, OSError) and around.name in str(error):
            raise refusal(path, error.__cause__) from error.__cause__
        raise


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raise `InputError` if there is what a checkpoint's folder may not replace."""
    real = real_path(path)
    if not os.path.lexists(real):
        return
    if not overwrite:
        raise InputError(f"{path} exists; choose another name, or overwrite=True to replace it")
    if not real.is_dir():
        raise InputError(f"{path} exists and is not a folder; choose another name")
    if not os.access(real, os.W_OK | os.X_OK):
        raise InputError(f"{path} may not be written to; choose another folder")
    if os.path.ismount(real):
        raise InputError(f"{path} is where a disk is mounted; choose a folder in it")
    if (reason := _no_checkpoint(real)) is not None:
        raise InputError(f"{path} {reason}; choose another folder, or empty this one yourself")


def is_own(name: str) -> bool:
    """Whether a checkpoint has files of this name."""
    return bool(_WEIGHTS.fullmatch(name)) or name in _OTHER_FILES


def _no_checkpoint(folder: Path) -> str | None:
    """Why a folder is no checkpoint that may be replaced; None if it is one, or is empty."""
    with os.scandir(folder) as entries:
        files = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    for name, is_file in sorted(files.items()):
        if not is_file or not is_own(name):
            return f"holds {name!r}, which no checkpoint of gemelo has"
    if files and not any(_WEIGHTS.fullmatch(name) for name in files):
        return f"holds {min(files)!r} but no safetensors, so it is no checkpoint"
    return None


def _sync(new: Path) -> None:
    """The new files, their names, and the folder's own, on the disk."""
    for name in sorted(os.listdir(new)):
        descriptor = os.open(new / name, _SYNCED)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(new)
    sync_folder(new.parent)


# ---- taking the target's name --------------------------------------------------------------------


def _put(path: Path, real: Path, around: Path, overwrite: bool) -> None:
    """The new folder takes the target's name; what had it is in `around` from then on."""
    for number in range(_TRIES):
        try:
            if not os.path.lexists(real):
                os.rename(around / _NEW, real)
            else:
                check_replaceable(path, overwrite)
                if not exchanged(around / _NEW, real):
                    _set_aside(real, around, around / f"{_OLD}{number}")
            return
        except OSError as error:
            if error.errno not in _CHANGED_MEANWHILE or number + 1 == _TRIES:
                raise


def exchanged(one: Path, other: Path) -> bool:
    """Two names exchanged at one moment; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _set_aside(real: Path, around: Path, aside: Path) -> None:
    """The second way; an error or interrupt in it is followed by `_put_back`."""
    os.rename(real, aside)
    try:
        os.rename(around / _NEW, real)
    except OSError as error:
        if error.errno in _CHANGED_MEANWHILE or _put_back(around, real):
            raise
        raise UnavailableError(
            f"cannot write {real}: {error.strerror}; what was there is whole in {aside}, and takes "
            "its name again when gemelo looks for it"
        ) from None


def _put_back(around: Path, real: Path) -> bool:
    """What was set aside gets its name back, where the new one has not taken it; whether it did."""
    with suppress(OSError):
        aside = _waiting(around, real)
        if aside is not None:
            os.rename(aside, real)
            sync_folder(real.parent)
            return True
    return False


def _waiting(around: Path, real: Path) -> Path | None:
    """What was set aside and has no successor: the new one is still beside it."""
    names = os.listdir(around)
    asides = [name for name in names if name.startswith(_OLD)]
    if not asides or _NEW not in names or os.path.lexists(real):
        return None
    latest = around / max(asides, key=lambda name: (len(name), name))
    return None if latest.is_symlink() else latest


# ---- what killed writers left --------------------------------------------------------------------


def recovered(path: Path) -> bool:
    """Put back a folder that a killed writer had set aside; whether there was one."""
    try:
        real = real_path(path)
    except GemeloError:
        return False
    put_back = [_put_back(around, real) for around in leftovers(real)]
    return any(put_back)


def remove_folders_left(target: Path) -> None:
    """Remove unfinished folders of dead writers of `target`, once the old one has its name."""
    for around in leftovers(target):
        _put_back(around, target)
        _remove_unless_waiting(around, target)


def _remove_unless_waiting(around: Path, real: Path) -> None:
    """Remove an unfinished folder, as far as a checkpoint's writer has made what is in it; not
    while the only whole checkpoint is there because it could not be put back."""
    with suppress(OSError):
        inner = set(os.listdir(around))
        if (inner and MARK not in inner) or _waiting(around, real) is not None:
            return
        for name in inner - {MARK}:
            _remove_checkpoint(around / name)
        if set(os.listdir(around)) <= {MARK}:
            with suppress(FileNotFoundError):
                os.unlink(around / MARK)
            os.rmdir(around)


def _remove_checkpoint(folder: Path) -> None:
    with suppress(OSError):
        if folder.is_symlink():
            return
        for name in os.listdir(folder):
            unfinished = _UNFINISHED.fullmatch(name)
            if is_own(unfinished[1] if unfinished else name):
                with suppress(OSError):
                    os.unlink(folder / name)
        os.rmdir(folder)
