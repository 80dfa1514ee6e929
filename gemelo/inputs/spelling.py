"""Plain text to token ids and back, by one of the two libraries that are good at it.

A speller knows no control strings and no BOS: `tokenizer` takes those out of the text first, so
that both libraries agree on what is left. `PieceSpeller` is SentencePiece over a `Vocabulary`, and
the way of every Gemma; `LibrarySpeller` is `tokenizers` over a tokenizer.json with any other
vocabulary. Both libraries are imported where they are used.

An `IdStream` turns ids into text as they come. Decoding a whole list is by definition what its
stream would have said, so that streamed and unstreamed answers cannot differ.

    speller = PieceSpeller(vocabulary); speller.spell("Hello world")   # [9259, 1902]
"""

import codecs
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from gemelo.errors import FileFormatError
from gemelo.inputs.sentencepiece_model import pack_model
from gemelo.inputs.tokenizer_json import TokenizerJson
from gemelo.inputs.vocabulary import SPACE, UNUSED, Vocabulary


class IdStream(Protocol):
    """Ids in, text out, never half a character."""

    def push(self, id: int) -> str:
        """The text that is certain now that `id`, which must be in range, has come; may be ""."""

    def flush(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""


class Speller(Protocol):
    """What a tokenizer needs of a library. Ids passed in must be in range."""

    @property
    def num_ids(self) -> int:
        """The largest id plus one."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The pieces as a value; raises UnsupportedError where they have no scores."""

    def spell(self, text: str) -> list[int]:
        """The ids of `text`, control strings in it spelt out like any other text."""

    def piece(self, id: int) -> str:
        """How the vocabulary writes `id`."""

    def stream(self, hidden: Container[int]) -> IdStream:
        """A fresh stream that says nothing for the ids in `hidden`."""

    def text(self, ids: Sequence[int], hidden: Container[int]) -> str:
        """What a fresh stream would say for `ids`, flush included."""


class PieceSpeller:
    """SentencePiece: pieces merged by score, what remains spelt in bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises FileFormatError for a vocabulary that the library refuses."""
        from sentencepiece import SentencePieceProcessor

        self.vocabulary = vocabulary
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(pack_model(vocabulary))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise FileFormatError(f"SentencePiece refuses the vocabulary: {reason}") from None

    @property
    def num_ids(self) -> int:
        return len(self.vocabulary)

    def spell(self, text: str) -> list[int]:
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids

    def piece(self, id: int) -> str:
        return self.vocabulary.piece(id)

    def stream(self, hidden: Container[int]) -> IdStream:
        return _ByteStream(self.vocabulary, hidden)

    def text(self, ids: Sequence[int], hidden: Container[int]) -> str:
        return b"".join(_surface(self.vocabulary, id, hidden) for id in ids).decode(
            errors="replace"
        )


class LibrarySpeller:
    """The `tokenizers` library, for a vocabulary that SentencePiece cannot run."""

    def __init__(self, source: TokenizerJson) -> None:
        """Raises FileFormatError for a file that the library refuses."""
        self._source = source
        self._library = _load_library(source)
        self.num_ids = max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def vocabulary(self) -> Vocabulary:
        return self._source.vocabulary()

    def spell(self, text: str) -> list[int]:
        if self._source.spells_spaces:
            # The file's own rule, applied before added strings are looked for: only so are the
            # runs of spaces among them found, which are stored with U+2581.
            text = text.replace(" ", SPACE)
        with _library_errors():
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, id: int) -> str:
        return self._library.id_to_token(id) or ""

    def stream(self, hidden: Container[int]) -> IdStream:
        return _WindowStream(self._library, hidden)

    def text(self, ids: Sequence[int], hidden: Container[int]) -> str:
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


class _WindowStream:
    """An id's text may depend on its neighbours: decode a short window, say what is new in it.

    The window is what was said last (its text is `_said`) and what has not been said yet.
    """

    def __init__(self, library: Any, hidden: Container[int]) -> None:
        self._library, self._hidden = library, hidden
        self._window: list[int] = []
        self._num_said, self._said = 0, ""

    def push(self, id: int) -> str:
        if id in self._hidden:
            return ""
        self._window.append(id)
        text = self._decode(self._window)
        return "" if text.endswith("\ufffd") else self._say(text)

    def flush(self) -> str:
        return self._say(self._decode(self._window))

    def _say(self, text: str) -> str:
        new = text[len(self._said) :]
        if new:
            self._window = self._window[self._num_said :]
            self._num_said, self._said = len(self._window), self._decode(self._window)
        return new

    def _decode(self, ids: list[int]) -> str:
        with _library_errors():
            return str(self._library.decode(ids, skip_special_tokens=False))


def _load_library(source: TokenizerJson) -> Any:
    from tokenizers import AddedToken, Tokenizer

    with _library_errors():
        library = Tokenizer.from_str(source.text)
        library.no_truncation()  # a file may carry the settings of some training run
        library.no_padding()
        # Control strings are taken out before: one that is left over is to be spelt as text.
        names = [AddedToken(name, special=True, normalized=False) for name in source.controls]
        library.add_special_tokens(names)
        library.encode_special_tokens = True
    return library


@contextmanager
def _library_errors() -> Iterator[None]:
    """The library raises bare Exception, and for some broken files panics, below Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"the tokenizer.json cannot be used: {reason}") from None
