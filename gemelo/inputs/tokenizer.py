"""Text to token ids and back, from whichever file a model came with.

A tokenizer.json, a tokenizer.model and the key-values of a GGUF file give the same ids for the same
text. Control strings such as `<start_of_turn>` are found here, before any library sees the text,
and only when the caller says that the text may carry them: text from people should not, or a
message can end its own turn. A soft token (`<image_soft_token>`) is never read from text.

    tokenizer = Tokenizer.from_file("gemma-3-1b-it")
    ids = tokenizer.encode("The capital of France is")     # [2, 818, 5279, 529, 7001, 563]
    tokenizer.decode(ids)                                  # "The capital of France is"
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, SupportsIndex

from gemelo.documents import read_bytes, read_object, read_text
from gemelo.errors import FileFormatError, InputError
from gemelo.inputs.sentencepiece_model import pack_model, unpack_model
from gemelo.inputs.spelling import IdStream, LibrarySpeller, PieceSpeller, Speller
from gemelo.inputs.token_ids import token_ids
from gemelo.inputs.tokenizer_json import TokenizerJson
from gemelo.inputs.vocabulary import SOFT_TOKEN, Vocabulary, read_id

MAX_FILE_BYTES = 256 << 20
MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Encodes and decodes; made by `from_file` or `from_gguf`.

    speller: the library at work on plain text; controls: every control string and its id; eos_id:
    what the file says ends a text; stop_ids: all ids that end an answer, ascending; chat_template:
    Jinja source, None for a base model. An id is None when the vocabulary has no such piece.
    """

    speller: Speller = field(repr=False)
    controls: Mapping[str, int] = field(repr=False)
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]
    chat_template: str | None = field(default=None, repr=False)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a tokenizer.json, a tokenizer.model, or a directory that holds either.

        A tokenizer.json is preferred; tokenizer_config.json and chat_template.jinja (or .json)
        beside it give the chat template and the end of a text. Raises InputError when there is
        none, FileFormatError and UnsupportedError for files that cannot be used.
        """
        path = _find(Path(path))
        settings = _read_settings(path.parent)
        if path.suffix == ".json":
            source = TokenizerJson.parse(read_text(path, MAX_FILE_BYTES))
            if not source.is_gemma:
                speller = LibrarySpeller(source)
                return cls._from_speller(speller, source.controls, settings)
            vocabulary = source.vocabulary()
        else:
            vocabulary = unpack_model(read_bytes(path, MAX_FILE_BYTES))
        return cls._from_vocabulary(vocabulary, settings)

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
        eos, turn_end = (_named(vocabulary, metadata, key) for key in ("eos", "eot"))
        return cls._from_vocabulary(vocabulary, _Settings(template, eos=eos, turn_end=turn_end))

    @property
    def vocab_size(self) -> int:
        """The number of ids: the largest one plus one."""
        return self.speller.num_ids

    @property
    def has_chat(self) -> bool:
        """Whether the file says how messages are put to the model; a base model's does not."""
        return self.chat_template is not None

    def encode(self, text: str, *, bos: bool = True, special: bool = True) -> list[int]:
        """The ids of `text`, after BOS if `bos` (and not twice if the text begins with it).

        special: control strings in the text become their ids; else they are spelt out as text,
        which is what text from people needs. Raises InputError for an unpaired surrogate.
        """
        check_text(text)
        ids: list[int] = []
        for part in self.split(text) if special else (text,):
            ids += [part] if isinstance(part, int) else self.speller.spell(part)
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[SupportsIndex], *, special: bool = False) -> str:
        """The text of `ids`; control strings show only if `special`.

        Bytes that are no UTF-8 become U+FFFD. Raises InputError for an id out of range.
        """
        return self.speller.text(self._checked(ids), () if special else self._control_ids)

    def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """How the vocabulary writes each id (a space as U+2581, a lone byte as <0xE2>)."""
        return [self.speller.piece(id) for id in self._checked(ids)]

    def stream(self) -> "TextStream":
        """A fresh stream: what its pushes and its flush say, joined, is what `decode` says."""
        return TextStream(self)

    def split(self, text: str) -> Iterator[str | int]:
        """Cut `text` at its control strings, the longest at each place: text, id, text, id, ..."""
        start = 0
        for opening in self._openings.finditer(text):
            at = opening.start()
            if at < start:
                continue
            for length in self._control_lengths:
                id = self._typed_controls.get(text[at : at + length])
                if id is not None:
                    if at > start:
                        yield text[start:at]
                    yield id
                    start = at + length
                    break
        if start < len(text):
            yield text[start:]

    def to_gguf(self) -> dict[str, Any]:
        """GGUF key-values that `from_gguf` reads back as this tokenizer.

        Raises UnsupportedError for a vocabulary without scores.
        """
        written = self.speller.vocabulary.to_gguf()
        if self.eos_id is not None:
            written["tokenizer.ggml.eos_token_id"] = self.eos_id
        if self.chat_template is not None:
            written["tokenizer.chat_template"] = self.chat_template
        return written

    def to_sentencepiece(self) -> bytes:
        """The bytes of a tokenizer.model.

        Raises UnsupportedError for a vocabulary without scores.
        """
        return pack_model(self.speller.vocabulary)

    @classmethod
    def _from_vocabulary(cls, vocabulary: Vocabulary, settings: "_Settings") -> Self:
        held = cls._from_speller(PieceSpeller(vocabulary), vocabulary.controls, settings)
        return replace(
            held,
            bos_id=vocabulary.bos_id if held.bos_id is None else held.bos_id,
            eos_id=vocabulary.eos_id if held.eos_id is None else held.eos_id,
            pad_id=vocabulary.pad_id if held.pad_id is None else held.pad_id,
        )

    @classmethod
    def _from_speller(
        cls, speller: Speller, controls: Mapping[str, int], settings: "_Settings"
    ) -> Self:
        eos_id = controls.get(settings.eos or "<eos>", controls.get("<eos>"))
        stops = {controls.get(name) for name in ("<eos>", "<end_of_turn>", settings.turn_end or "")}
        return cls(
            speller,
            controls,
            bos_id=controls.get(settings.bos or "<bos>"),
            eos_id=eos_id,
            pad_id=controls.get("<pad>"),
            stop_ids=tuple(sorted(id for id in stops | {eos_id} if id is not None)),
            chat_template=settings.template,
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
    def _typed_controls(self) -> dict[str, int]:
        return {name: id for name, id in self.controls.items() if not SOFT_TOKEN.fullmatch(name)}

    @cached_property
    def _control_lengths(self) -> list[int]:
        return sorted({len(name) for name in self._typed_controls}, reverse=True)

    @cached_property
    def _openings(self) -> re.Pattern[str]:
        firsts = {name[0] for name in self._typed_controls}
        return re.compile("|".join(map(re.escape, sorted(firsts))) or r"(?!)")


class TextStream:
    """The text of ids as they come, control strings left out; never half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream: IdStream = tokenizer.speller.stream(tokenizer._control_ids)

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


@dataclass(frozen=True)
class _Settings:
    """What is said beside a vocabulary: the chat template, and names of control strings."""

    template: str | None = None
    bos: str | None = None
    eos: str | None = None
    turn_end: str | None = None


def _named(vocabulary: Vocabulary, metadata: Mapping[str, Any], key: str) -> str | None:
    """The piece at the id that a GGUF file gives as `key`, if it gives one."""
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if value is None:
        return None
    id = read_id(value)
    if not 0 <= id < len(vocabulary):
        raise FileFormatError(f"tokenizer.ggml.{key}_token_id is {id}: not one of the pieces")
    return vocabulary.piece(id)


def _find(path: Path) -> Path:
    candidates = (path / "tokenizer.json", path / "tokenizer.model") if path.is_dir() else (path,)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"no tokenizer at {path}: give a tokenizer.json, a tokenizer.model or a directory with one"
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, or {} where there is no such file."""
    return read_object(path, MAX_FILE_BYTES) if path.is_file() else {}


def _read_settings(folder: Path) -> _Settings:
    config = _read_json(folder / "tokenizer_config.json")
    written = folder / "chat_template.jinja"
    if written.is_file():
        template: Any = read_text(written, MAX_TEMPLATE_BYTES)
    else:
        template = _read_json(folder / "chat_template.json").get("chat_template")
        template = config.get("chat_template") if template is None else template
    return _Settings(
        _default_template(template, folder),
        _token_name(config.get("bos_token")),
        _token_name(config.get("eos_token")),
    )


def _default_template(template: Any, folder: Path) -> str | None:
    """A file may hold one template, or a list of named ones of which one is "default"."""
    if isinstance(template, list):
        named = {e.get("name"): e.get("template") for e in template if isinstance(e, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise FileFormatError(f"the chat template in {folder} is not a string")
    return template


def _token_name(token: Any) -> str | None:
    """A token is written as its string, or as an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
