"""Chat messages: roles, content parts and tool calls, checked.

A message is {"role": "system" | "user" | "assistant" | "model" | "tool", "content": text or a list
of parts, as `media.parse_content` has them}. An assistant that calls tools may leave its content
out. Whatever else a message has (tool_calls, name, reasoning_content) is for the chat template.

    messages = parse_messages([{"role": "user", "content": "Hello"}])
    check_alternating_roles(messages)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media.parts import MediaPart, Part, TextPart, parse_content
from gemelo.inputs.tokenizer.tokenizer import check_text

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """A checked message. more: its members beside role and content, as they came."""

    role: str
    parts: tuple[Part, ...]
    is_list: bool
    more: Mapping[str, Any]

    @property
    def involves_tools(self) -> bool:
        """Whether it calls tools, or is what one said."""
        return self.role == "tool" or bool(self.more.get("tool_calls"))


def parse_messages(messages: Any, *, allow_paths: bool = True) -> list[Message]:
    """The messages in one shape, or InputError for the first that is wrong."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise InputError("no messages: give a list with at least one user message")
    parsed = [_parse(index, message, allow_paths) for index, message in enumerate(messages)]
    if all(message.role == "system" for message in parsed):
        raise InputError("a system message alone says nothing to answer: add a user message")
    return parsed


def check_alternating_roles(messages: Sequence[Message]) -> None:
    """InputError unless, after one system message or none, user and assistant take turns."""
    for index, message in enumerate(messages):
        if message.involves_tools:
            has = "role 'tool'" if message.role == "tool" else "tool_calls"
            raise InputError(
                f"message {index} has {has}: use system, user or assistant without them, "
                "since the model's chat template has no place for tools"
            )
    first = 1 if messages[0].role == "system" else 0
    for index, message in enumerate(messages[first:], first):
        expected = "assistant" if (index - first) % 2 else "user"
        if message.role != expected:
            raise InputError(
                f"message {index} has role {message.role!r}, expected {expected!r}: "
                "after an optional system message, user and assistant take turns"
            )


def _parse(index: int, message: Any, allow_paths: bool) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        raise InputError(f"message {index} is not an object with role and content")
    role = "assistant" if message["role"] == "model" else message["role"]
    if role not in ROLES:
        raise InputError(f"message {index} has role {role!r}: use {', '.join(ROLES)}")
    more = {name: value for name, value in message.items() if name not in ("role", "content")}
    content = message.get("content")
    if content is None and role == "assistant" and more.get("tool_calls"):
        kept = {"content": None} if "content" in message else {}
        return Message(role, (), False, kept | more)
    if "content" not in message:
        raise InputError(f"message {index} is not an object with role and content")
    parts = _parts(index, content, allow_paths)
    if role == "system" and any(isinstance(part, MediaPart) for part in parts):
        raise InputError(f"message {index}: a system message takes text alone")
    return Message(role, parts, not isinstance(content, str), more)


def _parts(index: int, content: Any, allow_paths: bool) -> tuple[Part, ...]:
    try:
        parts = parse_content(content, allow_paths=allow_paths)
        for part in parts:
            if isinstance(part, TextPart):
                check_text(part.text)
    except GemeloError as error:
        raise type(error)(f"message {index}: {error}") from None
    return parts


def are_messages(prompt: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Whether a prompt is a list of messages, and no text, ids or anything else."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def batch_of(prompt: Any) -> list[str]:
    """The texts of a list of prompts, none for what is one prompt; InputError for a mixed list."""
    if not isinstance(prompt, list | tuple) or not any(isinstance(one, str) for one in prompt):
        return []
    for index, one in enumerate(prompt):
        if not isinstance(one, str):
            raise InputError(
                f"prompt {index} of a list is of type {type(one).__name__}: all are texts"
            )
    return [*prompt]
