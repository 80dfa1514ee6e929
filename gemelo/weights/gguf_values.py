"""The key-values of a GGUF file: simple Python values to read, and how they are stored.

Whoever reads a number wants an int, and does not ask whether the file spent two bytes on it or
eight. Whoever copies a file must keep the two bytes. So the mapping that a reader gets has both:
values, and each entry as the file has it, to the bit. What replaces a value keeps its type where it
fits.

    values = GGUFFile("model.gguf").metadata
    values["gemma3.block_count"], values.encoded("gemma3.block_count")  # 26, b"\\x04\\0\\0..."
    values.changed({"gemma3.block_count": 24}, dropped=["general.license"])
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError
from gemelo.string_table import Strings

STRING, ARRAY = 8, 9
NUMBER_TYPES: dict[int, np.dtype[Any]] = {  # 7 is a bool in one byte
    code: np.dtype(name)
    for code, name in enumerate(
        ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "", "", "<u8", "<i8", "<f8")
    )
    if name
}
NUMBER_CODES = {dtype: code for code, dtype in NUMBER_TYPES.items()}
MAX_KEY_BYTES = 65535
_LISTS = (list, tuple, np.ndarray, Strings)


class KeyValues(Mapping[str, Any]):
    """Values by key, in order, and how the file has them.

    Numbers, strings and bools are Python's, arrays of numbers read-only numpy arrays, arrays of
    strings `Strings`, arrays of arrays tuples.
    """

    def __init__(self, values: Mapping[str, Any], entries: Mapping[str, bytes]) -> None:
        """entries: for some of the keys, the type and the value as they are stored."""
        self._values, self._entries = dict(values), dict(entries)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def encoded(self, key: str) -> bytes:
        """Type and value as they are stored."""
        entry = self._entries.get(key)
        return encoded(key, self._values[key]) if entry is None else entry

    def changed(self, changes: Mapping[str, Any], dropped: Iterable[str] = ()) -> KeyValues:
        """The same with other values, and without some; an entry that says the same stays."""
        gone = set(dropped)
        values = {key: value for key, value in self._values.items() if key not in gone}
        entries = {key: entry for key, entry in self._entries.items() if key not in gone}
        for key, value in changes.items():
            entry = entries.pop(key, None)
            if entry is not None:
                entries[key] = _as_before(key, value, values[key], entry)
            values[key] = value
        return KeyValues(values, entries)


def _as_before(key: str, value: Any, old: Any, entry: bytes) -> bytes:
    """A new value in the type of the old one if that holds it; else in the one it asks for."""
    kind, inner = (int.from_bytes(entry[start : start + 4], "little") for start in (0, 4))
    dtype = NUMBER_TYPES.get(inner if kind == ARRAY else kind)
    try:
        new = np.asarray(value)
        if dtype is None or (new.ndim == 1) != (kind == ARRAY):
            return entry if value == old else encoded(key, value)
        if (dtype == np.bool_) == (new.dtype == np.bool_) and new.dtype.kind in "biuf":
            with np.errstate(over="ignore", invalid="ignore"):
                kept = new.astype(dtype)
            wide = kept.astype(np.float64 if dtype.kind == "f" else new.dtype)
            if np.allclose(wide, new, rtol=1e-6) if dtype.kind == "f" else (wide == new).all():
                return encoded(key, kept[()])
    except (OverflowError, ValueError, TypeError):
        pass
    return encoded(key, value)


def encoded(key: str, value: Any) -> bytes:
    """A value as GGUF stores it, its type in front; `InputError` for what it cannot hold."""
    try:
        return _typed(value)
    except (ValueError, OverflowError, UnicodeEncodeError) as error:
        raise InputError(f"GGUF metadata cannot hold {key[:80]!r}: {error}") from None


def string(text: str | bytes) -> bytes:
    """A string with its length."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    if isinstance(value, str | bytes):
        return struct.pack("<I", STRING) + string(value)
    if isinstance(value, Strings) or _holds(value, str | bytes):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(string, value))
    if isinstance(value, tuple | list) and _holds(value, _LISTS):
        inner = [_typed(item) for item in value]  # each begins with the type of an array
        return struct.pack("<IIQ", ARRAY, ARRAY, len(value)) + b"".join(x[4:] for x in inner)
    array = _numbers(value)
    code = NUMBER_CODES.get(array.dtype.newbyteorder("<"))
    if code is None or array.ndim > 1:
        raise ValueError(f"{array.ndim}-dimensional {array.dtype}")
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    if array.ndim == 0:
        return struct.pack("<I", code) + raw
    return struct.pack("<IIQ", ARRAY, code, len(array)) + raw


def _holds(value: Any, kinds: Any) -> bool:
    """Whether a list is one of such things; ValueError if only some of it is."""
    if not isinstance(value, list | tuple):
        return False
    fits = [isinstance(item, kinds) for item in value]
    if any(fits) and not all(fits):
        raise ValueError("its items are of several kinds")
    return any(fits)


def _numbers(value: Any) -> NDArray[Any]:
    """Numbers as readers expect them: numpy keeps its type; an int is u32, a list i32 if it can."""
    if isinstance(value, np.generic | np.ndarray):
        return np.asarray(value)
    array = np.asarray(value)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
        return narrow if (np.isfinite(narrow) == np.isfinite(array)).all() else array
    if array.dtype.kind not in "iu":
        return array
    smallest, largest = int(array.min(initial=0)), int(array.max(initial=0))
    lists, scalars = (np.int32, np.int64, np.uint64), (np.uint32, np.int32, np.uint64, np.int64)
    choices = scalars if array.ndim == 0 else lists
    return array.astype(
        next(t for t in choices if np.iinfo(t).min <= smallest and largest <= np.iinfo(t).max)
    )
