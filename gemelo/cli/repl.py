"""REPL of `gemelo chat`: takes one input after another, obeys /commands and answers all else.

Inputs come from an iterator (`lines`), so that the loop is the same on a terminal, from a pipe and
in a test. An error is one line, and the conversation goes on as it was before.

    run(dialogue, ["Hi", "/stats"])
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from gemelo.cli import commands
from gemelo.cli.dialogue import Dialogue
from gemelo.cli.lines import unquoted
from gemelo.cli.terminal import interactive, note
from gemelo.errors import GemeloError


def run(dialogue: Dialogue, inputs: Iterable[str]) -> None:
    """Take one input after another until they end or /bye.

    On a terminal Ctrl-C stops what an input does, and nothing else: between two inputs its signal
    is not heard, since the line editor has the key. From a pipe it ends the chat.
    """
    hears = signal.getsignal(signal.SIGINT)
    between = signal.SIG_IGN if interactive() else hears
    signal.signal(signal.SIGINT, between)
    try:
        for text in inputs:
            try:
                signal.signal(signal.SIGINT, hears)
                take(dialogue, text)
                signal.signal(signal.SIGINT, between)
            except GemeloError as error:
                signal.signal(signal.SIGINT, between)
                note(f"error: {error}")
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, between)
                if not interactive():
                    raise
                note("(stopped)")
            if dialogue.over:
                return
    finally:
        signal.signal(signal.SIGINT, hears)


def take(dialogue: Dialogue, text: str) -> None:
    """Obey a command, or answer what was said. Raises `GemeloError`; nothing is lost then."""
    word, _, rest = text.strip().partition(" ")
    message = unquoted(text)
    if message == text and not commands.is_one(word):  # quoted, it is meant as it stands
        dialogue.check_no_media(text)
    if text.startswith("/"):
        commands.find(word).act(dialogue, rest.strip())
    else:
        dialogue.say(message)
