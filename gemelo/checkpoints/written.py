"""A record of the models that conversions wrote, wherever they are on this machine.

`gemelo list` shows them and `gemelo rm` may remove them, and nothing else of a user's. Each write
appends one line of JSON to a file of the cache folder: the path, and of each file there its bytes
and the time it was written at. A line is one call of the system, so that writers never mix theirs;
what is unreadable, was moved or has changed since counts as not written. Keeping the record never
fails a conversion.

    remember(Path("mine.gguf"));  [one.path for one in written()]
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gemelo.errors import GemeloError

RECORD = "written.jsonl"
_MOST_BYTES = 1 << 20  # of the record: some thousand models
# A link is none of ours, a pipe would wait for its reader; Windows has neither, but ends of lines.
_OTHER_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_OTHER_FLAGS |= getattr(os, "O_BINARY", 0)
# What a line that means something else leads to.
_BROKEN: tuple[type[Exception], ...] = (OSError, ValueError, ArithmeticError, LookupError)
_BROKEN += (TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Written:
    """A file or folder that gemelo wrote, and the bytes and the mtime, in ns, of its files by name;
    a file's own name is ""."""

    path: Path
    files: dict[str, tuple[int, int]]

    @property
    def is_unchanged(self) -> bool:
        """Whether there is what was written, and nothing beside it, by names, sizes and mtimes."""
        return _files(self.path) == self.files

    @property
    def size_bytes(self) -> int:
        return sum(count for count, _ in self.files.values())


def remember(path: Path) -> None:
    """Note down what was just written; does nothing where that is not possible."""
    with suppress(GemeloError, OSError, ValueError):
        record, real = _record(), Path(os.path.realpath(path))
        line = json.dumps({"path": str(real), "files": _files(real)}) + "\n"
        record.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _OTHER_FLAGS, 0o600)
        try:
            if os.fstat(descriptor).st_size > _MOST_BYTES:
                os.ftruncate(descriptor, 0)
            os.write(descriptor, line.encode("utf-8"))
        finally:
            os.close(descriptor)


def written() -> Iterator[Written]:
    """What was written and is still there unchanged, the latest first."""
    seen = set[Path]()
    for line in reversed(_lines()):
        with suppress(*_BROKEN):
            entry = json.loads(line)
            files = {name: (int(size), int(at)) for name, (size, at) in entry["files"].items()}
            one = Written(Path(entry["path"]), files)
            if one.path.is_absolute() and one.path not in seen:
                seen.add(one.path)
                if files and one.is_unchanged:
                    yield one


def _record() -> Path:
    from gemelo.checkpoints.locate import cache_folder

    return cache_folder() / RECORD


def _lines() -> list[str]:
    with suppress(GemeloError, OSError):
        record = _record()
        if record.is_file():
            with record.open("rb") as file:
                return file.read(2 * _MOST_BYTES).decode("utf-8", "replace").splitlines()
    return []


def _files(path: Path) -> dict[str, tuple[int, int]]:
    """Bytes and mtimes of the files of a folder by name, or of a file as ""; what is neither has
    -1 bytes."""
    if not path.is_dir():
        return {"": _look(path.stat())} if path.is_file() else {}
    with os.scandir(path) as entries:
        return {
            entry.name: _look(entry.stat()) if entry.is_file(follow_symlinks=False) else (-1, 0)
            for entry in entries
        }


def _look(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
