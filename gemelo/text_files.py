"""Small files of text: JSON, TOML and templates, read whole and within a size.

A model's directory, a sub-model's description and a saved conversation come from anywhere. A path
that is a pipe would be waited for, a device never ends, a file of gigabytes fills memory: all three
are refused before anything is read. A byte order mark, which editors on Windows leave,
is no part of the text.

    config = read_object(Path("config.json"))
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from gemelo.errors import FileFormatError, InputError

MAX_OBJECT_BYTES = 4 << 20  # honest config files have kilobytes
LFS_POINTER = b"version https://git-lfs"  # is in the place of every file that was not fetched
NOT_FETCHED = "a pointer of Git LFS and not the file; run `git lfs pull`"


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file of at most `most_bytes`.

    Raises `InputError` for what is no file or cannot be read, `FileFormatError` for one that is
    too large, or has yet to be fetched.
    """
    try:
        content = _beginning(path, most_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise InputError(f"cannot read {path}: {error}") from None
    if content is None:
        raise InputError(f"cannot read {path}: it is not a regular file")
    if content.startswith(LFS_POINTER):
        raise FileFormatError(f"{path} is {NOT_FETCHED}")
    if len(content) > most_bytes:
        raise FileFormatError(
            f"{path} is larger than {most_bytes:,} bytes, the limit of such a file"
        )
    return content


def _beginning(path: Path, count: int) -> bytes | None:
    """The first bytes of a regular file; None of anything else."""
    # A pipe opened for reading would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(count)
    finally:
        os.close(descriptor)


def read_text(path: Path, most_bytes: int) -> str:
    """The same as text: UTF-8, without a byte order mark."""
    try:
        return read_bytes(path, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at position "
            f"{error.start}; convert it first, for example with iconv"
        ) from None


def read_object(path: Path, most_bytes: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """The object in a JSON file, or in a TOML file if its name says so."""
    text = read_text(path, most_bytes)
    return parse_table(text, str(path)) if path.suffix == ".toml" else parse_object(text, str(path))


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object; `where` names the text in an error."""
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise FileFormatError(f"{where}: expected a JSON object")
    return value


def parse_json(text: str, where: str) -> Any:
    """Any JSON value. Nesting beyond what Python follows is an error too, not the end of it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where}: not readable as JSON: {error}") from None


def parse_table(text: str, where: str) -> dict[str, Any]:
    """A TOML document."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where}: not readable as TOML: {error}") from None
