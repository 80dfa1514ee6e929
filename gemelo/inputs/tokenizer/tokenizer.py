"""Tokenizer: text to token ids and back, from whichever file a model came with.

A tokenizer.json, a tokenizer.model and the key-values of a GGUF file give the same ids for the same
text. Control strings such as `<start_of_turn>` are found here, before any library sees the text,
and only when the caller says that the text may carry them: text from people should not, or a
message can end its own turn. A placeholder token (`<image_soft_token>`) is never read from text.

    tokenizer = Tokenizer.from_file("gemma-3-1b-it")
    ids = tokenizer.encode("The capital of France is")     # [2, 818, 5279, 529, 7001, 563]
    tokenizer.decode(ids)                                  # "The capital of France is"
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, SupportsIndex

from gemelo.errors import FileFormatError, InputError, UnsupportedError
from gemelo.inputs.tokenizer.added_tokens import SPACE, AddedToken, AddedVocabulary, Finder, Match
from gemelo.inputs.tokenizer.backends import (
    DecodeStream,
    SentencePieceBackend,
    TokenizerBackend,
    TokenizersBackend,
)
from gemelo.inputs.tokenizer.sentencepiece_file import MAX_MODEL_BYTES, pack_model, unpack_model
from gemelo.inputs.tokenizer.token_ids import token_ids
from gemelo.inputs.tokenizer.tokenizer_config import (
    TokenizerConfig,
    find_tokenizer,
    read_tokenizer_config,
)
from gemelo.inputs.tokenizer.tokenizer_json import MAX_FILE_BYTES, TokenizerJson
from gemelo.inputs.tokenizer.vocabulary import PLACEHOLDER, Vocabulary, gguf_flag, gguf_id
from gemelo.text_files import read_bytes


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Encodes and decodes; made by `from_file` or `from_gguf`.

    backend: the library at work on plain text; controls: every control string and its id; eos_id:
    what the file says ends a text; stop_ids: all ids that end an answer, ascending; chat_template:
    Jinja source, None for a base model. An id is None when the vocabulary has no such piece.
    prefix_tokens, suffix_tokens: the ids that the file puts around a text: BOS, if it says no
    other. added_vocabulary: how added tokens are found, where flags make that more than comparing.
    notices: what of the files has no effect, or an unusual one, a sentence each.
    """

    backend: TokenizerBackend = field(repr=False)
    controls: Mapping[str, int] = field(repr=False)
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]
    chat_template: str | None = field(default=None, repr=False)
    prefix_tokens: tuple[int, ...] = ()
    suffix_tokens: tuple[int, ...] = ()
    added_vocabulary: AddedVocabulary | None = field(default=None, repr=False)
    notices: tuple[str, ...] = ()

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a tokenizer.json, a tokenizer.model, or a directory that holds either.

        A tokenizer.json is preferred; tokenizer_config.json and chat_template.jinja (or .json)
        beside it give the chat template and the end of a text. Raises InputError when there is
        none, FileFormatError and UnsupportedError for files that cannot be used.
        """
        path = find_tokenizer(Path(path))
        settings = read_tokenizer_config(path.parent)
        try:
            if path.suffix == ".json":
                return cls._from_json(read_bytes(path, MAX_FILE_BYTES), settings)
            vocabulary = unpack_model(read_bytes(path, MAX_MODEL_BYTES))
            return cls._from_model(vocabulary, settings)
        except (FileFormatError, UnsupportedError) as error:
            raise type(error)(f"{path}: {error}") from None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """The tokenizer among a GGUF file's key-values.

        Pieces as `Strings` or a list of str or of bytes, scores and types as arrays. Raises
        FileFormatError and UnsupportedError for a vocabulary that cannot be used.
        """
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise FileFormatError("tokenizer.chat_template is not a string")
        vocabulary = Vocabulary.from_gguf(metadata)
        ids = {key: gguf_id(metadata, key, len(vocabulary)) for key in ("bos", "eos", "eot", "eom")}
        bos_id = vocabulary.bos_id if ids["bos"] is None else ids["bos"]
        eos_id = vocabulary.eos_id if ids["eos"] is None else ids["eos"]
        vocabulary = vocabulary.with_controls((bos_id, eos_id, ids["eot"], ids["eom"]))
        add_bos, add_eos = (gguf_flag(metadata, f"add_{key}_token") for key in ("bos", "eos"))
        return cls(
            SentencePieceBackend(vocabulary),
            vocabulary.controls,
            bos_id,
            eos_id,
            vocabulary.pad_id,
            _stops(vocabulary.controls, (eos_id, ids["eot"], ids["eom"])),
            template,
            _put(bos_id, add_bos is not False),
            _put(eos_id, add_eos is True),
            notices=("the file puts <eos> after every text, prompts too",) if add_eos else (),
        )

    @property
    def vocab_size(self) -> int:
        """The number of ids: the largest one plus one."""
        return self.backend.num_ids

    @property
    def has_chat(self) -> bool:
        """Whether the file says how messages are put to the model; a base model's does not."""
        return self.chat_template is not None

    def encode(self, text: str, *, bos: bool = True, special: bool = True) -> list[int]:
        """The ids of `text`, by `bos` with what the file puts around it (BOS, and not twice if the
        text begins with it).

        special: control strings in the text become their ids; else they are encoded as text,
        which is what text from people needs. Raises InputError for an unpaired surrogate.
        """
        check_text(text)
        ids = self._ids(text, self._placeholder_ids if special else self._control_ids)
        return self.with_special_tokens(ids) if bos else ids

    def with_prefix_tokens(self, ids: Sequence[int]) -> list[int]:
        """The ids after what the file puts before a text, which is not put there twice."""
        count = len(self.prefix_tokens)
        return [*ids] if tuple(ids[:count]) == self.prefix_tokens else [*self.prefix_tokens, *ids]

    def with_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """The ids with what the file puts before and after a text."""
        return [*self.with_prefix_tokens(ids), *self.suffix_tokens]

    def decode(self, ids: Iterable[SupportsIndex], *, special: bool = False) -> str:
        """The text of `ids`; control strings show only if `special`.

        Bytes that are no UTF-8 become U+FFFD. Raises InputError for an id out of range.
        """
        return self.backend.decode(self._checked(ids), () if special else self._control_ids)

    def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """How the vocabulary writes each id (a space as U+2581, a lone byte as <0xE2>)."""
        return [self.backend.piece(id) for id in self._checked(ids)]

    def stream(self) -> "TextStream":
        """A fresh stream: what its pushes and its flush say, joined, is what `decode` says."""
        return TextStream(self)

    def split(self, text: str) -> Iterator[str | int]:
        """Cut `text` at its control strings, the longest at each place: text, id, text, id, ..."""
        if self.added_vocabulary is None:
            yield from self._controls_of(self._controls_finder, text)
            return
        for part in self._raw_finder.split(text, self._placeholder_ids):
            if isinstance(part, Match):
                yield self._control_or_text(part, text)
            elif self._late_finder:
                yield from self._controls_of(self._late_finder, part.replace(" ", SPACE))
            else:
                yield part

    def to_gguf(self) -> dict[str, Any]:
        """GGUF key-values that `from_gguf` reads back as this tokenizer.

        Raises UnsupportedError for a vocabulary without scores, or rules that it cannot hold.
        """
        self._check_added_vocabulary()
        if len(self._other_stop_ids) > 2:
            raise UnsupportedError(
                f"{len(self._other_stop_ids) + 1} ids end an answer beside <end_of_turn>, "
                "where a GGUF has room for 3: shorten eos_token_id in generation_config.json"
            )
        written = self.backend.vocabulary.to_gguf()
        for key, id in (("bos", self.bos_id), ("eos", self.eos_id)):
            if id is not None:
                written[f"tokenizer.ggml.{key}_token_id"] = id
        written["tokenizer.ggml.add_bos_token"] = bool(self.prefix_tokens)
        written["tokenizer.ggml.add_eos_token"] = bool(self.suffix_tokens)
        for key, id in zip(("eot", "eom"), self._other_stop_ids, strict=False):
            written[f"tokenizer.ggml.{key}_token_id"] = id
        if self.chat_template is not None:
            written["tokenizer.chat_template"] = self.chat_template
        return written

    def to_sentencepiece(self) -> bytes:
        """The bytes of a tokenizer.model.

        Raises UnsupportedError for a vocabulary without scores, or flags that it cannot hold.
        """
        self._check_added_vocabulary()
        return pack_model(self.backend.vocabulary)

    @classmethod
    def _from_json(cls, content: bytes, settings: TokenizerConfig) -> Self:
        source = TokenizerJson.parse(content)
        named, unknown = _named(settings, source.added, source.pieces.get)
        source = source.with_added([*settings.added, *named])
        if source.is_gemma:
            special = source.added_vocabulary
            cutting = source.without(special.flagged).vocabulary() if special else None
            backend: TokenizerBackend = SentencePieceBackend(source.vocabulary(), cutting)
        else:
            backend = TokenizersBackend(source)
        around = source.pipeline.around
        return cls._from_backend(
            backend, source.controls, settings, around, source.added_vocabulary, unknown
        )

    @classmethod
    def _from_model(cls, vocabulary: Vocabulary, settings: TokenizerConfig) -> Self:
        named, unknown = _named(settings, {s.content: s for s in settings.added}, vocabulary.find)
        added = [*settings.added, *named]
        whole = vocabulary.with_added(added)
        controls = whole.controls
        added_vocabulary = AddedVocabulary.of(added, (), spaced=True)
        flagged = set() if added_vocabulary is None else added_vocabulary.flagged
        rest = [token for token in added if token.content not in flagged]
        cutting = None if added_vocabulary is None else vocabulary.with_added(rest)
        backend = SentencePieceBackend(whole, cutting)
        return cls._from_backend(backend, controls, settings, None, added_vocabulary, unknown)

    @classmethod
    def _from_backend(
        cls,
        backend: TokenizerBackend,
        controls: Mapping[str, int],
        settings: TokenizerConfig,
        around: tuple[tuple[int, ...], tuple[int, ...]] | None,
        added_vocabulary: AddedVocabulary | None,
        unknown: Sequence[str],
    ) -> Self:
        bos_id = controls.get(settings.bos or "<bos>")
        eos_id = controls.get(settings.eos or "<eos>", controls.get("<eos>"))
        prefix_tokens, suffix_tokens = around or (_put(bos_id, True), ())
        if settings.add_bos is not None:
            prefix_tokens = _put(bos_id, settings.add_bos)
        if settings.add_eos is not None:
            suffix_tokens = _put(eos_id, settings.add_eos)
        for id in (*prefix_tokens, *suffix_tokens):
            if not 0 <= id < backend.num_ids:
                raise FileFormatError(
                    f"id {id}, which is to stand around a text, is none of its {backend.num_ids}"
                )
        stops = [id for id in settings.stop_ids if 0 <= id < backend.num_ids]
        unheard = [
            f"an answer is to end with id {id}, which is none of the {backend.num_ids}"
            for id in settings.stop_ids
            if id not in stops
        ]
        return cls(
            backend,
            controls,
            bos_id,
            eos_id,
            controls.get(settings.pad or "<pad>"),
            _stops(controls, (eos_id, *stops)),
            settings.template,
            prefix_tokens,
            suffix_tokens,
            added_vocabulary,
            (*settings.notices, *unknown, *unheard),
        )

    def _ids(self, text: str, skipped: Container[int]) -> list[int]:
        """The ids of a text, in which the added tokens in `skipped` are left as text."""
        ids: list[int] = []
        if self.added_vocabulary is None:
            for run in self.split(text) if skipped is self._placeholder_ids else (text,):
                ids += [run] if isinstance(run, int) else self.backend.encode(run)
            return ids
        for part in self._raw_finder.split(text, skipped):
            ids += [part.id] if isinstance(part, Match) else self._late_ids(part, skipped)
        return ids

    def _controls_of(self, finder: Finder, text: str) -> Iterator[str | int]:
        for part in finder.split(text, self._placeholder_ids):
            yield part if isinstance(part, str) else self._control_or_text(part, text)

    def _control_or_text(self, match: Match, text: str) -> str | int:
        """Only instructions are taken out of a text; other strings are found when it is encoded."""
        return match.id if match.id in self._control_ids else text[match.start : match.stop]

    def _late_ids(self, text: str, skipped: Container[int]) -> list[int]:
        """The ids of a text, strings that are looked for in normalised text among them."""
        ids: list[int] = []
        if not self._late_finder:
            return self.backend.encode(text)
        for part in self._late_finder.split(text.replace(" ", SPACE), skipped):
            ids += [part.id] if isinstance(part, Match) else self.backend.encode(part)
        return ids

    def _check_added_vocabulary(self) -> None:
        if self.added_vocabulary is not None:
            raise UnsupportedError(
                f"the added token {self.added_vocabulary.example} is found by rules that neither "
                "GGUF nor tokenizer.model can hold; convert to a directory, which keeps "
                "tokenizer.json"
            )

    def _checked(self, ids: Iterable[SupportsIndex]) -> list[int]:
        checked, limit = token_ids(ids), self.vocab_size
        for value in checked:
            if not 0 <= value < limit:
                raise InputError(f"token id {value} is out of range: ids are 0 to {limit - 1}")
        return checked

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.controls.values())

    @cached_property
    def _placeholder_ids(self) -> frozenset[int]:
        """The ids that are placed and never read from a text."""
        return frozenset(id for name, id in self.controls.items() if PLACEHOLDER.fullmatch(name))

    @cached_property
    def _other_stop_ids(self) -> list[int]:
        """What ends an answer and is neither the end of a text nor known by its name."""
        return sorted(set(self.stop_ids) - set(_stops(self.controls, (self.eos_id,))))

    @cached_property
    def _controls_finder(self) -> Finder:
        typed = (item for item in self.controls.items() if item[1] not in self._placeholder_ids)
        return Finder(AddedToken(*item) for item in typed)

    @cached_property
    def _raw_finder(self) -> Finder:
        return Finder(self.added_vocabulary.raw if self.added_vocabulary is not None else ())

    @cached_property
    def _late_finder(self) -> Finder:
        """Of strings that the library at work does not look for itself."""
        added = self.added_vocabulary
        late = added.late if added is not None and added.spaced else ()
        return Finder(replace(s, content=s.content.replace(" ", SPACE)) for s in late)


class TextStream:
    """The text of ids as they come, control strings left out; never half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream: DecodeStream = tokenizer.backend.stream(tokenizer._control_ids)

    def push(self, id: SupportsIndex) -> str:
        """The text that is certain now that `id` has come, or "". Raises InputError as `decode`."""
        return self._stream.push(self._tokenizer._checked((id,))[0])

    def flush(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        return self._stream.flush()


def check_text(text: str) -> None:
    """Raises InputError for what is no text: another type, or an unpaired surrogate."""
    if not isinstance(text, str):
        raise InputError(f"{type(text).__name__} is not text: give a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InputError(
            f"character {error.start} of the text is U+{code:04X}, half of a surrogate pair: "
            "decode the text as UTF-8 first"
        ) from None


def _put(id: int | None, wanted: bool) -> tuple[int, ...]:
    return (id,) if wanted and id is not None else ()


def _stops(controls: Mapping[str, int], others: Iterable[int | None]) -> tuple[int, ...]:
    """The ids that end an answer: by name, and those that a file gives."""
    named = (controls.get(name) for name in ("<eos>", "<end_of_turn>"))
    return tuple(sorted({id for id in (*named, *others) if id is not None}))


def _named(
    settings: TokenizerConfig, added: Mapping[str, AddedToken], find: Callable[[str], int | None]
) -> tuple[list[AddedToken], list[str]]:
    """What is special by its role alone, and a notice for each string that is no piece."""
    known = {**added, **{string.content: string for string in settings.added}}
    tokens, notices = [], []
    for name in settings.named:
        id = find(name)
        if name in known:
            tokens += [] if known[name].special else [replace(known[name], special=True)]
        elif id is None:
            notices.append(f"tokenizer_config.json names {name!r:.60}, which is no piece")
        else:
            tokens.append(AddedToken(name, id, special=True))
    return tokens, notices
