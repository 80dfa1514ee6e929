"""Tokenizer backends: plain text to token ids and back, by SentencePiece or `tokenizers`.

A backend knows no control strings and no BOS: `tokenizer` takes those out of the text first, so
that both libraries agree on what is left. `SentencePieceBackend` is SentencePiece over a
`Vocabulary`, and the way of every Gemma; `TokenizersBackend` is `tokenizers` over a tokenizer.json
with any other vocabulary. Both libraries are imported where they are used.

A `DecodeStream` turns ids into text as they come. Decoding a whole list is by definition what its
stream would have said, so that streamed and unstreamed answers cannot differ.

    backend = SentencePieceBackend(vocabulary); backend.encode("Hello world")   # [9259, 1902]
"""

import codecs
import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from gemelo.errors import FileFormatError, GemeloError, UnsupportedError
from gemelo.inputs.tokenizer.added_tokens import SPACE, AddedToken
from gemelo.inputs.tokenizer.sentencepiece_file import pack_model
from gemelo.inputs.tokenizer.tokenizer_json import TokenizerJson
from gemelo.inputs.tokenizer.vocabulary import UNUSED, Vocabulary


class DecodeStream(Protocol):
    """Ids in, text out, never half a character."""

    def push(self, id: int) -> str:
        """The text that is certain now that `id`, which must be in range, has come; may be ""."""

    def flush(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""


class TokenizerBackend(Protocol):
    """What a tokenizer needs of a library. Ids passed in must be in range."""

    @property
    def num_ids(self) -> int:
        """The largest id plus one."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The pieces as a value; raises UnsupportedError where they have no scores."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, control strings in it encoded like any other text."""

    def piece(self, id: int) -> str:
        """How the vocabulary writes `id`."""

    def stream(self, hidden: Container[int]) -> DecodeStream:
        """A fresh stream that says nothing for the ids in `hidden`."""

    def decode(self, ids: Sequence[int], hidden: Container[int]) -> str:
        """What a fresh stream would say for `ids`, flush included."""


class SentencePieceBackend:
    """SentencePiece: pieces merged by score, what remains in bytes."""

    def __init__(self, vocabulary: Vocabulary, cutting: Vocabulary | None = None) -> None:
        """cutting: the vocabulary that text is cut by, where somebody else looks for the rest.

        Raises FileFormatError for a vocabulary that the library refuses.
        """
        from sentencepiece import SentencePieceProcessor

        self.vocabulary = vocabulary
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(pack_model(cutting or vocabulary))
        except RuntimeError as error:
            vocabulary.check_duplicates()
            reason = " ".join(str(error).split())
            raise FileFormatError(f"SentencePiece refuses the vocabulary: {reason}") from None

    @property
    def num_ids(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids

    def piece(self, id: int) -> str:
        return self.vocabulary.piece(id)

    def stream(self, hidden: Container[int]) -> DecodeStream:
        return _ByteStream(self.vocabulary, hidden)

    def decode(self, ids: Sequence[int], hidden: Container[int]) -> str:
        return b"".join(_surface(self.vocabulary, id, hidden) for id in ids).decode(
            errors="replace"
        )


class TokenizersBackend:
    """The `tokenizers` library, for a vocabulary that SentencePiece cannot run."""

    def __init__(self, source: TokenizerJson) -> None:
        """Raises FileFormatError or UnsupportedError for a file that is not run."""
        self._source = source
        self.num_ids = source.num_ids
        self._library = _load_library(source)
        # The file's own rule, applied before added strings are looked for: only so are the runs of
        # spaces among them found, which are stored with U+2581.
        self._runs_of_spaces = source.spells_spaces and source.added_vocabulary is None

    @property
    def vocabulary(self) -> Vocabulary:
        return self._source.vocabulary()

    def encode(self, text: str) -> list[int]:
        if self._runs_of_spaces:
            text = text.replace(" ", SPACE)
        with _library_errors():
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, id: int) -> str:
        return self._library.id_to_token(id) or ""

    def stream(self, hidden: Container[int]) -> DecodeStream:
        return _WindowStream(self._library, hidden)

    def decode(self, ids: Sequence[int], hidden: Container[int]) -> str:
        stream = self.stream(hidden)
        return "".join([*(stream.push(id) for id in ids), stream.flush()])


class _ByteStream:
    """Every id is some bytes; UTF-8 says when a character is whole."""

    def __init__(self, vocabulary: Vocabulary, hidden: Container[int]) -> None:
        self._vocabulary, self._hidden = vocabulary, hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(_surface(self._vocabulary, id, self._hidden))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def _surface(vocabulary: Vocabulary, id: int, hidden: Container[int]) -> bytes:
    if id in hidden or vocabulary.types[id] == UNUSED:
        return b""
    return vocabulary.surface(id)


_MOST_HELD = 1024  # ids that may wait for the rest of a character; to the library, a run of bytes


class _WindowStream:
    """An id's text may depend on its neighbours: decode a short window, say what is new in it.

    The window is what was said last (its text is `_said`) and what has not been said yet.
    """

    def __init__(self, library: Any, hidden: Container[int]) -> None:
        self._library, self._hidden = library, hidden
        self._window: list[int] = []
        self._num_said, self._said = 0, ""

    def push(self, id: int) -> str:
        if id in self._hidden or not self._library.id_to_token(id):
            return ""
        self._window.append(id)
        text = self._decode(self._window)
        is_half = text.endswith("\ufffd") and len(self._window) - self._num_said < _MOST_HELD
        return "" if is_half else self._say(text)

    def flush(self) -> str:
        return self._say(self._decode(self._window))

    def _say(self, text: str) -> str:
        new = text[len(self._said) :]
        if new or len(self._window) - self._num_said >= _MOST_HELD:
            self._window = self._window[self._num_said :]
            self._num_said, self._said = len(self._window), self._decode(self._window)
        return new

    def _decode(self, ids: list[int]) -> str:
        with _library_errors():
            return str(self._library.decode(ids, skip_special_tokens=False))


def _load_library(source: TokenizerJson) -> Any:
    """The library with a model, steps and strings that were checked; nothing else of the file.

    What a file says of truncation and padding is some training run's.
    """
    from tokenizers import Tokenizer

    pipeline = source.pipeline
    steps = {
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "decoder": pipeline.decoder,
    }
    bare = {"type": "BPE", "vocab": {}, "merges": []}
    with _library_errors():
        library = Tokenizer.from_str(
            json.dumps({"version": "1.0", "added_tokens": [], "model": bare} | steps)
        )
        library.model = _library_model(source)
        # What is looked for elsewhere is special here: one that is left over is encoded as text.
        library.add_tokens(_library_strings(source, library.normalizer))
        library.encode_special_tokens = True
    for content, string in source.added.items():
        if (given := library.token_to_id(content)) != string.id:
            raise UnsupportedError(
                f"the added token {content!r:.60} has id {string.id}, where the "
                f"library that runs it can only give {given}: ids must follow one another"
            )
    return library


def _library_model(source: TokenizerJson) -> Any:
    """Raises UnsupportedError for a model, or a setting of one, that is not run."""
    from tokenizers import models

    model = source.model
    unknown = model.get("unk_token")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(
                f"the model's {name} = {model[name]!r:.40} is not run: null is, as in Gemma's"
            )
    if unknown is not None and unknown not in source.pieces:
        raise FileFormatError(f"unk_token {unknown!r:.60} is not in the vocab")
    if model.get("type") == "WordLevel":
        if unknown is None:
            raise FileFormatError("a WordLevel model needs an unk_token")
        return models.WordLevel(source.pieces, unknown)
    flags = {name: bool(model.get(name)) for name in ("fuse_unk", "byte_fallback", "ignore_merges")}
    return models.BPE(source.pieces, source.merges, unk_token=unknown, **flags)


def _check_late(string: AddedToken, normalizer: Any, strips: bool) -> None:
    """Refuse the strings with which the library panics or never ends, at one text or another."""
    if not string.normalized:
        return
    content = string.content if normalizer is None else normalizer.normalize_str(string.content)
    if strips or not content.strip():
        raise UnsupportedError(
            f"the added token {string.content!r:.60} is normalized, "
            f"{'and the normalizer has a Strip' if strips else 'to nothing or to spaces'}: "
            "the library that runs this fails at some texts; set normalized to false"
        )


def _library_strings(source: TokenizerJson, normalizer: Any) -> list[Any]:
    """The added strings in the order of their ids; special are those it is not to look for."""
    from tokenizers import AddedToken

    elsewhere = set(source.controls)
    if source.added_vocabulary is not None:
        late = source.added_vocabulary.late if source.added_vocabulary.spaced else ()
        elsewhere |= {string.content for string in (*source.added_vocabulary.raw, *late)}
    for string in source.added.values():
        if string.content not in elsewhere:
            _check_late(string, normalizer, source.pipeline.strips)
    return [
        AddedToken(
            string.content,
            single_word=string.single_word,
            lstrip=string.lstrip,
            rstrip=string.rstrip,
            normalized=string.normalized and string.content not in elsewhere,
            special=string.content in elsewhere,
        )
        for string in sorted(source.added.values(), key=lambda string: string.id)
    ]


@contextmanager
def _library_errors() -> Iterator[None]:
    """The library raises bare Exception, and for some broken files panics, below Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GemeloError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"the tokenizers library cannot use it: {reason}") from None
