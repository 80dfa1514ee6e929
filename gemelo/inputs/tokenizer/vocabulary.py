"""Tokenizer vocabulary: pieces, scores, types.

A `Vocabulary` is a value that every container is read into and written from: the key-values of a
GGUF file here, a tokenizer.model in `sentencepiece_file`, a tokenizer.json in `tokenizer_json`. It
differs from a list of strings by holding all pieces in one run of bytes with numpy arrays beside
it, so that 262,144 of them are checked, retyped and rewritten in milliseconds, and a piece becomes
a Python string only when somebody asks for it.

Containers disagree about which pieces are control strings (one writes `<start_of_turn>` as a normal
piece, another `<start_of_image>` as text). Here the name decides: see `CONTROL_NAME`. A control
string is an instruction to the model and is never found in text that was not meant to carry any.

    vocabulary = Vocabulary.from_gguf(metadata); vocabulary.piece(2)   # '<bos>'
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.inputs.tokenizer.added_tokens import SPACE, AddedToken, check_all
from gemelo.string_table import Strings

# The types of pieces, with the numbers that both GGUF and SentencePiece give them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

CONTROL_NAME = re.compile(
    r"<(?:pad|eos|bos|unk|mask|unused\d+|(?:start|end)_of_(?:turn|image|audio)"
    r"|(?:image|audio|video)_soft_token|\|[\w-]{1,40}\|)>"  # <|im_start|> and its kin
)
# Placeholder tokens of images and audio: they are placed, never read from text.
PLACEHOLDER = re.compile(r"<(?:image|audio|video)_soft_token>")

MAX_PIECE_BYTES = 4096
MAX_PIECES = 1 << 19
MAX_GAP = 65_536  # ids without a piece, at most


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Pieces in id order. V = number of pieces.

    text: the pieces in UTF-8, spaces as U+2581, each one closed by a NUL; ends: (V,) where those
    NULs are; scores: (V,) float32, the higher the sooner two neighbours merge into that piece;
    types: (V,) uint8, one of the types above. An id is None when the vocabulary has no such piece.
    """

    text: bytes
    ends: NDArray[np.int64]
    scores: NDArray[np.float32]
    types: NDArray[np.uint8]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[Any],
        scores: NDArray[Any],
        types: NDArray[Any],
        ids: Mapping[str, int] | None = None,
    ) -> Self:
        """Check and hold `pieces`: all str, all bytes, or `Strings`.

        `ids` says where "bos", "eos", "unk" and "pad" are when no piece has that name.

        Raises FileFormatError for pieces that are not text, empty, too long or too many, for
        unknown types, scores that are not numbers, an incomplete set of bytes, or an id out of
        range.
        """
        text = _join(pieces)
        marks = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(marks == 0).astype(np.int64)
        _check_shapes(len(pieces), ends, scores, types)
        piece_types = types.astype(np.uint8)
        _promote_controls(text, ends, piece_types)
        known_ids = _named_ids(text, ends, piece_types)
        for name, id in (ids or {}).items():
            if not 0 <= id < len(ends):
                raise FileFormatError(f"the {name} id {id} is outside the {len(ends)} pieces")
            known_ids.setdefault(name, id)
        vocabulary = cls(
            text,
            ends,
            scores.astype(np.float32, copy=False),
            piece_types,
            *(known_ids.get(name) for name in ("bos", "eos", "unk", "pad")),
        )
        vocabulary._check_bytes()
        return vocabulary

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """The vocabulary among a GGUF file's key-values.

        Raises UnsupportedError for a vocabulary that is not SentencePiece's, FileFormatError for
        keys that are missing or do not agree.
        """
        model = metadata.get("tokenizer.ggml.model")
        if not isinstance(model, str) or model != "llama":
            raise UnsupportedError(
                f"tokenizer.ggml.model is {model!r:.60}: only 'llama' (SentencePiece) can be read"
            )
        # Old files leave this key out; Gemma never has a leading space.
        prefix = metadata.get("tokenizer.ggml.add_space_prefix")
        if prefix is not None and not (isinstance(prefix, bool | np.bool_) and not prefix):
            raise UnsupportedError(
                f"tokenizer.ggml.add_space_prefix is {prefix!r:.60}: text is read without a "
                "leading space, as Gemma's is; set it to false if the model is a Gemma"
            )
        ids = {
            name: _read_id(metadata[key], key)
            for name, key in _GGUF_IDS.items()
            if metadata.get(key) is not None
        }
        return cls.from_pieces(
            _required(metadata, "tokenizer.ggml.tokens"),
            _numbers(metadata, "tokenizer.ggml.scores"),
            _numbers(metadata, "tokenizer.ggml.token_type"),
            ids,
        )

    def to_gguf(self) -> dict[str, Any]:
        """GGUF key-values: pieces as a list of str, (V,) float32 scores, (V,) int32 types, ids."""
        pieces = self.text.decode().split("\0")[:-1]
        for id in np.flatnonzero(self.types == USER_DEFINED).tolist():
            pieces[id] = pieces[id].replace(SPACE, " ")  # runs of spaces are matched in raw text
        written = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": self.scores,
            "tokenizer.ggml.token_type": self.types.astype(np.int32),
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": False,
            "tokenizer.ggml.add_space_prefix": False,
        }
        ids = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        return written | {_GGUF_IDS[name]: id for name, id in ids.items() if id is not None}

    def __len__(self) -> int:
        return len(self.ends)

    def piece(self, id: int) -> str:
        """How piece `id` is written, spaces as U+2581; `id` must be in range."""
        return self._bytes(id).decode()

    def surface(self, id: int) -> bytes:
        """The bytes that piece `id` stands for in text: a byte piece is that byte."""
        written = self._bytes(id)
        if self.types[id] == BYTE:
            return bytes((int(written[3:5], 16),))
        return written.replace(_SPACE_BYTES, b" ")

    def find(self, name: str) -> int | None:
        """The id of the first piece written `name`, or None."""
        return _find(self.text, self.ends, name.replace(" ", SPACE))

    def with_added(self, strings: Iterable[AddedToken]) -> Self:
        """The same with some strings put in the place that their ids give, or added behind.

        Raises FileFormatError for an id far behind the last piece.
        """
        added = list(strings)
        if not added:
            return self
        size = max(len(self), *(string.id + 1 for string in added))
        if size > len(self) + len(added) + MAX_GAP:
            raise FileFormatError(
                f"an added token has id {size - 1} behind {len(self)} pieces: at most {MAX_GAP} "
                "ids may have none"
            )
        spare = size - len(self)
        pieces = self.text.decode().split("\0")[:-1]
        pieces += [f"[PAD{id}]" for id in range(len(pieces), size)]
        scores = np.append(self.scores, np.zeros(spare, np.float32))
        types = np.append(self.types, np.full(spare, UNUSED, np.uint8))
        for string in added:
            pieces[string.id] = string.content
            if types[string.id] != UNKNOWN:
                types[string.id] = CONTROL if string.special else USER_DEFINED
        ids = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        known = {name: id for name, id in ids.items() if id is not None}
        return self.from_pieces(pieces, scores, types, known)

    def with_controls(self, ids: Iterable[int | None]) -> "Vocabulary":
        """The same, where those of `ids` that are found in text as a whole are control strings."""
        types = self.types.copy()
        present = [id for id in ids if id is not None and types[id] == USER_DEFINED]
        types[present] = CONTROL
        return replace(self, types=types) if present else self

    def check_duplicates(self) -> None:
        """Raises FileFormatError, with both ids, where a piece is there twice."""
        seen: dict[bytes, int] = {}
        for id in range(len(self)):
            if (first := seen.setdefault(self._bytes(id), id)) != id:
                raise FileFormatError(
                    f"the vocabulary has the piece {self.piece(id)!r:.60} twice, as ids {first} "
                    f"and {id}: give one of them another name in the file that it was made from"
                )

    @cached_property
    def controls(self) -> dict[str, int]:
        """Every control string and its id."""
        ids = np.flatnonzero((self.types == CONTROL) | (self.types == UNKNOWN)).tolist()
        return {self.piece(id): id for id in ids}

    def _bytes(self, id: int) -> bytes:
        start = int(self.ends[id - 1]) + 1 if id else 0
        return self.text[start : int(self.ends[id])]

    def _check_bytes(self) -> None:
        ids = np.flatnonzero(self.types == BYTE).tolist()
        names = {self._bytes(id) for id in ids}
        if ids and names != {b"<0x%02X>" % value for value in range(256)}:
            raise FileFormatError(f"{len(ids)} byte pieces: need <0x00> to <0xFF>, each one once")


def gguf_id(metadata: Mapping[str, Any], key: str, limit: int) -> int | None:
    """The id that a GGUF file gives as `key`, if it gives one."""
    name = f"tokenizer.ggml.{key}_token_id"
    if metadata.get(name) is None:
        return None
    id = _read_id(metadata[name], name)
    if not 0 <= id < limit:
        raise FileFormatError(f"{name} is {id}: not one of the {limit} pieces")
    return id


def gguf_flag(metadata: Mapping[str, Any], key: str) -> bool | None:
    """What a GGUF file says of `key`, if it says it. Raises FileFormatError for no boolean."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is not None and not isinstance(value, bool | np.bool_):
        raise FileFormatError(f"tokenizer.ggml.{key} is {value!r:.60}: expected a boolean")
    return None if value is None else bool(value)


def _read_id(value: Any, key: str) -> int:
    """A token id that a file gives as `key`. Raises FileFormatError for what is no whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        type_name = type(value).__name__
        shown = (
            f"{value!r:.60}" if isinstance(value, str | float | bool) else f"of type {type_name}"
        )
        raise FileFormatError(f"{key} is {shown}: not a token id, which is a whole number")
    return int(value)


_SPACE_BYTES = SPACE.encode()
_MAX_SCORE = float(np.finfo(np.float32).max)
_GGUF_IDS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}


def _join(pieces: Sequence[Any]) -> bytes:
    """All pieces as checked UTF-8, each one closed by a NUL."""
    if not isinstance(pieces, Sequence) or not 0 < len(pieces) <= MAX_PIECES:
        raise FileFormatError(f"the vocabulary is not a list of 1 to {MAX_PIECES} pieces")
    try:
        if isinstance(pieces, Strings):
            text = pieces.text
            text.decode()
        elif isinstance(pieces[0], bytes):
            text = b"\0".join(pieces) + b"\0"
            text.decode()
        else:
            text = ("\0".join(pieces) + "\0").encode()
    except (TypeError, UnicodeError) as error:
        raise FileFormatError(f"a piece of the vocabulary is not text: {error}") from None
    return text.replace(b" ", _SPACE_BYTES)


def _check_shapes(
    num_pieces: int, ends: NDArray[np.int64], scores: NDArray[Any], types: NDArray[Any]
) -> None:
    if len(ends) != num_pieces:
        raise FileFormatError("a piece of the vocabulary contains a NUL character")
    lengths = np.diff(ends, prepend=-1) - 1
    if int(lengths.min()) < 1 or int(lengths.max()) > MAX_PIECE_BYTES:
        id = int(lengths.argmin() if lengths.min() < 1 else lengths.argmax())
        raise FileFormatError(
            f"piece {id} has {lengths[id]} bytes: a piece has 1 to {MAX_PIECE_BYTES}"
        )
    if scores.shape != (num_pieces,) or types.shape != (num_pieces,):
        raise FileFormatError(
            f"{num_pieces} pieces, scores {scores.shape}, types {types.shape}: need one of each"
        )
    if scores.dtype.kind not in "fiu" or not (np.abs(scores) <= _MAX_SCORE).all():
        raise FileFormatError("a score of the vocabulary is not a number that float32 can hold")
    if types.dtype.kind not in "iu" or types.min() < NORMAL or types.max() > BYTE:
        raise FileFormatError(f"a type of the vocabulary is outside {NORMAL} to {BYTE}")
    check_all(int(lengths[types == USER_DEFINED].sum()))


def _promote_controls(text: bytes, ends: NDArray[np.int64], types: NDArray[np.uint8]) -> None:
    """Mark as control, in `types`, the pieces whose name says so, whatever their container said."""
    marks = np.frombuffer(text, np.uint8)
    starts = np.concatenate(([0], ends[:-1] + 1))
    looks = (marks[starts] == ord("<")) & (marks[ends - 1] == ord(">"))
    looks &= (types == NORMAL) | (types == USER_DEFINED) | (types == UNUSED)
    for id in np.flatnonzero(looks).tolist():
        if CONTROL_NAME.fullmatch(text[starts[id] : ends[id]].decode()):
            types[id] = CONTROL


def _named_ids(text: bytes, ends: NDArray[np.int64], types: NDArray[np.uint8]) -> dict[str, int]:
    """Where <bos>, <eos>, <unk> and <pad> are, by name; a name is better evidence than a key."""
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad"):
        id = _find(text, ends, f"<{name}>")
        if id is not None and types[id] in (CONTROL, UNKNOWN):
            ids[name] = id
    return ids


def _find(text: bytes, ends: NDArray[np.int64], name: str) -> int | None:
    """The id of the first piece with this name."""
    wanted = name.encode(errors="replace") + b"\0"
    if text.startswith(wanted):
        return 0
    position = text.find(b"\0" + wanted)
    return None if position < 0 else int(np.searchsorted(ends, position + 1))


def _required(metadata: Mapping[str, Any], key: str) -> Any:
    if metadata.get(key) is None:
        raise FileFormatError(f"{key} is missing: this GGUF file has no usable vocabulary")
    return metadata[key]


def _numbers(metadata: Mapping[str, Any], key: str) -> NDArray[Any]:
    values = _required(metadata, key)
    try:
        return np.asarray(values)
    except (TypeError, ValueError, OverflowError):
        raise FileFormatError(f"{key} is not a list of numbers") from None
