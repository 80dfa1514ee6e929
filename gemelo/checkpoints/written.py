"""A record of the models that conversions wrote, wherever they are on this machine.

`gemelo list` shows them and `gemelo rm` may remove them, and nothing else of a user's. Each write
appends one line of JSON to a file of the cache folder: the path, and the size in bytes of each file
there. A line is one call of the system, so that writers never mix theirs; what is unreadable, was
moved or has changed since counts as not written. Keeping the record never fails a conversion.

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


@dataclass(frozen=True)
class Written:
    """A file or folder that gemelo wrote, and the sizes of its files by name; a file's is ""."""

    path: Path
    sizes: dict[str, int]

    @property
    def is_unchanged(self) -> bool:
        """Whether there is what was written, and nothing beside it, by names and sizes."""
        return _sizes(self.path) == self.sizes

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes.values())


def remember(path: Path) -> None:
    """Note down what was just written; does nothing where that is not possible."""
    with suppress(GemeloError, OSError, ValueError):
        record, real = _record(), Path(os.path.realpath(path))
        line = json.dumps({"path": str(real), "sizes": _sizes(real)}) + "\n"
        record.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(record, flags, 0o600)
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
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            entry = json.loads(line)
            sizes = {str(name): int(count) for name, count in entry["sizes"].items()}
            one = Written(Path(entry["path"]), sizes)
            if one.path.is_absolute() and one.path not in seen:
                seen.add(one.path)
                if sizes and one.is_unchanged:
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


def _sizes(path: Path) -> dict[str, int]:
    """Sizes of the files of a folder by name, or of a file as ""; what is neither has -1."""
    if not path.is_dir():
        return {"": path.stat().st_size} if path.is_file() else {}
    with os.scandir(path) as entries:
        return {
            entry.name: entry.stat().st_size if entry.is_file(follow_symlinks=False) else -1
            for entry in entries
        }
