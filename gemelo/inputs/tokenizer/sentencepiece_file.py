"""The tokenizer.model file: a vocabulary as SentencePiece's protobuf, read and written.

The container is one protocol-buffer message: 262,144 small records (piece, score, type), then two
short ones (how it was trained, how text is normalised). Records are laid out and taken apart with
numpy, not one object per piece, which takes hundredths of a second where a protocol-buffer library
takes whole ones. Nothing of a file reaches the SentencePiece library as it came: the message that
library loads is always the one written here, from checked values.

    vocabulary = unpack_model(Path("tokenizer.model").read_bytes()); pack_model(vocabulary)
"""

from array import array
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.inputs.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    MAX_PIECES,
    NORMAL,
    UNKNOWN,
    Vocabulary,
)

MAX_MODEL_BYTES = 16 << 20  # Gemma's has 4.5 MiB
MAX_BLOCK_BYTES = 1 << 20  # of a block that is no piece, and of all pieces that are read singly
MAX_BLOCKS = 64

# Wire types and the field numbers of sentencepiece_model.proto that matter here.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_BLOCKS = (_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER)
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _VOCAB_SIZE, _SPACE_SUFFIX, _BYTE_FALLBACK = 3, 4, 24, 35
_ID_FIELDS = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
_NAME_FIELDS = {"unk": 45, "bos": 46, "eos": 47, "pad": 48}
_NAME, _CHARSMAP, _DUMMY_PREFIX, _TRIM_SPACES, _ESCAPE_SPACES = 1, 2, 3, 4, 5
_BPE = 2

_PIECE_TAG, _SCORE_TAG, _TYPE_TAG = 0x0A, 0x15, 0x18
_TAIL = np.dtype([("score_tag", "u1"), ("score", "<f4"), ("type_tag", "u1"), ("type", "u1")])
_TEXT_BYTES = 12  # at most one more than lie between two pieces' texts: a tail, two tags, two sizes


def pack_model(vocabulary: Vocabulary) -> bytes:
    """The bytes of a tokenizer.model that holds `vocabulary`.

    Raises FileFormatError where there is no unknown piece, which the container cannot do without.
    """
    if vocabulary.unk_id is None:
        raise FileFormatError("the vocabulary has no <unk> piece: SentencePiece needs one")
    return _pack_pieces(vocabulary) + _pack_trainer(vocabulary) + _pack_normalizer()


def unpack_model(message: bytes) -> Vocabulary:
    """The vocabulary in the bytes of a tokenizer.model.

    Raises FileFormatError for bytes that are no such message, UnsupportedError for one that Gemma's
    rules cannot read: not BPE, or text that is normalised, trimmed or given a leading space.
    """
    starts, ends, specs = _walk(message)
    pieces, scores, types = _unpack_pieces(message, starts, ends)
    trainer = _Record.read(specs.get(_TRAINER, b""), "trainer_spec")
    normalizer = _Record.read(specs.get(_NORMALIZER, b""), "normalizer_spec")
    denormalizer = _Record.read(specs.get(_DENORMALIZER, b""), "denormalizer_spec")
    _check_rules(trainer, normalizer, denormalizer, bool((types == BYTE).any()))
    ids = {name: trainer.number(field, -1) for name, field in _ID_FIELDS.items()}
    return Vocabulary.from_pieces(
        pieces, scores, types, {name: id for name, id in ids.items() if id >= 0}
    )


def _pack_pieces(vocabulary: Vocabulary) -> bytes:
    """Every piece as 0A size (0A length text, 15 score, 18 type), written column by column."""
    lengths = np.diff(vocabulary.ends, prepend=-1) - 1  # (V,)
    sizes = 1 + _varint_width(lengths) + lengths + _TAIL.itemsize
    record_ends = np.cumsum(1 + _varint_width(sizes) + sizes)
    tails = record_ends - _TAIL.itemsize
    message = np.empty(int(record_ends[-1]) + _TEXT_BYTES, np.uint8)

    text = np.frombuffer(vocabulary.text + bytes(_TEXT_BYTES), np.uint8)
    _copy_texts(text, vocabulary.ends - lengths, message, tails - lengths, lengths)
    _windows(message, _TAIL.itemsize)[tails] = _tails(vocabulary)
    offsets = np.concatenate(([0], record_ends[:-1]))
    message[offsets] = _PIECE_TAG
    offsets = _put_varint(message, offsets + 1, sizes)
    message[offsets] = _PIECE_TAG
    _put_varint(message, offsets + 1, lengths)
    return message[: record_ends[-1]].tobytes()


def _copy_texts(
    text: NDArray[np.uint8],
    starts: NDArray[np.int64],
    message: NDArray[np.uint8],
    bodies: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """Copy pieces from `starts` to `bodies`, some bytes at a time of all pieces that have them.

    What is copied beyond the end of a piece falls on tags and numbers, which are written later.
    """
    source, target = _windows(text, _TEXT_BYTES), _windows(message, _TEXT_BYTES)
    for done in range(0, int(lengths.max()), _TEXT_BYTES):
        if done:
            longer = lengths > done
            starts, bodies, lengths = starts[longer], bodies[longer], lengths[longer]
        target[bodies + done] = source[starts + done]


def _tails(vocabulary: Vocabulary) -> NDArray[np.void]:
    """What follows the text of every piece, (V,)."""
    tails = np.empty(len(vocabulary), _TAIL)
    tails["score_tag"], tails["type_tag"] = _SCORE_TAG, _TYPE_TAG
    tails["score"] = vocabulary.scores
    # The library insists on exactly one piece of type unknown; GGUF files call it control.
    tails["type"] = np.where(vocabulary.types == UNKNOWN, CONTROL, vocabulary.types)
    tails["type"][vocabulary.unk_id] = UNKNOWN
    return tails.view(f"V{_TAIL.itemsize}")


def _windows(memory: NDArray[np.uint8], width: int) -> NDArray[np.void]:
    """The `width` bytes from every place of some memory on, as one value each: a view."""
    return np.ndarray((len(memory) - width + 1,), f"V{width}", memory, strides=(1,))


def _varint_width(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return 1 + (values > 0x7F).astype(np.int64)  # pieces are short: two bytes are enough


def _put_varint(
    message: NDArray[np.uint8], offsets: NDArray[np.int64], values: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Write `values` at `offsets` (each below 2**14); returns where the next field goes."""
    long = values > 0x7F
    message[offsets] = np.where(long, values & 0x7F | 0x80, values)
    message[offsets[long] + 1] = values[long] >> 7
    return offsets + 1 + long


def _pack_trainer(vocabulary: Vocabulary) -> bytes:
    ids = {
        "unk": vocabulary.unk_id,
        "bos": vocabulary.bos_id,
        "eos": vocabulary.eos_id,
        "pad": vocabulary.pad_id,
    }
    spec = _varint(_MODEL_TYPE, _BPE) + _varint(_VOCAB_SIZE, len(vocabulary))
    spec += _varint(_BYTE_FALLBACK, int((vocabulary.types == BYTE).any()))
    for name, id in ids.items():
        spec += _varint(_ID_FIELDS[name], -1 if id is None else id)
        if id is not None:
            spec += _block(_NAME_FIELDS[name], vocabulary.piece(id).encode())
    return _block(_TRAINER, spec)


def _pack_normalizer() -> bytes:
    """Text is taken as it is; a space becomes U+2581 and nothing is added or trimmed."""
    spec = _block(_NAME, b"identity") + _varint(_DUMMY_PREFIX, 0)
    return _block(_NORMALIZER, spec + _varint(_TRIM_SPACES, 0) + _varint(_ESCAPE_SPACES, 1))


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3 | _VARINT) + _number(value & (1 << 64) - 1)


def _block(field: int, body: bytes) -> bytes:
    return _number(field << 3 | _BYTES) + _number(len(body)) + body


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _walk(message: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, bytes]]:
    """(V,) starts and (V,) ends of the piece records; field -> the bytes of the other blocks."""
    starts, ends = array("q"), array("q")
    specs: dict[int, list[bytes]] = {}
    offset, end = 0, len(message)
    while offset < end:
        # Almost every record is a piece below 128 bytes: one comparison, no function call.
        if message[offset] == _PIECE_TAG and offset + 1 < end and message[offset + 1] < 0x80:
            start, offset = offset + 2, offset + 2 + message[offset + 1]
        else:
            field, wire, value, offset = _field(message, offset, end)
            if field in _BLOCKS and wire != _BYTES:
                raise FileFormatError(f"not a tokenizer.model: field {field} has wire type {wire}")
            if field != _PIECES:
                parts = specs.setdefault(field, [])
                parts.append(value if isinstance(value, bytes) else b"")
                if len(parts) > MAX_BLOCKS or len(specs) > MAX_BLOCKS:
                    raise FileFormatError(f"tokenizer.model: more than {MAX_BLOCKS} blocks")
                continue
            start = offset - len(value)
        starts.append(start)
        ends.append(offset)
        if len(starts) > MAX_PIECES:
            raise FileFormatError(f"tokenizer.model has more than {MAX_PIECES} pieces")
    if offset != end or not starts:
        raise FileFormatError(f"not a tokenizer.model: {len(starts)} pieces in {end} bytes")
    joined = {field: b"".join(parts) for field, parts in specs.items()}  # parts of one block
    return np.array(starts, np.int64), np.array(ends, np.int64), joined


def _unpack_pieces(
    message: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[list[bytes], NDArray[np.float32], NDArray[np.int64]]:
    """The records as pieces, (V,) scores and (V,) types; plain ones together, odd ones singly."""
    marks = np.frombuffer(message + bytes(8), np.uint8)  # so that a short last record can be read
    lengths = marks[starts + 1].astype(np.int64)
    score_at = np.minimum(starts + 2 + lengths, len(message))
    scores = np.ascontiguousarray(marks[score_at[:, None] + np.arange(1, 5)]).view("<f4")[:, 0]
    typed = ends - score_at == 7
    types = np.where(typed, marks[np.minimum(score_at + 6, len(message))], NORMAL).astype(np.int64)
    plain = (marks[starts] == _PIECE_TAG) & (lengths < 0x80) & (marks[score_at] == _SCORE_TAG)
    plain &= (ends - score_at == 5) | typed & (marks[score_at + 5] == _TYPE_TAG) & (types < 0x80)
    scores = scores.astype(np.float32)
    pieces = [
        message[start + 2 : end]
        for start, end in zip(starts.tolist(), score_at.tolist(), strict=True)
    ]
    odd = np.flatnonzero(~plain)
    if int((ends - starts)[odd].sum()) > MAX_BLOCK_BYTES:
        raise FileFormatError(f"tokenizer.model: {len(odd)} pieces are not written as usual")
    for id in odd.tolist():
        record = _Record.read(message[starts[id] : ends[id]], f"piece {id}")
        pieces[id] = record.block(_PIECE)  # an empty one is refused later
        scores[id] = record.float(_SCORE)
        types[id] = min(max(record.number(_TYPE, NORMAL), 0), 0x7F)  # refused later
    return pieces, scores, types


@dataclass(frozen=True)
class _Record:
    """The fields of a message by number, each with its wire type and its last value."""

    fields: dict[int, tuple[int, Any]]
    name: str

    @classmethod
    def read(cls, message: bytes, name: str) -> Self:
        """Raises FileFormatError for bytes that are no message, or too many."""
        if len(message) > MAX_BLOCK_BYTES:
            raise FileFormatError(
                f"tokenizer.model: {name} has {len(message)} bytes: the limit is {MAX_BLOCK_BYTES}"
            )
        fields: dict[int, tuple[int, Any]] = {}
        offset = 0
        while offset < len(message):
            field, wire, value, offset = _field(message, offset, len(message))
            fields[field] = wire, value
        return cls(fields, name)

    def number(self, field: int, default: int) -> int:
        """A whole number; default where the field is absent."""
        return int(self._value(field, _VARINT, default))

    def block(self, field: int) -> bytes:
        """Bytes; none where the field is absent."""
        return bytes(self._value(field, _BYTES, b""))

    def float(self, field: int) -> float:
        """A float32; 0 where the field is absent."""
        return float(np.frombuffer(self._value(field, _FIXED32, bytes(4)), "<f4")[0])

    def _value(self, field: int, wire: int, default: Any) -> Any:
        stored_wire, value = self.fields.get(field, (wire, default))
        if stored_wire != wire:
            raise FileFormatError(
                f"not a tokenizer.model: {self.name}: field {field} has wire type {stored_wire}, "
                f"expected {wire}"
            )
        return value


def _field(message: bytes, offset: int, end: int) -> tuple[int, int, Any, int]:
    """The field at `offset`: its number, its wire type, its value (int or bytes), where it ends."""
    tag, offset = _read_number(message, offset, end)
    wire = tag & 7
    if wire == _VARINT:
        value, offset = _read_number(message, offset, end)
        return tag >> 3, wire, value - (value >> 63 << 64), offset
    if wire == _BYTES:
        size, offset = _read_number(message, offset, end)
    elif wire in (_FIXED32, _FIXED64):
        size = 4 if wire == _FIXED32 else 8
    else:
        raise FileFormatError(f"not a tokenizer.model: wire type {wire} before byte {offset}")
    if size > end - offset:
        raise FileFormatError(f"tokenizer.model ends early: {size} bytes wanted at byte {offset}")
    return tag >> 3, wire, message[offset : offset + size], offset + size


def _read_number(message: bytes, offset: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if offset >= end:
            break
        byte = message[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, offset
    raise FileFormatError(f"not a tokenizer.model: no number ends at byte {offset}")


def _check_rules(
    trainer: _Record, normalizer: _Record, denormalizer: _Record, has_bytes: bool
) -> None:
    """Refuse what would encode text otherwise than Gemma does; absent fields have defaults."""
    wrong = {
        "its model is not BPE": trainer.number(_MODEL_TYPE, 1) != _BPE,
        "it puts spaces at the end of words": trainer.number(_SPACE_SUFFIX, 0) != 0,
        "it has bytes and does not fall back to them": has_bytes
        and trainer.number(_BYTE_FALLBACK, 0) == 0,
        "it rewrites characters": normalizer.block(_CHARSMAP) != b"",
        "it adds a leading space": normalizer.number(_DUMMY_PREFIX, 1) != 0,
        "it trims spaces": normalizer.number(_TRIM_SPACES, 1) != 0,
        "it does not escape spaces": normalizer.number(_ESCAPE_SPACES, 1) != 1,
        "it rewrites the text of ids": denormalizer.block(_CHARSMAP) != b"",
    }
    for reason, is_wrong in wrong.items():
        if is_wrong:
            raise UnsupportedError(f"this tokenizer.model is not Gemma's: {reason}")
