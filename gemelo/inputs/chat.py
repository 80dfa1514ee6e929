"""Messages to a prompt: who said what, put in the words the model was trained on.

Gemma's turns are written here in plain Python; any other template that a file brings is run by
`templates`. Either way only the template's own markers become control ids: a message that contains
`<end_of_turn>` has it spelt out as text and cannot end its turn. Text between two markers is
encoded in one go, so that newlines merge across the borders of a message exactly as they do
elsewhere. Pictures, recordings and videos are handed to an album, which opens them and says what
they are in the text.

    prompt = render([{"role": "user", "content": "Hello"}], tokenizer)
    prompt.ids      # (2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107)
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from gemelo.errors import GemeloError, InputError, UnsupportedError
from gemelo.inputs.album import Album
from gemelo.inputs.audio import Samples
from gemelo.inputs.image import Picture
from gemelo.inputs.media import MediaPart, Part, TextPart, parse_content
from gemelo.inputs.slots import (
    AudioSlot,
    ImageSlot,
    Piece,
    Senses,
    Slot,
    check_senses,
    expand,
    place,
)
from gemelo.inputs.templates.text import own, said
from gemelo.inputs.token_ids import token_ids
from gemelo.inputs.tokenizer import Tokenizer, check_text

# Gemma 3's template: it says what `render_turns` says. A variant of it is run like any other.
GEMMA_TEMPLATE_DIGEST = "8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29"


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it answers: token ids, BOS first.

    pictures and recordings are those that the ids have places for, in order; notices are sentences
    on what was done to them.
    """

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    recordings: tuple[Samples, ...] = ()
    notices: tuple[str, ...] = ()

    def checked(self) -> Self:
        """The same with its ids as Python integers; InputError for a field of other things."""
        for name, kind in (("pictures", Picture), ("recordings", Samples)):
            held = getattr(self, name)
            for item in held if isinstance(held, Sequence) else (held,):
                if not isinstance(item, kind):
                    raise InputError(
                        f"a prompt's {name} are a list of {kind.__name__}, not {item!r:.100}"
                    )
        return replace(self, ids=tuple(token_ids(self.ids)))


@dataclass(frozen=True)
class _Message:
    """A checked message: role is "system", "user" or "assistant"."""

    role: str
    parts: tuple[Part, ...]
    is_list: bool


@dataclass(frozen=True)
class _Said:
    """The same with its media opened: texts, and the places of pictures and recordings."""

    role: str
    pieces: tuple[str | Slot, ...]
    is_list: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, str))


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    album: Album | None = None,
    allow_paths: bool = True,
) -> Prompt:
    """The prompt for `messages` by the tokenizer's own chat template.

    A message is {"role": "system" | "user" | "assistant" | "model", "content": text or a list of
    parts, as `media.parse_content` has them}. A system message may come first, then user and
    assistant take turns. add_generation_prompt: end where the model's answer begins. album opens
    media, and knows which the model can take; None is a model for text. allow_paths: whether
    messages may name files of this machine. Raises InputError for messages that break these rules,
    UnsupportedError for media that the model has no sense for and for a base model.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UnsupportedError(
            "this is a base model, without a chat template: use plain completion, "
            "with the prompt as one text"
        )
    said = _unfolded(_check(messages, allow_paths), album)
    if _digest(template) == GEMMA_TEMPLATE_DIGEST:
        return _in_turns(said, tokenizer, add_generation_prompt, album)
    return _render_template(said, tokenizer, template, add_generation_prompt, album)


def render_turns(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    album: Album | None = None,
    allow_paths: bool = True,
) -> Prompt:
    """The prompt for `messages` in Gemma's turns, whatever the tokenizer's file says.

    As `render`, but never for want of a template; raises UnsupportedError for a vocabulary that has
    no `<start_of_turn>`.
    """
    said = _unfolded(_check(messages, allow_paths), album)
    return _in_turns(said, tokenizer, add_generation_prompt, album)


def complete(parts: Sequence[Part], tokenizer: Tokenizer, album: Album) -> Prompt:
    """The prompt for plain completion: parts one after the other, control strings in texts read."""
    check_senses(parts, album.senses)
    pieces: list[Piece] = []
    for part in parts:
        if isinstance(part, TextPart):
            check_text(part.text)
            pieces += tokenizer.split(part.text)
        else:
            pieces += album.unfold(part)
    return _prompt(tokenizer.framed(expand(pieces, album.senses, tokenizer)), album)


def _unfolded(messages: Sequence[_Message], album: Album | None) -> list[_Said]:
    """The messages with their media opened, once it is clear that the model can take them."""
    check_senses((part for message in messages for part in message.parts), _senses(album))
    return [_said(message, album) for message in messages]


def _senses(album: Album | None) -> Senses:
    return Senses() if album is None else album.senses


def _said(message: _Message, album: Album | None) -> _Said:
    pieces: list[str | Slot] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            pieces.append(part.text)
        elif album is not None:
            pieces += album.unfold(part)
    return _Said(message.role, tuple(pieces), message.is_list)


def _prompt(ids: Iterable[int], album: Album | None) -> Prompt:
    if album is None:
        return Prompt(tuple(ids))
    media = tuple(album.pictures), tuple(album.recordings), tuple(album.notices)
    return Prompt(tuple(ids), *media)


def _in_turns(
    messages: Sequence[_Said],
    tokenizer: Tokenizer,
    add_generation_prompt: bool,
    album: Album | None,
) -> Prompt:
    opening, closing = (_control(tokenizer, name) for name in ("<start_of_turn>", "<end_of_turn>"))
    pieces: list[Piece] = []
    for role, spoken in _turns(messages):
        pieces += [opening, f"{role}\n", *spoken, closing, "\n"]
    if add_generation_prompt:
        pieces += [opening, "model\n"]
    return _prompt(expand(pieces, _senses(album), tokenizer), album)


def _turns(messages: Sequence[_Said]) -> Iterator[tuple[str, list[Piece]]]:
    """Gemma's (role, pieces): texts are trimmed, what the system says opens the first user turn."""
    prefix: list[Piece] = []
    for message in messages:
        if message.role == "system":
            prefix = ["".join(message.texts) + "\n\n"]
            continue
        role = "model" if message.role == "assistant" else "user"
        trimmed = (p.strip() if isinstance(p, str) else p for p in message.pieces)
        yield role, [*prefix, *trimmed]
        prefix = []


def _control(tokenizer: Tokenizer, name: str) -> int:
    if name not in tokenizer.controls:
        raise UnsupportedError(f"the vocabulary has no {name}: this is no Gemma tokenizer")
    return tokenizer.controls[name]


def _render_template(
    messages: Sequence[_Said],
    tokenizer: Tokenizer,
    template: str,
    add_generation_prompt: bool,
    album: Album | None,
) -> Prompt:
    from gemelo.inputs.templates.rendering import render_template

    text = render_template(
        template,
        [_for_templates(message) for message in messages],
        _tokens(tokenizer),
        add_generation_prompt=add_generation_prompt,
    )
    check_text(text)
    senses = _senses(album)
    slots = [piece for message in messages for piece in message.pieces]
    images = [slot for slot in slots if isinstance(slot, ImageSlot)]
    sounds = [slot for slot in slots if isinstance(slot, AudioSlot)]
    ids = expand(place(text, images, sounds, senses, tokenizer), senses, tokenizer)
    return _prompt(_with_one_bos(ids, tokenizer.bos_id), album)


def _for_templates(message: _Said) -> dict[str, Any]:
    """The message as templates expect it: its texts are people's, its role is a word of ours."""
    # Gemma's template reads only the first part of a system message: give it one text.
    if message.role == "system" or not message.is_list:
        return {"role": own(message.role), "content": said("".join(message.texts))}
    parts = [_part_for_templates(piece) for piece in message.pieces]
    return {"role": own(message.role), "content": parts}


def _part_for_templates(piece: str | Slot) -> dict[str, str]:
    if isinstance(piece, str):
        return {"type": own("text"), "text": said(piece)}
    return {"type": own("image" if isinstance(piece, ImageSlot) else "audio")}


def _tokens(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    return {
        f"{name}_token": "" if id is None else tokenizer.pieces([id])[0] for name, id in ids.items()
    }


def _with_one_bos(ids: list[int], bos_id: int | None) -> list[int]:
    if bos_id not in ids:
        return ids
    return [bos_id, *(id for id in ids if id != bos_id)]


def _digest(template: str) -> str:
    lines = "\n".join(template.strip().splitlines())
    return hashlib.sha256(lines.encode(errors="replace")).hexdigest()


def _check(messages: Sequence[Mapping[str, Any]], allow_paths: bool) -> list[_Message]:
    """The messages in one shape, or InputError for the first that is wrong."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise InputError("no messages: give a list with at least one user message")
    checked = [
        _check_message(index, message, allow_paths) for index, message in enumerate(messages)
    ]
    first = 1 if checked[0].role == "system" else 0
    for index, message in enumerate(checked[first:], first):
        expected = "assistant" if (index - first) % 2 else "user"
        if message.role != expected:
            raise InputError(
                f"message {index} has role {message.role!r}, expected {expected!r}: "
                "after an optional system message, user and assistant take turns"
            )
    if len(checked) == first:
        raise InputError("a system message alone says nothing to answer: add a user message")
    return checked


def _check_message(index: int, message: Mapping[str, Any], allow_paths: bool) -> _Message:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise InputError(f"message {index} is not an object with role and content")
    role = "assistant" if message["role"] == "model" else message["role"]
    if role not in ("system", "user", "assistant"):
        raise InputError(f"message {index} has role {role!r}: use system, user or assistant")
    try:
        parts = parse_content(message["content"], allow_paths=allow_paths)
        for part in parts:
            if isinstance(part, TextPart):
                check_text(part.text)
    except GemeloError as error:
        raise type(error)(f"message {index}: {error}") from None
    if role == "system" and any(isinstance(part, MediaPart) for part in parts):
        raise InputError(f"message {index}: a system message takes text alone")
    return _Message(role, parts, is_list=not isinstance(message["content"], str))
