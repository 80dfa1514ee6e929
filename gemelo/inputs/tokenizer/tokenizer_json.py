"""The tokenizer.json file: vocabulary, merges and added tokens, as much as must be understood here.

The format belongs to the `tokenizers` library, which can run any such file. Gemma's is a special
case worth knowing: most of its 33 MB are merge rules that say again what the order of its pieces
says already. So the file is read only up to those rules, the pieces are recognised by their digest,
and SentencePiece runs them: sooner, and with the same ids as Gemma's other two containers in the
corners where the two libraries disagree (a literal U+2581 among spaces, bytes that are no text). A
file with any other vocabulary goes to `tokenizers`, rebuilt from what was checked here and in
`pipeline`: its sizes are counted before it is parsed.

    source = TokenizerJson.parse(content); source.is_gemma; source.vocabulary()
"""

import codecs
import hashlib
import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.inputs.tokenizer.added_tokens import (
    MAX_STRINGS,
    SPACE,
    AddedToken,
    AddedVocabulary,
    check_all,
)
from gemelo.inputs.tokenizer.pipeline import Pipeline
from gemelo.inputs.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    CONTROL_NAME,
    MAX_GAP,
    MAX_PIECE_BYTES,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

MAX_FILE_BYTES = 64 << 20  # Gemma's has 32 MiB
MAX_BEGINNING_BYTES = 16 << 20  # what stands before the merges; Gemma's has 8 MiB
# Gemma's has 8,427 braces, half a million brackets and 1.3 million commas.
MAX_MARKS = {b"{": 1 << 17, b"[": 1 << 20, b",": 1 << 21}
MAX_VOCAB = 5 << 16  # Gemma has 262,145
MAX_VOCAB_CHARS = 1 << 23  # of all pieces; Gemma's have 1.5 million
MAX_MERGES = 1 << 20
# Gemma 3's and 3n's pieces that are neither control strings nor runs nor bytes, in id order.
GEMMA_PIECES = slice(494, 255_968)
GEMMA_DIGEST = "e22cea261d417e331bf155f79f9c6a0ddc28b00f7e51a9d990362c403a1edc96"
CONTROL_SCORE = -1000.0


@dataclass(frozen=True)
class TokenizerJson:
    """A parsed tokenizer.json.

    content: the whole file; top: its members; model: those of "model", in both without what follows
    the pieces when the file is in the usual order; added: its added strings, by their content, and
    what `with_added` put beside them.
    """

    content: bytes
    top: Mapping[str, Any]
    model: Mapping[str, Any]
    added: Mapping[str, AddedToken]

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read up to the merge rules. Raises FileFormatError for what is no tokenizer.json."""
        content = content.removeprefix(codecs.BOM_UTF8)
        _check_marks(content)
        try:
            top, model = _beginning(content) or _whole(content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileFormatError(f"not a tokenizer.json: {error}") from None
        if not isinstance(model, dict) or not content.rstrip().endswith(b"}"):
            raise FileFormatError("not a tokenizer.json: it has no model, or ends early")
        return cls(content, top, model, _added(top.get("added_tokens")))

    def with_added(self, strings: Iterable[AddedToken]) -> "TokenizerJson":
        """The same with more added strings; for one that is known, new flags and the old id."""
        added = dict(self.added)
        vocab = self.model.get("vocab")
        for string in strings:
            known = added.get(string.content)
            id = vocab.get(string.content) if isinstance(vocab, dict) else None
            file_id = string.id if id is None else id
            added[string.content] = replace(string, id=file_id if known is None else known.id)
        check_all(sum(map(len, added)))
        return replace(self, added=added)

    def without(self, strings: Container[str]) -> "TokenizerJson":
        """The same without some added strings; those that are pieces of the model remain that."""
        return replace(self, added={c: s for c, s in self.added.items() if c not in strings})

    @cached_property
    def pipeline(self) -> Pipeline:
        """The steps around the model; raises UnsupportedError for one that is not run."""
        return Pipeline.parse(self.top)

    @cached_property
    def controls(self) -> dict[str, int]:
        """The added strings that are instructions to the model: by flag, or by name."""
        return {
            content: string.id
            for content, string in self.added.items()
            if string.special or CONTROL_NAME.fullmatch(content)
        }

    @cached_property
    def added_vocabulary(self) -> AddedVocabulary | None:
        """How the added strings are to be looked for where that takes more than comparing.

        Where text is normalised in other ways than by writing spaces as U+2581, the library looks
        for normalised strings itself. No control string reaches it: those are then first.
        """
        spaced = self.top.get("normalizer") == _SPACES_REPLACED
        return AddedVocabulary.of(self.added.values(), () if spaced else self.controls, spaced)

    @property
    def spells_spaces(self) -> bool:
        """Whether text is cut by SentencePiece's rules: merges, spaces as U+2581, byte fallback."""
        return (
            self.model.get("type") == "BPE"
            and self.model.get("byte_fallback") is True
            and not any(self.model.get(name) for name in _OTHER_RULES)
            and isinstance(self.model.get("vocab"), dict)
            and self.top.get("normalizer") == _SPACES_REPLACED
            and self.top.get("pre_tokenizer") in (None, _SPACES_SPLIT)
            and self.top.get("decoder") == _SPACES_BACK
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
        types[[string.id for string in self.added.values()]] = USER_DEFINED
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
    def pieces(self) -> dict[str, int]:
        """The model's own pieces and their ids. Raises FileFormatError for what is no such list."""
        if self.model.get("type") not in (None, "BPE", "WordLevel"):
            raise UnsupportedError(
                f"the model is {self.model['type']!r:.40}: only BPE and WordLevel are run"
            )
        vocab = self.model.get("vocab")
        if not isinstance(vocab, dict) or not 0 < len(vocab) <= MAX_VOCAB:
            raise FileFormatError(
                f"not a tokenizer.json: its model has no vocab of 1 to {MAX_VOCAB} pieces"
            )
        if set(map(type, vocab.values())) != {int} or min(vocab.values()) < 0:
            raise FileFormatError("not a tokenizer.json: a piece has no id")
        longest = max(vocab, key=len)
        if len(longest) > MAX_PIECE_BYTES:
            raise FileFormatError(
                f"the piece {longest!r:.60} has {len(longest)} characters: "
                f"the limit is {MAX_PIECE_BYTES}"
            )
        if (num_chars := sum(map(len, vocab))) > MAX_VOCAB_CHARS:
            raise FileFormatError(
                f"the pieces have {num_chars:,} characters in all: the limit is {MAX_VOCAB_CHARS:,}"
            )
        if len(set(vocab.values())) < len(vocab):
            raise FileFormatError(f"{_twice(vocab)}")
        return vocab

    @cached_property
    def num_ids(self) -> int:
        """The largest id plus one. Raises FileFormatError for ids that lie far apart."""
        ids = [string.id for string in self.added.values()]
        size = max(max(self.pieces.values()), *ids, 0) + 1
        if size > len(self.pieces) + len(ids) + MAX_GAP:
            raise FileFormatError(
                f"tokenizer.json has id {size - 1} but {len(self.pieces)} pieces: "
                f"at most {MAX_GAP} ids may have none"
            )
        return size

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The merge rules, which take the whole file to read."""
        try:
            rules = _whole(self.content)[1].get("merges")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"not a tokenizer.json: {error}") from None
        if not isinstance(rules, list) or len(rules) > MAX_MERGES:
            raise FileFormatError(f"no list of at most {MAX_MERGES} merges")
        return [_merge(rule) for rule in rules]

    @cached_property
    def _placed(self) -> tuple[list[str], NDArray[np.int64]]:
        """The pieces in id order, and the ids that had none: theirs is one that cannot occur."""
        vocab, size = self.pieces, self.num_ids
        ids = np.fromiter(vocab.values(), np.int64, len(vocab))
        added = {content: string.id for content, string in self.added.items()}
        in_order = bool((ids == np.arange(len(ids))).all())
        pieces = list(vocab) if in_order else []
        pieces += [f"[PAD{id}]" for id in range(len(pieces), size)]
        named = added if in_order else vocab | added
        for piece, id in named.items():
            pieces[id] = piece
        taken = np.zeros(size, bool)
        taken[ids] = taken[list(added.values())] = True
        return pieces, np.flatnonzero(~taken)

    def _check_ranks(self) -> None:
        """Refuse merges that are not in the order of the pieces they make (runs excepted)."""
        last = -1
        for merge in self.merges:
            piece = "".join(merge)
            id = self.pieces.get(piece, -1)
            if piece in self.added:
                continue
            if id < last:
                raise UnsupportedError(
                    f"this tokenizer.json merges {piece!r} (id {id}) after id {last}: "
                    "only merges in id order can be written as scores"
                )
            last = id


def _check_marks(content: bytes) -> None:
    """Count what a parser makes objects of, before it does."""
    for mark, most in MAX_MARKS.items():
        if (count := content.count(mark)) > most:
            raise FileFormatError(
                f"tokenizer.json has {count:,} times {mark.decode()!r}: the limit is {most:,}"
            )


def _added(entries: Any) -> dict[str, AddedToken]:
    """The added strings by content. Raises FileFormatError for two of one id."""
    if not isinstance(entries, list | None) or len(entries or ()) > MAX_STRINGS:
        raise FileFormatError(f"added_tokens is no list of at most {MAX_STRINGS}")
    by_content: dict[str, AddedToken] = {}
    ids: dict[int, str] = {}
    for entry in entries or ():
        id = entry.get("id") if isinstance(entry, dict) else None
        string = AddedToken.parse(entry, id, "added_tokens")
        if ids.setdefault(string.id, string.content) != string.content:
            raise FileFormatError(
                f"id {id} has two added tokens, {ids[string.id]!r:.60} and {string.content!r:.60}"
            )
        if by_content.setdefault(string.content, string) != string:
            raise FileFormatError(
                f"the added token {string.content!r:.60} is there twice, with other ids or flags"
            )
    return by_content


def _twice(vocab: Mapping[str, int]) -> str:
    seen: dict[int, str] = {}
    for piece, id in vocab.items():
        if id in seen:
            return f"the pieces {seen[id]!r:.60} and {piece!r:.60} both have id {id}"
        seen[id] = piece
    return "no id is there twice"


def _merge(rule: Any) -> tuple[str, str]:
    """A rule is written as a pair, or as two pieces with a space between them."""
    pair = rule.split(" ", 1) if isinstance(rule, str) else rule
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(p) is str for p in pair):
        raise FileFormatError(f"{rule!r:.60} is no merge of two pieces")
    return pair[0], pair[1]


_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_SPACES_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPACES_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_SPACES_BACK = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
_OTHER_RULES = (
    "ignore_merges",
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
)
_DECODER = json.JSONDecoder()
_OPENING = re.compile(r"\s*\{\s*")
_COLON = re.compile(r"\s*:\s*")
_COMMA = re.compile(r"\s*,\s*")
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
_ENDING = re.compile(rb"\]\s*\}\s*\}\s*")


def _beginning(content: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The members of the file and of its model, where the merges are the last of both."""
    merges = _MERGES.search(content)
    if merges is None or not _ENDING.fullmatch(content, content.rfind(b"]")):
        return None
    if merges.end() > MAX_BEGINNING_BYTES:
        raise FileFormatError(
            f"tokenizer.json has {merges.end():,} bytes before its merges: the limit is "
            f"{MAX_BEGINNING_BYTES:,}"
        )
    text = content[: merges.end()].decode()
    top, offset = _members(text, 0, until="model")
    model, _ = _members(text, offset, until="merges")
    return (top, model) if "added_tokens" in top and "vocab" in model else None


def _whole(content: bytes) -> tuple[dict[str, Any], Any]:
    top = json.loads(content.decode())
    return top, top["model"]


def _members(text: str, offset: int, until: str) -> tuple[dict[str, Any], int]:
    """The members of the object at `offset`, up to `until`, and where that one's value is."""
    members: dict[str, Any] = {}
    separator = _OPENING.match(text, offset)
    while separator and text.startswith('"', separator.end()):
        key, offset = _DECODER.raw_decode(text, separator.end())
        colon = _COLON.match(text, offset)
        if not colon:
            break  # what the last check of `parse` refuses
        if key == until:
            return members, colon.end()
        members[key], offset = _DECODER.raw_decode(text, colon.end())
        separator = _COMMA.match(text, offset)
    return members, offset
