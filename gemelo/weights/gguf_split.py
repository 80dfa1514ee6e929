"""Split GGUF files (`gguf-split`): the parts of one model, found and checked to be one.

Every part says which it is (`split.no`), of how many (`split.count`) and how many tensors all of
them hold; the first has the model's own key-values, and perhaps no tensor. The names follow from
one another, so any part leads to all; and since a part of another model, or yesterday's, has a name
as good as any, what they say is compared.

    paths_of(Path("m-00002-of-00003.gguf"), header.values)      # three paths, in order
    join = Join(paths);  join.add(header);  ...;  join.whole()["gemma3.block_count"]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemelo.config.checks import is_whole
from gemelo.errors import FileFormatError, InputError
from gemelo.weights.gguf_header import MAX_COUNTS, Header
from gemelo.weights.gguf_values import KeyValues

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NO, COUNT, TENSORS)
MAX_PARTS = 512  # each is a map of its own
_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


def paths_of(path: Path, values: Mapping[str, Any]) -> list[Path]:
    """The files of the model that a file is a part of, in order; itself alone if it is no part.

    Raises `InputError` for a part that is missing or so named that the others are not found.
    """
    count = _number(path, values, COUNT, 0)
    if count < 2:
        return [path]
    if count > MAX_PARTS:
        raise FileFormatError(f"{path}: {COUNT} is {count}; at most {MAX_PARTS} parts are read")
    number = _number(path, values, NO) + 1
    part = f"part {number} of {count} of a split GGUF"
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise InputError(
            f"{path} is {part}; name all of them like NAME-{number:05}-of-{count:05}.gguf, side by "
            "side, so that the others are found"
        )
    stem, said_number, said_count, suffix = match.groups()
    if (int(said_number), int(said_count)) != (number, count):
        raise InputError(
            f"{path} is {part} by its split.no and split.count, and not what its name says; "
            f"rename it to {stem}-{number:05}-of-{count:05}{suffix}, or fetch it again"
        )
    paths = [path.with_name(f"{stem}-{n:05}-of-{count:05}{suffix}") for n in range(1, count + 1)]
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path} is {part}, and {missing[0]}{more} is not beside it; fetch every part"
        )
    return paths


class Join:
    """Parts put together, one after the other, in order: their key-values, and no tensor twice."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._added, self._num_entries = paths, 0, 0
        self._first: KeyValues | None = None
        self._values, self._entries = dict[str, Any](), dict[str, bytes]()
        self._owners = dict[str, Path]()

    def add(self, header: Header) -> None:
        """The next part. Raises `FileFormatError` unless it is that, of the same model."""
        path, values = self._paths[self._added], header.values
        number, count = _number(path, values, NO), _number(path, values, COUNT)
        if (number, count) != (self._added, len(self._paths)):
            raise FileFormatError(
                f"{path} is part {number + 1} of {count} by its key-values, and not part "
                f"{self._added + 1} of {len(self._paths)}; fetch it again"
            )
        self._first = self._first or values
        self._compare(path, values)
        for name in header.tensors:
            if name in self._owners:
                raise FileFormatError(
                    f"tensor {name[:80]!r} is in {self._owners[name]} and in {path}"
                )
            self._owners[name] = path
        more = [key for key in values if key not in self._values and key not in KEYS]
        self._values |= {key: values[key] for key in more}
        self._entries |= {key: values.encoded(key) for key in more}
        self._bound(path, len(values))
        self._added += 1

    def whole(self) -> KeyValues:
        """The key-values of all, without those of the split."""
        total = len(self._owners)
        expected = _number(self._paths[0], self._first or {}, TENSORS, total)
        if expected != total:
            raise FileFormatError(
                f"{self._paths[0]}: {TENSORS} is {expected}, and its parts hold {total}; fetch "
                "them again"
            )
        return KeyValues(self._values, self._entries)

    def _compare(self, path: Path, values: KeyValues) -> None:
        """Raise unless a part and the first agree wherever both speak."""
        first = self._first or values
        for key in values:
            if key != NO and key in first and values.encoded(key) != first.encoded(key):
                raise FileFormatError(
                    f"{path} is a part of another model than {self._paths[0]}: they differ in "
                    f"{key[:80]}; fetch all parts from one place"
                )

    def _bound(self, path: Path, num_entries: int) -> None:
        self._num_entries += num_entries
        counts = {"metadata entries": self._num_entries, "tensors": len(self._owners)}
        for what, most in MAX_COUNTS.items():
            if counts[what] > most:
                raise FileFormatError(
                    f"{path}: it and the parts before it hold {counts[what]} {what} (at most "
                    f"{most})"
                )


def _number(path: Path, values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if not is_whole(value, 0, (1 << 31) - 1):
        shown = repr(value)[:40] if isinstance(value, int | float | str) else type(value).__name__
        raise FileFormatError(f"{path}: {key} is {shown}; it must be a whole number, 0 or more")
    return value
