"""What can go wrong for a user, in one line each.

Every error a caller can cause or cure is a `GemeloError`: its text names the value, the limit and
the cure. Anything else that escapes is a bug of ours and keeps its traceback. The command line
prints the text and leaves with `exit_code`; a server turns it into a 4xx body.

Much of such a text comes from a file: names of tensors, values of a config, what a template raised.
So an error makes one line of what it is given, of a length that can be read, and shows what a
terminal would obey.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

MAX_CHARS = 500  # of an error's text
SHOWN_CHARS = 80  # of a value in it
_MOST_SEARCHED = 1 << 21  # characters of a text in which long values are looked for
# A quoted value, or a run without spaces, that is longer than any file's name.
_LONG = re.compile(r"""'(?:[^'\\]|\\.){256,}'|"(?:[^"\\]|\\.){256,}"|\S{256,}""", re.DOTALL)
# Control, format (they turn the direction of writing, or are not seen), surrogate, line, paragraph.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def one_line(text: str, most: int = MAX_CHARS) -> str:
    """The text with every character shown that would move a cursor. In one longer than `most`
    characters long values are cut; if that is not enough its middle is left out: its beginning says
    what is wrong, its end how to cure it."""
    if most < len(text) <= _MOST_SEARCHED:
        text = _LONG.sub(_cut_value, text)
    if len(text) > most:
        ending = (most - 5) // 3
        text = f"{text[: most - 5 - ending]} ... {text[len(text) - ending :]}"
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(_shown(character) for character in text)
    return shown if len(shown) <= most else one_line(shown, most)


def cut(text: str, most: int = SHOWN_CHARS) -> str:
    """The text; of a long one the beginning, and how long it is."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def shown(value: object, most: int = SHOWN_CHARS) -> str:
    """A value as Python writes it; of a long one the beginning, and how long it is."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]!r}... ({len(value):,} characters)"
    return cut(repr(value), most + 2)  # with its quotes


def _cut_value(found: re.Match[str]) -> str:
    """A long value in a text, without what stands behind it."""
    quote = found[0][0] if found[0][0] in "'\"" and found[0][0] == found[0][-1] else ""
    inner = found[0][len(quote) : len(found[0]) - len(quote)]
    value = inner if quote else inner.rstrip(":;,.")
    return (
        f"{quote}{value[:SHOWN_CHARS]}{quote}... ({len(value):,} characters){inner[len(value) :]}"
    )


def listed(names: Sequence[str], most: int = 8, show: Callable[[str], str] = str) -> str:
    """The first `most` of some names as a text shows them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


class GemeloError(Exception):
    """Base of all errors that a user can cause or cure."""

    exit_code = 2

    def __init__(self, text: object = "") -> None:
        super().__init__(one_line(str(text)))


class InputError(GemeloError, ValueError):
    """An argument, a prompt or a message is wrong."""


class FileFormatError(GemeloError, ValueError):
    """A file is broken, truncated, or not what it claims to be."""


class UnsupportedError(GemeloError):
    """A file or request is well-formed but asks for what gemelo does not do."""


class ContextLengthError(InputError):
    """A prompt does not fit the model's context."""


class SessionBusyError(InputError):
    """A session is in the middle of a turn, or has gone on from where a stream stood."""


class ModelClosedError(InputError):
    """A model was closed, before a request or while it was under way."""


class UnavailableError(GemeloError):
    """Something outside is missing: a network, a hub repository, an optional package."""

    exit_code = 1


class MissingExtraError(UnavailableError):
    """An optional package is not installed, or too old; the text has the command to install it."""

    exit_code = 2
