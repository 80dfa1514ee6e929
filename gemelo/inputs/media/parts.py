"""Media parts of a message, and opening them: paths, bytes, data: URLs and open files.

A message's content is a text or a list of parts, in the words of OpenAI's or of Hugging Face's
clients. Parsing says what is there and opens nothing; `open_media` gives one part's bytes as a file
that can be read and sought. Nothing is ever fetched from a network: a remote URL is refused, a
data: URL is the file itself.

    parse_content([{"type": "image", "path": "cat.jpg"}, {"type": "text", "text": "Who is it?"}])
    # (MediaPart("image", "cat.jpg"), TextPart("Who is it?"))
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast, get_args

from gemelo.errors import GemeloError, InputError, UnsupportedError
from gemelo.extras import require
from gemelo.inputs.media.file_objects import Borrowed, Readable

if TYPE_CHECKING:  # the command line's help reads this module, and has no use for NumPy
    import numpy as np
    from numpy.typing import NDArray

Modality = Literal["image", "audio", "video"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
READERS: dict[Modality, tuple[str, ...]] = {  # packages that decode it
    "image": ("PIL",),
    "audio": ("av",),
    "video": ("av", "PIL"),
}
NOUNS: dict[Modality, str] = {"image": "picture", "audio": "recording", "video": "video"}

MAX_INLINE_BYTES = 64 << 20  # what a data: URL may hold
MAX_STREAM_BYTES = 1 << 30  # what is read from a pipe, which cannot be sought
REMOTE = ("http:", "https:", "ftp:", "ftps:", "s3:", "gs:", "hf:", "file:", "blob:")
SHOWN_CHARS = 60  # of a value in a message
PATH_CHARS = 200  # of a path
PIECE_BYTES = 1 << 20  # of an escaped text at a time
SPACES = b" \t\n\r\f\v"  # which base64 is folded with

# Open files that keep their word, and can be handed to a decoder as they are.
_KNOWN = (io.BytesIO, io.BufferedReader, io.BufferedRandom, Borrowed)


Source = str | Path | bytes | bytearray | memoryview | BinaryIO | Readable


@dataclass(frozen=True)
class TextPart:
    """Words, as they were said."""

    text: str


@dataclass(frozen=True)
class MediaPart:
    """A picture, a recording or a video; source: a path, bytes, an open file, or what is decoded.

    Decoded are a PIL image and an array of samples; the reader of the modality knows them.
    """

    modality: Modality
    source: Any


Part = TextPart | MediaPart


def parse_content(content: Any, *, allow_paths: bool = True) -> tuple[Part, ...]:
    """The parts of a message's content, in order; a text is one part.

    Understood are {"type": "text", "text": ...}; {"type": K, K: ...} with K one of image, audio,
    video, or with "path", "url" or "base64" in place of the second K; {"type": "K_url", "K_url":
    {"url": ...}}; {"type": "input_audio", "input_audio": {"data": ...}}; and a `Part`, which stays
    as it is. allow_paths: whether a part may name a file of this machine, which one that came over
    a network must not. Raises InputError for a part that says too little or too much,
    UnsupportedError for a remote URL.
    """
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, list | tuple) or not content:
        raise InputError(f"content is {_shown(content)}: give a text, or a list of parts")
    return tuple(_parse_part(f"part {n}", part, allow_paths) for n, part in enumerate(content))


def video_parts(frames: Sequence[tuple[str, Any]], sound: Any = None) -> tuple[Part, ...]:
    """A video as it stands in a prompt: each frame after its timestamp, the sound track at the end.

    frames: (timestamp, picture). Google's guide for Gemma gives a video as its frames in order,
    one a second, and then its sound; it names no times. The later processors of the family write
    the time of each frame as mm:ss before it, and so do we.
    """
    seen: list[Part] = []
    for timestamp, picture in frames:
        seen += [TextPart(timestamp), MediaPart("image", picture)]
    return (*seen, MediaPart("audio", sound)) if sound is not None else tuple(seen)


def require_readers(modality: Modality) -> None:
    """Raise MissingExtraError where what decodes a medium of this kind is not installed."""
    for package in READERS[modality]:
        require(package, "media", what=f"{NOUNS[modality]}s")


@contextmanager
def open_media(source: Source, modality: Modality) -> Iterator[BinaryIO]:
    """The bytes of a source as a file at its beginning, which can be sought.

    A path and a data: URL are opened and closed; an open file is borrowed. Raises InputError for
    what is missing, empty, no file or too large, UnsupportedError for a remote URL.
    """
    if isinstance(source, str):
        source = _resolve(source, f"the {NOUNS[modality]}", allow_paths=True)
    if isinstance(source, str | Path):
        with _open_path(Path(source), modality) as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        if not source:
            raise InputError(f"the {NOUNS[modality]} is empty: it has 0 bytes")
        yield io.BytesIO(source)
    elif isinstance(source, Readable) and not isinstance(source, io.TextIOBase):
        yield _sought(source, modality)
    else:
        raise InputError(
            f"{_shown(source)} is no {NOUNS[modality]}: give a path, bytes or a file opened in "
            "binary mode"
        )


def name_of(source: Any, modality: Modality) -> str:
    """How messages call a source: a path by itself, anything else by what it is."""
    if isinstance(source, str | Path) and not str(source).startswith("data:"):
        return _cut(str(source), PATH_CHARS)
    return f"the {NOUNS[modality]}"


# ---- parts ---------------------------------------------------------------------------------------


def _parse_part(where: str, part: Any, allow_paths: bool) -> Part:
    if isinstance(part, TextPart):
        return part
    if isinstance(part, MediaPart):
        return _checked_part(where, part, allow_paths)
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InputError(f'{where} is {_shown(part)}: give {{"type": "text" | "image" | ...}}')
    type = part["type"]
    if type == "text":
        if not isinstance(part.get("text"), str):
            raise InputError(f'{where} of type text has no "text" that is a string')
        return TextPart(part["text"])
    if type == "input_audio":
        return MediaPart("audio", _inline(where, part))
    modality = _checked_modality(where, type, type.removesuffix("_url"))
    key, source = _only_source(where, part, modality)
    if key == "base64":
        return MediaPart(modality, _decode_base64(where, source))
    return MediaPart(modality, _checked_source(where, source, allow_paths))


def _checked_part(where: str, part: MediaPart, allow_paths: bool) -> MediaPart:
    """A part that is one already; a data: URL in it becomes its bytes."""
    _checked_modality(where, part.modality, part.modality)
    if part.source is None or (isinstance(part.source, str) and not part.source):
        raise InputError(f"{where} has no {NOUNS[part.modality]}: its source is empty")
    source = _checked_source(where, part.source, allow_paths)
    return part if source is part.source else replace(part, source=source)


def _checked_modality(where: str, type: Any, modality: Any) -> Modality:
    if modality not in MODALITIES:
        raise InputError(f"{where} has type {_shown(type)}: use text, image, audio or video")
    return cast(Modality, modality)


def _checked_source(where: str, source: Any, allow_paths: bool) -> Any:
    """A source as it is, a data: URL as its bytes, if it may be read at all."""
    if isinstance(source, str):
        source = _resolve(source, where, allow_paths)
    if isinstance(source, str | Path) and not allow_paths:
        raise UnsupportedError(f"{where} names a file: send its content as a data: URL")
    return source


def _only_source(where: str, part: Mapping[str, Any], modality: Modality) -> tuple[str, Any]:
    """The one member of a part that says where its content is."""
    wanted = (
        (f"{modality}_url",)
        if part["type"].endswith("_url")
        else (modality, "path", "url", "base64")
    )
    given = [key for key in wanted if part.get(key) is not None]
    if len(given) != 1:
        have = " and ".join(given) or "nothing"
        raise InputError(
            f"{where} of type {part['type']} gives {have} for its {NOUNS[modality]}: "
            f"give one of {', '.join(wanted)}"
        )
    value = part[given[0]]
    if isinstance(value, Mapping):
        value = value.get("url")
    if value is None or (isinstance(value, str) and not value):
        raise InputError(
            f"{where} of type {part['type']} has no {NOUNS[modality]}: its url is empty"
        )
    return given[0], value


def _inline(where: str, part: Mapping[str, Any]) -> bytes:
    """OpenAI's input_audio; its format is not needed, the bytes say it."""
    content = part.get("input_audio")
    if not isinstance(content, Mapping) or content.get("data") is None:
        raise InputError(f'{where} of type input_audio needs {{"input_audio": {{"data": ...}}}}')
    return _decode_base64(where, content["data"])


# ---- sources -------------------------------------------------------------------------------------


def _resolve(text: str, where: str, allow_paths: bool) -> str | bytes:
    """The bytes of a data: URL, or the path as it is."""
    if text[:5].lower() == "data:":
        return _decode_data_url(where, text)
    if text.lower().startswith(REMOTE):
        cure = "download it and give its path" if allow_paths else "send it as a data: URL"
        if text.lower().startswith("file:"):
            cure = "give the path itself"
        raise UnsupportedError(f"{where} is at {_cut(text)}: URLs are not fetched; {cure}")
    return text


def _decode_data_url(where: str, url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise InputError(f"{where} has the data: URL {_cut(url)}, without a comma and its content")
    if head.lower().endswith(";base64"):
        return _decode_base64(where, body)
    _check_inline(where, len(body))
    return _unescaped(body.encode("utf-8", "surrogatepass"))


def _unescaped(text: bytes) -> bytes:
    """Every %XX as its byte, piece by piece: a table of all of them would be a hundred times as
    large as the text."""
    import numpy as np

    digits = [b"0123456789abcdef".find(bytes([byte]).lower()) for byte in range(256)]
    values = np.array(digits, np.int16)  # of bytes as digits; below 0 for those that are none
    content = bytearray()
    offset = 0
    while offset < len(text):
        piece = text[offset : offset + PIECE_BYTES]
        cut = piece.rfind(b"%", len(piece) - 2) if offset + len(piece) < len(text) else -1
        piece = piece[:cut] if cut > 0 else piece
        content += _unescaped_piece(np.frombuffer(piece, np.uint8), values)
        offset += len(piece)
    return bytes(content)


def _unescaped_piece(text: NDArray[np.uint8], values: NDArray[np.int16]) -> bytes:
    import numpy as np

    escapes = np.flatnonzero(text[:-2] == ord("%"))
    high, low = values[text[escapes + 1]], values[text[escapes + 2]]
    right = (high >= 0) & (low >= 0)
    escapes = escapes[right]
    text, stays = text.copy(), np.ones(len(text), bool)
    text[escapes] = high[right] * 16 + low[right]
    stays[escapes + 1] = stays[escapes + 2] = False
    return text[stays].tobytes()


def _decode_base64(where: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise InputError(f"{where} has {_shown(text)} where base64 text is expected")
    _check_inline(where, len(text) // 4 * 3)
    try:
        return base64.b64decode(text.encode("ascii").translate(None, SPACES), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{where} has content that is not base64: {_cut(text)}") from None


def _check_inline(where: str, size_bytes: int) -> None:
    if size_bytes > MAX_INLINE_BYTES:
        raise InputError(
            f"{where} holds {size_bytes:,} bytes: the limit of a data: URL is "
            f"{MAX_INLINE_BYTES:,}; give a file"
        )


def _open_path(path: Path, modality: Modality) -> BinaryIO:
    name = name_of(path, modality)
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            reason = "it is not a file" if path.exists() else "no such file"
            raise InputError(f"cannot read {name}: {reason}")
        if path.stat().st_size == 0:
            raise InputError(f"{name} is empty: it has 0 bytes, and no {NOUNS[modality]}")
        return path.open("rb")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {name}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None


def _sought(file: Readable, modality: Modality) -> BinaryIO:
    """The file at its beginning; what comes through a pipe is read whole."""
    lent = file if type(file) in _KNOWN else Borrowed(file, NOUNS[modality])
    try:
        if file.seekable():
            lent.seek(0)
            return cast(BinaryIO, lent)
        content = Borrowed(file, NOUNS[modality]).read(MAX_STREAM_BYTES + 1)
    except GemeloError:
        raise
    except Exception as error:  # of any kind: the object is the caller's
        reason = str(error) or type(error).__name__
        raise InputError(f"the {NOUNS[modality]} cannot be read: {reason}") from None
    if not content or len(content) > MAX_STREAM_BYTES:
        size = f"more than {MAX_STREAM_BYTES:,}" if content else "0"
        raise InputError(f"the {NOUNS[modality]} has {size} bytes: give one of 1 to that many")
    return io.BytesIO(content)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return _cut(repr(value[: 4 * SHOWN_CHARS]))
    return _cut(repr(value) if isinstance(value, int | float | None) else _kind_of(value))


def _kind_of(value: Any) -> str:
    return f"an object of type {type(value).__name__}"


def _cut(text: str, limit: int = SHOWN_CHARS) -> str:
    """One line of a length that fits into one."""
    start = text[: 4 * limit]  # of a text of any length
    line = " ".join(start.split())
    return line if len(line) <= limit and start == text else f"{line[:limit]}..."
