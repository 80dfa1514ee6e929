"""A model in several GGUF files, as llama.cpp's `gguf-split` cuts one: the parts, and whether they
belong together.

Every part says which it is (`split.no`), of how many (`split.count`) and how many tensors all of
them hold; the first has the model's own key-values, and perhaps no tensor. The names follow from
one another, so any part leads to all; and since a part of another model, or yesterday's, has a name
as good as any, what they say is compared.

    paths_of(Path("m-00002-of-00003.gguf"), header.values)      # three paths, in order
    values = joined([header, second, third], paths)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def joined(headers: Sequence[Header], paths: Sequence[Path]) -> KeyValues:
    """The key-values of a model in parts, without those of the split.

    Raises `FileFormatError` for parts that are not of one model.
    """
    first, whole = headers[0].values, dict[str, Any]()
    entries, total = dict[str, bytes](), 0
    seen: dict[str, Path] = {}
    for number, (header, path) in enumerate(zip(headers, paths, strict=True)):
        values = header.values
        if _number(path, values, NO) != number or _number(path, values, COUNT) != len(paths):
            raise FileFormatError(
                f"{path} is part {_number(path, values, NO) + 1} of {_number(path, values, COUNT)} "
                f"by its key-values, and not part {number + 1} of {len(paths)}; fetch it again"
            )
        _compare(values, path, first, paths[0])
        for name in header.places:
            if name in seen:
                raise FileFormatError(f"tensor {name[:80]!r} is in {seen[name]} and in {path}")
            seen[name] = path
        more = [key for key in values if key not in whole and key not in KEYS]
        whole |= {key: values[key] for key in more}
        entries |= {key: values.encoded(key) for key in more}
        total += len(header.places)
    _check_total(first, paths[0], total)
    return KeyValues(whole, entries)


def _compare(values: KeyValues, path: Path, first: KeyValues, first_path: Path) -> None:
    """Raise unless two parts agree wherever both speak."""
    for key in values:
        if key != NO and key in first and values.encoded(key) != first.encoded(key):
            raise FileFormatError(
                f"{path} is a part of another model than {first_path}: they differ in "
                f"{key[:80]}; fetch all parts from one place"
            )


def _check_total(first: KeyValues, path: Path, total: int) -> None:
    if total > MAX_COUNTS["tensors"]:
        raise FileFormatError(f"{path}: its parts hold {total} tensors (at most {1 << 16})")
    expected = _number(path, first, TENSORS, total)
    if expected != total:
        raise FileFormatError(
            f"{path}: {TENSORS} is {expected}, and its parts hold {total}; fetch them again"
        )


def _number(path: Path, values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if type(value) is not int or not 0 <= value < 1 << 31:
        shown = repr(value)[:40] if isinstance(value, int | float | str) else type(value).__name__
        raise FileFormatError(f"{path}: {key} is {shown}; it must be a whole number, 0 or more")
    return value
