"""Where a chat's inputs come from: a line editor with history on a terminal, or a pipe.

Either way they are an iterator of texts, so that the loop is the same. A text that begins with
three double quotes goes on until they close it; Alt-Enter begins a new line anywhere. Enter sends,
also one that was pressed before there was a prompt: each line typed ahead is an input of its own,
and a paste is one, whenever it comes.

    for text in lines(quiet=False): ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from gemelo.checkpoints.locate import cache_folder
from gemelo.cli.terminal import interactive, note, text_lines
from gemelo.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

QUOTES = '"""'


def lines(quiet: bool) -> Iterator[str]:
    """Inputs from the terminal with editing and history, or from a pipe as they come."""
    if interactive():
        return typed(terminal_session(), quiet)
    if sys.stdin is None:
        raise InputError("there is no stdin to read the conversation from")
    return piped(sys.stdin.buffer)


def piped(source: Iterable[bytes]) -> Iterator[str]:
    """Lines as inputs, quoted blocks whole. Raises `InputError` for what is not UTF-8."""
    block = ""
    for line in text_lines(source):
        block += line
        if not unclosed(block):
            yield block.removesuffix("\n")
            block = ""
    if block:
        raise InputError(f"stdin ended inside {QUOTES}")


def typed(session: PromptSession[str], quiet: bool) -> Iterator[str]:
    """Inputs from a terminal until Ctrl-D; Ctrl-C clears the line, or hints how to leave.

    While an input is answered the terminal goes on marking what is a paste.
    """
    while True:
        text = _prompted(session, quiet)
        if text is None:
            return
        _mark_pastes(session, True)
        try:
            yield text
        finally:
            _mark_pastes(session, False)


def _prompted(session: PromptSession[str], quiet: bool) -> str | None:
    """The next input, asked for until one is sent; None for Ctrl-D."""
    while True:
        try:
            return session.prompt(">>> ", handle_sigint=False)
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not session.default_buffer.text and not quiet:
                note("(Ctrl-D or /bye leaves)")


def _mark_pastes(session: PromptSession[str], marked: bool) -> None:
    output = session.output
    (output.enable_bracketed_paste if marked else output.disable_bracketed_paste)()
    output.flush()


def terminal_session() -> PromptSession[str]:
    """An editor for inputs: history in a file, Alt-Enter for a new line, quoted blocks.

    Enter is a carriage return in the editor's own mode and a line feed in the shell's, in which it
    may have been typed; the editor takes both as Enter.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        future = event.app.future  # none, or done, where several keys came at once
        if future is not None and not future.done():
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    session: PromptSession[str] = PromptSession(
        history=history(),
        key_bindings=keys,
        output=create_output(sys.stderr),  # stdout is for the model's words
        multiline=Condition(lambda: unclosed(session.default_buffer.text)),
        prompt_continuation="... ",
        enable_suspend=True,
    )
    return session


def history() -> History:
    """What was typed before, kept in the cache folder; in memory where that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a disk that is full by now ends no chat
                super().store_string(string)

    try:
        path = cache_folder() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except (OSError, UnavailableError):
        return InMemoryHistory()
    return Kept(str(path)) if path.is_file() else InMemoryHistory()


def unclosed(text: str) -> bool:
    """Whether a quoted block has begun and not ended."""
    text = text.strip()
    return text.startswith(QUOTES) and not (text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES))


def unquoted(text: str) -> str:
    """The inside of a quoted block, or the text itself."""
    inner = text.strip()
    if inner.startswith(QUOTES) and not unclosed(inner):
        return inner[len(QUOTES) : -len(QUOTES)]
    return text
