"""`PreTrainedTokenizer`: the tokenizer with what users of transformers type first.

The same names with the same meaning: `apply_chat_template`, `eos_token_id`, `batch_decode`,
`convert_ids_to_tokens`, calling it. It stands here and not in `inputs/tokenizer` because a chat
template is rendered by this room, which knows tokenizers and is not known by them. Differences:
`apply_chat_template` ends where the answer begins unless told otherwise and gives plain lists, and
`decode` leaves control strings out unless told otherwise.

    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    tokenizer.decode(ids, skip_special_tokens=False)      # "<bos><start_of_turn>user\\nHello..."
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsIndex, overload

from gemelo.config.absent_arguments import TEMPLATING, TOKENIZING, refusing
from gemelo.errors import InputError
from gemelo.inputs.prompt.chat import render
from gemelo.inputs.tokenizer.token_ids import token_id
from gemelo.inputs.tokenizer.tokenizer import Tokenizer, check_text


class _BatchEncoding(dict[str, Any]):
    """A dict whose `input_ids` is an attribute too."""

    @property
    def input_ids(self) -> Any:
        return self["input_ids"]


class PreTrainedTokenizer(Tokenizer):
    """What `model.tokenizer` is: a `Tokenizer` that answers to transformers' names too."""

    def __repr__(self) -> str:
        template = "with" if self.has_chat else "without"
        return (
            f"Tokenizer({self.vocab_size} tokens, bos {self.bos_id}, eos {self.eos_id}, "
            f"pad {self.pad_id}, stops {[*self.stop_ids]}, {template} a chat template)"
        )

    def __len__(self) -> int:
        """The number of ids, `vocab_size`."""
        return self.vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """`bos_id`: the id that begins a text."""
        return self.bos_id

    @property
    def eos_token_id(self) -> int | None:
        """`eos_id`: the id that ends a text; `stop_ids` has all that end an answer."""
        return self.eos_id

    @property
    def pad_token_id(self) -> int | None:
        """`pad_id`: the id that fills a batch."""
        return self.pad_id

    @property
    def bos_token(self) -> str | None:
        """How the beginning of a text is written: "<bos>"."""
        return self._written(self.bos_id)

    @property
    def eos_token(self) -> str | None:
        """How the end of a text is written: "<eos>"."""
        return self._written(self.eos_id)

    @property
    def pad_token(self) -> str | None:
        """How padding is written: "<pad>"."""
        return self._written(self.pad_id)

    def _written(self, id: int | None) -> str | None:
        return None if id is None else self.pieces([id])[0]

    def get_vocab(self) -> dict[str, int]:
        """Every piece and its id; a second of work."""
        return {piece: id for id, piece in enumerate(self.pieces(range(self.vocab_size)))}

    @overload
    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]: ...

    @overload
    def __call__(
        self, text: list[str] | tuple[str, ...], *, add_special_tokens: bool = True
    ) -> dict[str, list[list[int]]]: ...

    @refusing(TOKENIZING)
    def __call__(
        self, text: str | list[str] | tuple[str, ...], *, add_special_tokens: bool = True
    ) -> Mapping[str, Any]:
        """`{"input_ids": ids}` of a text, or of each of a list of texts; nothing is padded. The ids
        are its attribute too."""
        if isinstance(text, str):
            return _BatchEncoding(input_ids=self.encode(text, bos=add_special_tokens))
        if isinstance(text, list | tuple):
            return _BatchEncoding(
                input_ids=[self.encode(one, bos=add_special_tokens) for one in text]
            )
        raise InputError(f"a {type(text).__name__} is not text: give a str, or a list of them")

    @refusing(TOKENIZING)
    def encode(
        self,
        text: str,
        *,
        bos: bool = True,
        special: bool = True,
        add_special_tokens: bool = True,
    ) -> list[int]:
        """The ids of `text`, with what the file puts around it (BOS) unless `bos`, or
        `add_special_tokens`, is False.

        special: control strings in the text become their ids; else they are encoded as text, which
        is what text from people needs. Raises InputError for an unpaired surrogate.
        """
        return super().encode(text, bos=bos and add_special_tokens, special=special)

    def decode(
        self,
        ids: Iterable[SupportsIndex],
        *,
        special: bool = False,
        skip_special_tokens: bool = True,
    ) -> str:
        """The text of `ids`; control strings show only if `special`, or if `skip_special_tokens`
        is False.

        Bytes that are no UTF-8 become U+FFFD. Raises InputError for an id out of range.
        """
        return super().decode(ids, special=special or not skip_special_tokens)

    def batch_decode(
        self, batch: Iterable[Iterable[SupportsIndex]], *, skip_special_tokens: bool = True
    ) -> list[str]:
        """The text of each list of ids."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in batch]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, without BOS."""
        return self.pieces(self.encode(text, bos=False))

    @overload
    def convert_ids_to_tokens(self, ids: SupportsIndex) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: Iterable[SupportsIndex]) -> list[str]: ...

    def convert_ids_to_tokens(
        self, ids: SupportsIndex | Iterable[SupportsIndex]
    ) -> str | list[str]:
        """`pieces`: how the vocabulary writes an id, or each of some."""
        if isinstance(ids, Iterable):
            return self.pieces(ids)
        return self.pieces([token_id(ids)])[0]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """The id of a piece, or of each of some. Raises InputError for what is none."""
        if isinstance(tokens, str):
            return self._id_of(tokens)
        return [self._id_of(token) for token in tokens]

    def _id_of(self, token: str) -> int:
        check_text(token)
        id = self.controls.get(token)
        if id is None:
            id = self.backend.vocabulary.find(token)
        if id is None:
            raise InputError(
                f"{token!r:.80} is no piece of the vocabulary; tokenize(text) cuts one"
            )
        return id

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        tokenize: Literal[True] = True,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        tokenize: Literal[False],
    ) -> str: ...

    @refusing(TEMPLATING)
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
    ) -> list[int] | str:
        """The ids of messages in the model's chat template; tokenize=False gives their text.

        Texts alone: `Model.prompt` takes messages with pictures, recordings and videos. A control
        string in a message stays text and becomes no control id, so give the ids, not the text, to
        a model. Raises UnsupportedError for a base model, which has no template.
        """
        prompt = render(messages, self, tools=tools, add_generation_prompt=add_generation_prompt)
        return [*prompt.ids] if tokenize else self.decode(prompt.ids, special=True)
