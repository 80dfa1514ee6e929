"""Chat messages of a conversation: roles and contents, kept, turned into a prompt, saved.

Messages are all the state there is; how they become a prompt is a function chosen once, by what the
model can read. A model with a chat template takes them as they are. A base model has no turns: it
is given one text, everything said so far, and goes on from there.

    talk = Conversation(prompt_for(model));  talk.ask("Hi");  talk.answer("Hello.")
    model.stream(talk.prompt())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemelo.errors import FileFormatError, GemeloError, InputError
from gemelo.text_files import parse_json, read_text

if TYPE_CHECKING:
    from gemelo.api import Model, PromptLike

Message = dict[str, Any]  # content is a text, or a list of parts with a text at its end
Snapshot = tuple[list[Message], list[dict[str, str]]]  # the messages, and what is attached
TEXT_ONLY = "a base model continues text; pictures and sound need a chat template"
_ROLES = ("system", "user", "assistant")
_MAX_FILE_BYTES = 64 << 20


def prompt_for(model: Model) -> Callable[[Sequence[Message]], PromptLike]:
    """How this model reads messages: as they are, or as one text where it has no chat template."""
    return as_turns if model.tokenizer.chat_template is not None else as_text


def as_turns(messages: Sequence[Message]) -> PromptLike:
    """Messages for a chat template."""
    return list(messages)


def as_text(messages: Sequence[Message]) -> PromptLike:
    """Everything said so far, in one text without marks between."""
    if not all(isinstance(message["content"], str) for message in messages):
        raise InputError(TEXT_ONLY)
    return "".join(message["content"] for message in messages)


class Conversation:
    """Messages, and the transitions between them."""

    def __init__(self, to_prompt: Callable[[Sequence[Message]], PromptLike]) -> None:
        self.messages: list[Message] = []
        self.attached: list[dict[str, str]] = []  # to what the user says next
        self._to_prompt = to_prompt

    def prompt(self) -> PromptLike:
        """What the model is to continue."""
        return self._to_prompt(self.messages)

    @property
    def system(self) -> str:
        """The instructions in front, "" where there are none."""
        first = self.messages[:1]
        return str(first[0]["content"]) if first and first[0]["role"] == "system" else ""

    @system.setter
    def system(self, text: str) -> None:
        turns = self.messages[1:] if self.system else self.messages
        self.messages = [{"role": "system", "content": text}, *turns] if text else list(turns)

    def ask(self, text: str) -> None:
        """Add what the user says, and what was attached to it."""
        parts = [*self.attached, {"type": "text", "text": text}]
        self.messages.append({"role": "user", "content": parts if self.attached else text})
        self.attached = []

    def attach(self, kind: str, path: Path) -> None:
        """Show or play a file with what the user says next."""
        self.attached.append({"type": kind, "path": str(path.absolute())})

    def answer(self, text: str) -> None:
        """Add what the model said; the question is taken back if it said nothing."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.take_back("user")

    def snapshot(self) -> Snapshot:
        """What there is now, for `restore`."""
        return list(self.messages), list(self.attached)

    def restore(self, snapshot: Snapshot) -> None:
        """As it was at a snapshot, attachments included."""
        self.messages, self.attached = snapshot

    def take_back(self, role: str) -> bool:
        """Drop the last message if it is of `role`; whether it was."""
        if not self.messages or self.messages[-1]["role"] != role:
            return False
        self.messages.pop()
        return True

    def clear(self) -> None:
        """Forget what was said, keep the instructions."""
        self.attached = []
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def save(self, path: Path) -> None:
        """Write the messages as JSON; an interrupted write leaves the old file.

        Raises `InputError` for a file that holds anything but a conversation: it stays.
        """
        from gemelo.weights.files import replaced

        _check_replaceable(path)
        with replaced(path) as file:
            file.write(_packed(self.messages))

    def load(self, path: Path) -> None:
        """Take the messages of a file that `save` wrote, or one {"messages": [...]}.

        Raises `InputError`, changing nothing, for a file that holds anything else.
        """
        self.messages = [_checked(path, number, one) for number, one in enumerate(_read(path))]


def _packed(messages: Sequence[Message]) -> bytes:
    try:
        return f"{json.dumps(messages, indent=2, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and UTF-8 cannot
        return f"{json.dumps(messages, indent=2)}\n".encode()


def _check_replaceable(path: Path) -> None:
    try:
        if path.is_file() and path.stat().st_size > 0:
            _read(path)
    except OSError:
        return  # the writer says why
    except InputError:
        raise InputError(
            f"{path} is there already and holds no conversation; choose another name"
        ) from None


def _read(path: Path) -> Sequence[Any]:
    try:
        value = parse_json(read_text(path, _MAX_FILE_BYTES), str(path))
    except FileFormatError as error:
        raise InputError(str(error)) from None
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise InputError(f"{path} holds no list of messages")
    return messages


def _checked(path: Path, number: int, message: Any) -> Message:
    if isinstance(message, Mapping):
        role, content = message.get("role"), message.get("content")
        if role in _ROLES and (role != "system" or number == 0):
            if isinstance(content, str):
                return {"role": str(role), "content": content}
            if role == "user" and isinstance(content, list) and content:
                return {"role": "user", "content": _checked_parts(path, number, content)}
    raise InputError(
        f"{path}: message {number} must be an object with a role ({', '.join(_ROLES)}; system "
        "first) and a content that is text"
    )


def _checked_parts(path: Path, number: int, content: list[Any]) -> list[Any]:
    from gemelo.inputs.media.parts import parse_content

    try:
        parse_content(content)
    except GemeloError as error:
        raise InputError(f"{path}: message {number}: {error}") from None
    return content
