"""The tokenizer.json file: as much of it as must be understood here.

The format belongs to the `tokenizers` library, which can run any such file. Gemma's is a special
case worth knowing: most of its 33 MB are merge rules that say again what the order of its pieces
says already. So the file is read only up to those rules, the pieces are recognised by their digest,
and SentencePiece runs them: sooner, and with the same ids as Gemma's other two containers in the
corners where the two libraries disagree (a literal U+2581 among spaces, bytes that are no text). A
file with any other vocabulary goes to `tokenizers` whole.

    source = TokenizerJson.parse(text); source.is_gemma; source.vocabulary()
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.inputs.vocabulary import (
    BYTE,
    CONTROL,
    CONTROL_NAME,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

# Gemma 3's and 3n's pieces that are neither control strings nor runs nor bytes, in id order.
GEMMA_PIECES = slice(494, 255_968)
GEMMA_DIGEST = "e22cea261d417e331bf155f79f9c6a0ddc28b00f7e51a9d990362c403a1edc96"
MAX_GAP = 65_536  # ids without a piece, at most
CONTROL_SCORE = -1000.0


@dataclass(frozen=True)
class TokenizerJson:
    """A parsed tokenizer.json.

    text: the whole file; top: its members; model: those of "model", in both without what follows
    the pieces when the file is in the usual order.
    """

    text: str
    top: Mapping[str, Any]
    model: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read up to the merge rules. Raises FileFormatError for what is no tokenizer.json."""
        try:
            top, at = _members(text, 0, until="model")
            model, _ = _members(text, at, until="merges")
            if "added_tokens" not in top or "vocab" not in model:  # an unusual order of members
                top = json.loads(text)
                model = top["model"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileFormatError(f"not a tokenizer.json: {error}") from None
        if not isinstance(model, dict) or not text.rstrip().endswith("}"):
            raise FileFormatError("not a tokenizer.json: it has no model, or ends early")
        return cls(text, top, model)

    @cached_property
    def added(self) -> dict[str, int]:
        """The strings that are found before anything else, and their ids."""
        found: dict[str, int] = {}
        for entry in self.top.get("added_tokens") or ():
            if not isinstance(entry, dict):
                raise FileFormatError(f"not a tokenizer.json: added token {entry!r}")
            content, id = entry.get("content"), entry.get("id")
            if not isinstance(content, str) or not content or not isinstance(id, int) or id < 0:
                raise FileFormatError(f"not a tokenizer.json: added token {content!r}, id {id!r}")
            found[content] = id
        return found

    @cached_property
    def controls(self) -> dict[str, int]:
        """The added strings that are instructions to the model: by flag, or by name."""
        special = {e["content"] for e in self.top.get("added_tokens") or () if e.get("special")}
        return {
            content: id
            for content, id in self.added.items()
            if content in special or CONTROL_NAME.fullmatch(content)
        }

    @property
    def spells_spaces(self) -> bool:
        """Whether text is cut by SentencePiece's rules: merges, spaces as U+2581, byte fallback."""
        return (
            self.model.get("type") == "BPE"
            and self.model.get("byte_fallback") is True
            and not self.model.get("ignore_merges")
            and isinstance(self.model.get("vocab"), dict)
            and self.top.get("normalizer") == _SPACES_REPLACED
            and self.top.get("pre_tokenizer") in (None, _SPACES_SPLIT)
        )

    @cached_property
    def is_gemma(self) -> bool:
        """Whether the pieces are Gemma 3's: their order is their rank, merges say no more."""
        if not self.spells_spaces or len(self.model["vocab"]) < GEMMA_PIECES.stop:
            return False
        pieces = "\0".join(self._placed[0][GEMMA_PIECES]).encode(errors="replace")
        return hashlib.sha256(pieces).hexdigest() == GEMMA_DIGEST

    def vocabulary(self) -> Vocabulary:
        """The pieces with the scores and types that SentencePiece and GGUF files give them.

        Raises UnsupportedError when the pieces are not SentencePiece's or not in order of rank.
        """
        if not self.spells_spaces:
            raise UnsupportedError("this tokenizer.json is not SentencePiece's: no GGUF vocabulary")
        if not self.is_gemma:
            self._check_ranks()
        pieces, gaps = self._placed
        ids = np.arange(len(pieces))
        types = np.full(len(ids), NORMAL, np.uint8)
        vocab = self.model["vocab"]
        types[[vocab[name] for name in _BYTES if name in vocab]] = BYTE
        types[list(self.added.values())] = USER_DEFINED
        types[list(self.controls.values())] = CONTROL
        types[gaps] = UNUSED
        unknown = vocab.get(self.model.get("unk_token") or "<unk>")
        if unknown is None:
            raise FileFormatError("tokenizer.json has no unknown piece: SentencePiece needs one")
        types[unknown] = UNKNOWN
        normal = types == NORMAL
        scores = np.where(normal, -(ids - int(normal.argmax())), CONTROL_SCORE)
        scores[types == BYTE] = 0
        return Vocabulary.from_pieces(pieces, scores, types, {"unk": unknown})

    @cached_property
    def _placed(self) -> tuple[list[str], NDArray[np.int64]]:
        """The pieces in id order, and the ids that had none: theirs is one that cannot occur."""
        vocab = self.model["vocab"]
        try:
            ids = np.array(list(vocab.values()))
        except ValueError:
            ids = np.empty(0)
        if ids.dtype.kind != "i" or ids.min() < 0:
            raise FileFormatError("not a tokenizer.json: a piece has no id")
        size = max(int(ids.max()), *self.added.values(), 0) + 1
        if size > len(ids) + len(self.added) + MAX_GAP:
            raise FileFormatError(f"tokenizer.json has id {size - 1} but {len(ids)} pieces")
        in_order = bool((ids == np.arange(len(ids))).all())
        pieces = list(vocab) if in_order else []
        pieces += [f"[PAD{id}]" for id in range(len(pieces), size)]
        named = self.added if in_order else vocab | self.added
        for piece, id in named.items():
            pieces[id] = piece
        taken = np.zeros(size, bool)
        taken[ids] = taken[list(self.added.values())] = True
        return pieces, np.flatnonzero(~taken)

    def _check_ranks(self) -> None:
        """Refuse merges that are not in the order of the pieces they make (runs excepted)."""
        vocab = self.model["vocab"]
        last = -1
        for merge in json.loads(self.text)["model"].get("merges") or ():
            piece = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
            id = vocab.get(piece, -1)
            if piece in self.added:
                continue
            if id < last:
                raise UnsupportedError(
                    f"this tokenizer.json merges {piece!r} (id {id}) after id {last}: "
                    "only merges in id order can be written as scores"
                )
            last = id


_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_SPACES_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPACES_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_DECODER = json.JSONDecoder()
_OPENING = re.compile(r"\s*\{\s*")
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*')
_COMMA = re.compile(r"\s*,\s*")


def _members(text: str, at: int, until: str) -> tuple[dict[str, Any], int]:
    """The members of the object at `at`, up to member `until`, and where that one's value is."""
    found: dict[str, Any] = {}
    separator = _OPENING.match(text, at)
    while separator:
        key = _KEY.match(text, separator.end())
        if not key:
            break  # the closing brace, or what the last check below refuses
        if key[1] == until:
            return found, key.end()
        found[key[1]], at = _DECODER.raw_decode(text, key.end())
        separator = _COMMA.match(text, at)
    return found, at
