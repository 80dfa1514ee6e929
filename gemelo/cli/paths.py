"""File names as people type or drop them: quoted, escaped, as file:// URLs, several at once.

A terminal that a file is dropped on types its path, quoted as a shell needs it or as a URL. A name
that is there exactly as it was typed is that file, spaces included. What is none of this stays as
it is, so that an error names what was typed.

    typed_paths("'/a b/cat.png' /c/d\\\\ e.png")   # ["/a b/cat.png", "/c/d e.png"]
"""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from gemelo.checkpoints.locate import expanded
from gemelo.errors import InputError
from gemelo.inputs.media.parts import Modality

_KINDS: dict[Modality, str] = {  # by how the names of files end
    "image": "png jpg jpeg webp gif bmp tif tiff heic avif",
    "audio": "wav mp3 flac ogg opus m4a aac",
    "video": "mp4 mov mkv webm avi m4v",
}
# A word of a shell. Quotes count where they begin one, and not in "don't".
_ESCAPED = r"\\." if os.name == "posix" else r"(?!)"  # elsewhere \ parts folders
_QUOTED = rf"""'[^']*'|"[^"]*"|{_ESCAPED}"""
_WORD = re.compile(rf"""(?:{_QUOTED})(?:{_QUOTED}|[^\s'"])*|(?:{_ESCAPED}|\S)+""", re.DOTALL)
_PIECE = re.compile(rf"""{_QUOTED}|[^'"\\]+|.""", re.DOTALL)
_MOST_WORDS, _MOST_TEXT = 500, 20_000  # of a message that are looked at: words, characters
_MOST_CHARS = 4096  # of a path


def typed_paths(text: str) -> list[str]:
    """The file names in what was typed behind a command; one at least, if there is any text."""
    whole = text.strip()
    if exists(local := _local(whole)):
        return [local]
    raw = _shell_words(whole)
    words = [_plain(word) for word in raw]
    if len(words) > 1 and words == raw and not _all_exist(words):
        return [whole]  # of one name with spaces, which is not there
    return words


def typed_path(text: str) -> str:
    """The one file name that was typed, which may have spaces."""
    names = typed_paths(text)
    return names[0] if len(names) == 1 else text.strip()


def exists(name: str) -> bool:
    """Whether there is a file of this name; one that cannot be asked for is not there."""
    try:
        return 0 < len(name) <= _MOST_CHARS and expanded(name).is_file()
    except (OSError, ValueError, InputError):
        return False


def media_in(text: str) -> list[tuple[Modality, str]]:
    """Pictures, recordings and videos of this machine that a message names, and of which kind."""
    whole = typed_paths(text) if len(text) <= _MOST_CHARS else []
    parted = map(_plain, _shell_words(text[:_MOST_TEXT]))
    names = whole if _all_exist(whole) else list(parted)
    found = []
    for name in names[:_MOST_WORDS]:
        kind = _kind(name) or _kind(name := name.rstrip(".,;:!?)"))
        if kind and exists(name):
            found.append((kind, name))
    return found


def _kind(name: str) -> Modality | None:
    ending = Path(name[-16:]).suffix[1:].lower()
    return next((kind for kind, endings in _KINDS.items() if ending in endings.split()), None)


def _all_exist(names: list[str]) -> bool:
    return bool(names) and all(map(exists, names))


def _shell_words(text: str) -> list[str]:
    """The first words as a shell parts them, as they are."""
    found = islice(_WORD.finditer(text), _MOST_WORDS)
    return [match[0] for match in found]


def _plain(word: str) -> str:
    """A word without its quotes and escapes; of a URL the path."""
    if len(word) > 2 * _MOST_CHARS:
        return word
    pieces = [match[0] for match in _PIECE.finditer(word)]
    if word[0] in "'\"":
        pieces = [piece[1:-1] if piece[0] in "'\"" and piece[1:] else piece for piece in pieces]
    return _local("".join(piece[1:] if _is_escape(piece) else piece for piece in pieces))


def _is_escape(piece: str) -> bool:
    return len(piece) == 2 and re.fullmatch(_ESCAPED, piece, re.DOTALL) is not None


def _local(name: str) -> str:
    """The path that a file:// URL means, and any other name as it is."""
    if not name.startswith("file://"):
        return name
    path = unquote(name.removeprefix("file://").removeprefix("localhost"))
    return path if os.name == "posix" else path.lstrip("/")
