"""Prompts of any kind: a text, messages, token ids, or a `Prompt`, checked and made a `Prompt`.

A text gets `<bos>`, messages get the chat template and their media are opened, ids stay as they
are. What is none of these is an error that says which it was taken for, and what to give.

    parse_prompt("The capital of", tokenizer, 8192, lambda: MediaLoader(config))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gemelo.errors import InputError
from gemelo.inputs.prompt import chat, placeholders
from gemelo.inputs.prompt.chat import Prompt
from gemelo.inputs.prompt.media_loader import MediaLoader
from gemelo.inputs.prompt.messages import are_messages, batch_of
from gemelo.inputs.tokenizer.token_ids import token_ids
from gemelo.inputs.tokenizer.tokenizer import Tokenizer

_KINDS = "a prompt is text, a list of messages or a list of token ids"


def parse_prompt(
    prompt: Any, tokenizer: Tokenizer, context: int, media_loader: Callable[[], MediaLoader]
) -> Prompt:
    """A prompt ready to be read. media_loader makes what opens the media of messages.

    Raises InputError for what is no prompt, ContextLengthError for messages of more ids than
    `context`, and as `chat.render` does.
    """
    if isinstance(prompt, Prompt):
        return prompt.checked()
    if isinstance(prompt, str):
        return Prompt(tuple(tokenizer.encode(prompt)))
    if texts := batch_of(prompt):
        raise InputError(
            f"a list of {len(texts)} texts is as many prompts, which generate() alone takes; "
            "call this with one after the other"
        )
    if are_messages(prompt):
        loader = media_loader()
        rendered = chat.render(prompt, tokenizer, media_loader=loader)
        if rendered.pictures or rendered.recordings:  # so that the error counts their tokens
            placeholders.check_context_length(rendered.ids, loader.modalities, context)
        return rendered
    return Prompt(tuple(_ids(prompt)))


def _ids(prompt: Any) -> list[int]:
    """The token ids that a prompt is; InputError for none, and for what is something else."""
    if prompt is None:
        raise InputError(f"there is no prompt, but None: {_KINDS}")
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        raise InputError(f'{_KINDS}: of what a tokenizer gave, take ["input_ids"]')
    try:
        ids = token_ids(prompt)
    except InputError as error:
        alone = isinstance(prompt, Mapping) and "content" in prompt
        hint = "; put the message in a list" if alone else ""
        raise InputError(f"{_KINDS}: {error}{hint}") from None
    if not ids:
        raise InputError("the prompt is empty; give text, messages or token ids")
    return ids
