"""Chat template: messages and media to a prompt of token ids.

Gemma's turns are written here in plain Python; any other template that a file brings is run by
`templates`. Either way only the template's own markers become control ids: a message that contains
`<end_of_turn>` has it encoded as text and cannot end its turn. Text between two markers is
encoded in one go, so that newlines merge across the borders of a message exactly as they do
elsewhere. Pictures, recordings and videos are handed to a `MediaLoader`, which opens them and
says what they are in the text.

    prompt = render([{"role": "user", "content": "Hello"}], tokenizer)
    prompt.ids      # (2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107)
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from gemelo.config import Modalities
from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media.audio import Samples
from gemelo.inputs.media.image import Picture
from gemelo.inputs.media.parts import Part, TextPart
from gemelo.inputs.prompt.media_loader import MediaLoader
from gemelo.inputs.prompt.messages import Message, check_alternating_roles, parse_messages
from gemelo.inputs.prompt.placeholders import (
    AudioPlaceholder,
    Chunk,
    ImagePlaceholder,
    Placeholder,
    check_modalities,
    fill_placeholders,
    tokenize,
)
from gemelo.inputs.templates.text import own, said
from gemelo.inputs.tokenizer.token_ids import token_ids
from gemelo.inputs.tokenizer.tokenizer import Tokenizer, check_text

# Gemma 3's template, as `render_gemma_template` has it. A variant of it is run like any other.
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
        for name, type in (("pictures", Picture), ("recordings", Samples)):
            value = getattr(self, name)
            for item in value if isinstance(value, Sequence) else (value,):
                if not isinstance(item, type):
                    raise InputError(
                        f"a prompt's {name} are a list of {type.__name__}, not {item!r:.100}"
                    )
        return replace(self, ids=tuple(token_ids(self.ids)))


@dataclass(frozen=True)
class _LoadedMessage:
    """A message with its media opened: texts, and placeholders of pictures and recordings."""

    role: str
    chunks: tuple[str | Placeholder, ...]
    is_list: bool
    more: Mapping[str, Any]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(chunk for chunk in self.chunks if isinstance(chunk, str))


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    media_loader: MediaLoader | None = None,
    allow_paths: bool = True,
) -> Prompt:
    """The prompt for `messages` by the tokenizer's own chat template.

    Messages are as `messages` has them. A system message may come first, then user and assistant
    take turns; where tools speak too, the template says who may follow whom. tools: what the model
    may call, each an object with the JSON schema of a function. add_generation_prompt: end where
    the model's answer begins. media_loader opens media, and knows which the model can take; None is
    a model for text. allow_paths: whether messages may name files of this machine. Raises
    InputError for messages that break these rules, UnsupportedError for media that the model has no
    tower for, for tools that the template has no place for, and for a base model.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UnsupportedError(
            "this is a base model, without a chat template: use plain completion, "
            "with the prompt as one text"
        )
    if _digest(template) == GEMMA_TEMPLATE_DIGEST and not tools:
        return render_gemma_template(
            messages,
            tokenizer,
            add_generation_prompt=add_generation_prompt,
            media_loader=media_loader,
            allow_paths=allow_paths,
        )
    parsed = parse_messages(messages, allow_paths=allow_paths)
    if tools or any(message.involves_tools for message in parsed):
        _check_tools(parsed, tools, template)
    else:
        check_alternating_roles(parsed)
    loaded = _loaded(parsed, media_loader)
    return _render_template(loaded, tokenizer, template, tools, add_generation_prompt, media_loader)


def render_gemma_template(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    media_loader: MediaLoader | None = None,
    allow_paths: bool = True,
) -> Prompt:
    """The prompt for `messages` in Gemma's turns, whatever the tokenizer's file says.

    As `render`, but never for want of a template; raises UnsupportedError for a vocabulary that has
    no `<start_of_turn>`.
    """
    parsed = parse_messages(messages, allow_paths=allow_paths)
    check_alternating_roles(parsed)
    loaded = _loaded(parsed, media_loader)
    return _in_turns(loaded, tokenizer, add_generation_prompt, media_loader)


def render_completion(
    parts: Sequence[Part], tokenizer: Tokenizer, media_loader: MediaLoader
) -> Prompt:
    """The prompt for plain completion: parts one after the other, control strings in texts read."""
    check_modalities(parts, media_loader.modalities)
    chunks: list[Chunk] = []
    for part in parts:
        if isinstance(part, TextPart):
            check_text(part.text)
            chunks += tokenizer.split(part.text)
        else:
            chunks += media_loader.expand(part)
    return _prompt(
        tokenizer.with_special_tokens(tokenize(chunks, media_loader.modalities, tokenizer)),
        media_loader,
    )


def _check_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, template: str
) -> None:
    """Refuse tools and what they say where a template would pass over it in silence."""
    from gemelo.inputs.templates.syntax import mentions

    listed = isinstance(tools, Sequence) and all(isinstance(tool, Mapping) for tool in tools)
    if tools and not listed:
        raise InputError("tools are a list of objects, each with the JSON schema of a function")
    if tools and not mentions(template, "tools"):
        raise UnsupportedError(
            "the model's chat template has no place for tools: describe them in a message"
        )
    if not mentions(template, "tool_calls", "tool", "tools"):
        check_alternating_roles(messages)


def _loaded(messages: Sequence[Message], media_loader: MediaLoader | None) -> list[_LoadedMessage]:
    """The messages with their media opened, once it is clear that the model can take them."""
    check_modalities(
        (part for message in messages for part in message.parts), _modalities(media_loader)
    )
    return [_said(message, media_loader) for message in messages]


def _modalities(media_loader: MediaLoader | None) -> Modalities:
    return Modalities() if media_loader is None else media_loader.modalities


def _said(message: Message, media_loader: MediaLoader | None) -> _LoadedMessage:
    chunks: list[str | Placeholder] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            chunks.append(part.text)
        elif media_loader is not None:
            chunks += media_loader.expand(part)
    return _LoadedMessage(message.role, tuple(chunks), message.is_list, message.more)


def _prompt(ids: Iterable[int], media_loader: MediaLoader | None) -> Prompt:
    if media_loader is None:
        return Prompt(tuple(ids))
    media = (
        tuple(media_loader.pictures),
        tuple(media_loader.recordings),
        tuple(media_loader.notices),
    )
    return Prompt(tuple(ids), *media)


def _in_turns(
    messages: Sequence[_LoadedMessage],
    tokenizer: Tokenizer,
    add_generation_prompt: bool,
    media_loader: MediaLoader | None,
) -> Prompt:
    opening, closing = (_control(tokenizer, name) for name in ("<start_of_turn>", "<end_of_turn>"))
    chunks: list[Chunk] = []
    for role, spoken in _turns(messages):
        chunks += [opening, f"{role}\n", *spoken, closing, "\n"]
    if add_generation_prompt:
        chunks += [opening, "model\n"]
    return _prompt(tokenize(chunks, _modalities(media_loader), tokenizer), media_loader)


def _turns(messages: Sequence[_LoadedMessage]) -> Iterator[tuple[str, list[Chunk]]]:
    """Gemma's (role, pieces): texts are trimmed, what the system says opens the first user turn."""
    prefix: list[Chunk] = []
    for message in messages:
        if message.role == "system":
            prefix = ["".join(message.texts) + "\n\n"]
            continue
        role = "model" if message.role == "assistant" else "user"
        trimmed = (p.strip() if isinstance(p, str) else p for p in message.chunks)
        yield role, [*prefix, *trimmed]
        prefix = []


def _control(tokenizer: Tokenizer, name: str) -> int:
    if name not in tokenizer.controls:
        raise UnsupportedError(f"the vocabulary has no {name}: this is no Gemma tokenizer")
    return tokenizer.controls[name]


def _render_template(
    messages: Sequence[_LoadedMessage],
    tokenizer: Tokenizer,
    template: str,
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    media_loader: MediaLoader | None,
) -> Prompt:
    from gemelo.inputs.templates.rendering import render_template

    text = render_template(
        template,
        [_for_templates(message) for message in messages],
        _tokens(tokenizer),
        add_generation_prompt=add_generation_prompt,
        variables={"tools": tools or None},
    )
    check_text(text)
    modalities = _modalities(media_loader)
    chunks = [chunk for message in messages for chunk in message.chunks]
    images = [chunk for chunk in chunks if isinstance(chunk, ImagePlaceholder)]
    recordings = [chunk for chunk in chunks if isinstance(chunk, AudioPlaceholder)]
    filled = fill_placeholders(text, images, recordings, modalities, tokenizer)
    ids = tokenize(filled, modalities, tokenizer)
    return _prompt(_with_one_bos(ids, tokenizer.bos_id), media_loader)


def _for_templates(message: _LoadedMessage) -> dict[str, Any]:
    """The message as templates expect it: its texts are people's, its role is a word of ours."""
    members = {"role": own(message.role), **message.more}
    if not message.chunks:
        return members
    # Gemma's template reads only the first part of a system message: give it one text.
    if message.role == "system" or not message.is_list:
        return members | {"content": said("".join(message.texts))}
    return members | {"content": [_part_for_templates(chunk) for chunk in message.chunks]}


def _part_for_templates(chunk: str | Placeholder) -> dict[str, str]:
    if isinstance(chunk, str):
        return {"type": own("text"), "text": said(chunk)}
    return {"type": own("image" if isinstance(chunk, ImagePlaceholder) else "audio")}


def _tokens(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    return {
        f"{name}_token": "" if id is None else tokenizer.pieces([id])[0] for name, id in ids.items()
    }


def _with_one_bos(ids: list[int], bos_id: int | None) -> list[int]:
    """Begun once: by the template, by the tokenizer's settings, or by both."""
    begun = next((index for index, id in enumerate(ids) if id != bos_id), len(ids))
    return ids[max(0, begun - 1) :]


def _digest(template: str) -> str:
    lines = "\n".join(template.strip().splitlines())
    return hashlib.sha256(lines.encode(errors="replace")).hexdigest()
