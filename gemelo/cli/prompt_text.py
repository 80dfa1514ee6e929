"""The text of a prompt: from the command line's words, a file, or a pipe on stdin.

llama.cpp has -p and -f, Ollama a word of the command line or a pipe; all of them work. What is
read from a file or a pipe is read as text: a byte order mark is no part of it, CRLF ends a line as
LF does, and the last line's end is dropped, because `echo` adds one. A shell makes several words of
a prompt without quotes, which is told with the command that works.

    text = prompt_text(PromptSource(prompt="The capital of France is"))
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gemelo.checkpoints import known
from gemelo.checkpoints.locate import expanded
from gemelo.cli.paths import media_in
from gemelo.cli.terminal import MAX_TEXT_BYTES, checked_text, note, read_stdin, text_of
from gemelo.errors import InputError
from gemelo.inputs.media.parts import NOUNS
from gemelo.text_files import read_bytes


@dataclass(frozen=True)
class PromptSource:
    """Where a prompt may come from; at most one of them is given."""

    prompt: str | None = None  # of the command line; - is stdin
    option: str | None = None  # of --prompt
    file: str | None = None  # of --file; - is stdin


def prompt_text(source: PromptSource) -> str:
    """The prompt; stdin's where none is given and stdin is no terminal."""
    named = {"PROMPT": source.prompt, "--prompt": source.option, "--file": source.file}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"both {given[0]} and {given[1]} are given; give one of them")
    if source.option is not None:
        return checked_text("--prompt", source.option)
    if source.prompt not in (None, "-"):
        return checked_text("the prompt", source.prompt)
    if source.file not in (None, "-"):
        return _file_text(source.file)
    if not given and not piped():
        raise InputError(
            'there is no PROMPT: give one in quotes, as in gemelo generate "The capital of France '
            'is", or pipe a text in'
        )
    text = plain(read_stdin())
    if not text:
        raise InputError("the prompt is empty: stdin holds no text; give PROMPT")
    return text


def piped() -> bool:
    """Whether stdin is something to read a text from, and not a terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()


def plain(text: str) -> str:
    """A text that was piped or kept in a file, as if it had been typed."""
    return text.replace("\r\n", "\n").removesuffix("\n")


def _file_text(path: str) -> str:
    if path == "":
        raise InputError("--file is empty: name a file")
    text = plain(text_of(read_bytes(expanded(path), MAX_TEXT_BYTES), path))
    if not text:
        raise InputError(f"the prompt is empty: {path} holds no text")
    return text


# ---- what people type ----------------------------------------------------------------------------


def unquoted(
    command: str, source: PromptSource, rest: Sequence[str], words: Sequence[str]
) -> InputError:
    """Of the rest of a command line's words, behind a prompt: what to type instead."""
    for word in rest:
        for kind, path in media_in(word):
            return InputError(
                f"{path} stands behind the prompt: --{kind} {shlex.quote(path)} attaches it"
            )
    said = [word for word in (source.option, source.prompt, *rest) if word is not None]
    others = _others(words, said)
    line = " ".join((command, *map(shlex.quote, others), _quoted(" ".join(said))))
    return InputError(f"a prompt of several words needs quotes: {line}")


def _others(words: Sequence[str], said: Sequence[str]) -> list[str]:
    """The words of a command line without the prompt's, of which one may be in --prompt=WORD."""
    others = list(words)
    for word in said:
        joined = (one for one in others if one.startswith("-") and one.endswith(word))
        spelt = word if word in others else next(joined, None)
        if spelt is not None:
            others.remove(spelt)
    last = others[-1:]  # where the prompt will stand
    return [word for word in others[:-1] if word not in ("-p", "--prompt")] + last


def several_texts(command: str, words: Sequence[str]) -> InputError:
    """Of words where one TEXT was expected: the first may be a model's name."""
    first, *rest = words
    if (
        first == known.DEMO
        or known.hub_id(first)
        or "/" in first
        or first.lower().endswith(".gguf")
    ):
        return InputError(
            f"the model is an option here: {command} -m {shlex.quote(first)} "
            f"{_quoted(' '.join(rest))}"
        )
    return InputError(f"a text of several words needs quotes: {command} {_quoted(' '.join(words))}")


def _quoted(text: str) -> str:
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def note_media_files(text: str) -> None:
    """Say how to attach a file that a prompt without attachments names."""
    for kind, path in media_in(text):
        note(
            f"note: the model sees {path} as text, not the {NOUNS[kind]}; "
            f"--{kind} {shlex.quote(path)} attaches it"
        )
