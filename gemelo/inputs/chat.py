"""Messages to a prompt: who said what, put in the words the model was trained on.

Gemma's turns are written here in plain Python; any other template that a file brings is run by
`template`. Either way only the template's own markers become control ids: a message that contains
`<end_of_turn>` has it spelt out as text and cannot end its turn. Text between two markers is
encoded in one go, so that newlines merge across the borders of a message exactly as they do
elsewhere.

    prompt = render([{"role": "user", "content": "Hello"}], tokenizer)
    prompt.ids      # (2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107)
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.tokenizer import Tokenizer, check_text

# Gemma 3's template: it says what `render_turns` says. A variant of it is run like any other.
GEMMA_TEMPLATE_DIGEST = "8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29"
MEDIA = ("image", "image_url", "audio", "audio_url", "input_audio", "video", "video_url")


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it answers: token ids, BOS first."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Message:
    """A checked message: role is "system", "user" or "assistant"; parts are its texts."""

    role: str
    parts: tuple[str, ...]
    is_list: bool


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
) -> Prompt:
    """The prompt for `messages` by the tokenizer's own chat template.

    A message is {"role": "system" | "user" | "assistant" | "model", "content": text or a list of
    {"type": "text", "text": ...}}. A system message may come first, then user and assistant take
    turns. add_generation_prompt: end where the model's answer begins. Raises InputError for
    messages that break these rules, UnsupportedError for media and for a base model.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UnsupportedError(
            "this is a base model, without a chat template: use plain completion, "
            "with the prompt as one text"
        )
    if _digest(template) == GEMMA_TEMPLATE_DIGEST:
        return render_turns(messages, tokenizer, add_generation_prompt=add_generation_prompt)
    return _render_template(_check(messages), tokenizer, template, add_generation_prompt)


def render_turns(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
) -> Prompt:
    """The prompt for `messages` in Gemma's turns, whatever the tokenizer's file says.

    As `render`, but never for want of a template; raises UnsupportedError for a vocabulary that has
    no `<start_of_turn>`.
    """
    opening, closing = (_control(tokenizer, name) for name in ("<start_of_turn>", "<end_of_turn>"))
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for role, text in _turns(_check(messages)):
        turn = tokenizer.encode(f"{role}\n{text}", bos=False, special=False)
        ids += [opening, *turn, closing, *tokenizer.encode("\n", bos=False)]
    if add_generation_prompt:
        ids += [opening, *tokenizer.encode("model\n", bos=False)]
    return Prompt(tuple(ids))


def _turns(messages: Sequence[_Message]) -> Iterator[tuple[str, str]]:
    """Gemma's (role, text): parts are trimmed, what the system says opens the first user turn."""
    prefix = ""
    for message in messages:
        if message.role == "system":
            prefix = "".join(message.parts) + "\n\n"
            continue
        role = "model" if message.role == "assistant" else "user"
        yield role, prefix + "".join(part.strip() for part in message.parts)
        prefix = ""


def _control(tokenizer: Tokenizer, name: str) -> int:
    if name not in tokenizer.controls:
        raise UnsupportedError(f"the vocabulary has no {name}: this is no Gemma tokenizer")
    return tokenizer.controls[name]


def _render_template(
    messages: Sequence[_Message], tokenizer: Tokenizer, template: str, add_generation_prompt: bool
) -> Prompt:
    from gemelo.inputs.template import render_template

    mark = _unused_character(messages)
    # A mark behind each character that can open a control string leaves none whole in what was
    # said, nor any that would arise when a template joins or trims the parts of a message.
    openings = str.maketrans({name[0]: name[0] + mark for name in tokenizer.controls})
    text = render_template(
        template,
        [_translated(message, openings) for message in messages],
        _tokens(tokenizer),
        add_generation_prompt=add_generation_prompt,
    )
    check_text(text)
    ids: list[int] = []
    for part in tokenizer.split(text):
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += tokenizer.encode(part.replace(mark, ""), bos=False, special=False)
    return Prompt(tuple(_with_one_bos(ids, tokenizer.bos_id)))


def _unused_character(messages: Sequence[_Message]) -> str:
    """A character that no message contains, of those that Unicode keeps free for such use."""
    said = "".join(part for message in messages for part in message.parts)
    for code in range(0xFDD0, 0xFDF0):
        if chr(code) not in said:
            return chr(code)
    raise InputError("the messages contain all of U+FDD0 to U+FDEF, which are not characters")


def _translated(message: _Message, table: Mapping[int, str]) -> dict[str, Any]:
    """The message as templates expect it, every character of its texts replaced by `table`."""
    parts = [part.translate(table) for part in message.parts]
    # Gemma's template reads only the first part of a system message: give it one text.
    if message.role == "system" or not message.is_list:
        return {"role": message.role, "content": "".join(parts)}
    return {"role": message.role, "content": [{"type": "text", "text": part} for part in parts]}


def _tokens(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    return {
        f"{name}_token": "" if id is None else tokenizer.pieces([id])[0] for name, id in ids.items()
    }


def _with_one_bos(ids: list[int], bos_id: int | None) -> list[int]:
    if bos_id is None:
        return ids
    return [bos_id, *(id for id in ids if id != bos_id)]


def _digest(template: str) -> str:
    lines = "\n".join(template.strip().splitlines())
    return hashlib.sha256(lines.encode(errors="replace")).hexdigest()


def _check(messages: Sequence[Mapping[str, Any]]) -> list[_Message]:
    """The messages in one shape, or InputError for the first that is wrong."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise InputError("no messages: give a list with at least one user message")
    checked = [_check_message(index, message) for index, message in enumerate(messages)]
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


def _check_message(index: int, message: Mapping[str, Any]) -> _Message:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise InputError(f"message {index} is not an object with role and content")
    role = "assistant" if message["role"] == "model" else message["role"]
    if role not in ("system", "user", "assistant"):
        raise InputError(f"message {index} has role {role!r}: use system, user or assistant")
    content = message["content"]
    if isinstance(content, str):
        return _Message(role, (_checked_text(index, content),), is_list=False)
    if isinstance(content, list | tuple) and content:
        return _Message(role, tuple(_check_part(index, part) for part in content), is_list=True)
    raise InputError(
        f"message {index} has content {content!r:.60}: give a text, or a list of one or more parts"
    )


def _check_part(index: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in MEDIA:
        raise UnsupportedError(f"message {index} has a part of type {kind}: only text can be read")
    if not isinstance(part, Mapping) or kind != "text" or not isinstance(part.get("text"), str):
        raise InputError(
            f'message {index} has a part that is not {{"type": "text", "text": ...}}: {part!r:.60}'
        )
    return _checked_text(index, part["text"])


def _checked_text(index: int, text: str) -> str:
    try:
        check_text(text)
    except InputError as error:
        raise InputError(f"message {index}: {error}") from None
    return text
