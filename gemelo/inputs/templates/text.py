"""Text with provenance: each character knows if the template or a message wrote it.

Only the template may write control strings. So every text a template handles is one of two things:
a `Text`, with a mark for each character, or a plain str, which counts as said by people in whole.
Whatever Python does to a `Text` without knowing of marks yields a plain str: what is not understood
errs to the safe side. Comparing, hashing and searching see the very characters.

    turn = joined([own("<start_of_turn>"), said("<end_of_turn>")])
    list(spans(turn))       # [("<start_of_turn>", True), ("<end_of_turn>", False)]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

OWN, SAID = b"\0", b"\1"


class Text(str):
    """Characters with a mark for each: OWN for the template's, SAID for people's."""

    __slots__ = ("marks",)
    marks: bytes

    def __new__(cls, chars: str, marks: bytes) -> Self:
        made = super().__new__(cls, chars)
        made.marks = marks
        return made


class Safe(Text):
    """What a template declared free of HTML's dangers: adding text to it escapes that text."""

    __slots__ = ()


def own(chars: str) -> Text:
    """Text of the template's."""
    return Text(chars, OWN * len(chars))


def said(chars: str) -> Text:
    """Text of people's."""
    return Text(chars, SAID * len(chars))


def marks_of(text: str) -> bytes:
    return text.marks if isinstance(text, Text) else SAID * len(text)


def cut(text: str, start: int | None, stop: int | None = None, step: int | None = None) -> Text:
    """text[start:stop:step]"""
    part = slice(start, stop, step)
    return Text(str.__getitem__(text, part), marks_of(text)[part])


def joined(parts: Sequence[str]) -> Text:
    return Text("".join(parts), b"".join(map(marks_of, parts)))


def repeated(text: str, times: int) -> Text:
    return Text(str.__mul__(text, times), marks_of(text) * times)


def blend(chars: str, sources: Iterable[str]) -> Text:
    """`chars`, made of `sources` in a way that lost whose each is: the template's if all are."""
    return said(chars) if any(SAID in marks_of(source) for source in sources) else own(chars)


def marked_like(chars: str, source: str) -> Text:
    """`chars`, made of `source` character by character; where that cannot be, as `blend`."""
    if len(chars) == len(source):
        return Text(chars, marks_of(source))
    return blend(chars, (source,))


def located(pieces: Iterable[str], source: str) -> list[Text]:
    """Texts cut from `source`, each at the first place behind the one before."""
    texts, position = [], 0
    for piece in pieces:
        position = str.find(source, piece, position)
        texts.append(cut(source, position, position + len(piece)))
        position += len(piece)
    return texts


def spans(text: str) -> Iterator[tuple[str, bool]]:
    """The runs of `text` by one writer, and whether that is the template."""
    marks = marks_of(text)
    start = 0
    while start < len(text):
        mine = marks[start : start + 1]
        stop = marks.find(SAID if mine == OWN else OWN, start)
        stop = len(text) if stop < 0 else stop
        yield str.__getitem__(text, slice(start, stop)), mine == OWN
        start = stop
