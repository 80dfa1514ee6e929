"""Added tokens: strings that are one id each, matched in a text before the model splits it.

A tokenizer.json lists them with four flags. `single_word` finds a string only where no letter or
digit stands beside it; `lstrip` and `rstrip` take the spaces on that side with it; `normalized`
looks for it in the text as the normaliser leaves it, not in the text as it came. Neither GGUF nor
tokenizer.model can say any of this. The rules are those of the `tokenizers` library, corners too:
the longest string at the leftmost place is a match, and one that is then rejected is used up.

    finder = Finder([AddedToken("cat", 7, single_word=True)])
    list(finder.matches("the cat sat"))       # [Match(id=7, start=4, stop=7)]
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

from gemelo.errors import FileFormatError, UnsupportedError

SPACE = "▁"  # how pieces spell a space
MAX_STRINGS = 1 << 16
MAX_STRING_CHARS = 1024
MAX_ALL_CHARS = 1 << 18  # of all strings: both libraries build a table out of every character
MAX_LENGTHS = 96  # different lengths of strings that begin alike: each is tried at each place
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MAX_ID = 1 << 22
_MOST_COMPARED = 1 << 20  # characters, beyond which strings are rather looked for twice


@dataclass(frozen=True)
class AddedToken:
    """A string that is one id wherever it is found; special: an instruction to the model."""

    content: str
    id: int
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @classmethod
    def parse(cls, entry: Any, id: Any, where: str) -> Self:
        """One entry of a file. Raises FileFormatError for what is no added string."""
        if not isinstance(entry, dict):
            raise FileFormatError(f"{where}: {entry!r:.60} is no added token")
        content = entry.get("content")
        flags = {name: entry.get(name, False) for name in _FLAGS}
        if not isinstance(content, str) or not 0 < len(content) <= MAX_STRING_CHARS:
            raise FileFormatError(
                f"{where}: the added token {id!r:.20} has no content of 1 to {MAX_STRING_CHARS} "
                f"characters: {content!r:.60}"
            )
        if type(id) is not int or not 0 <= id < _MAX_ID:
            raise FileFormatError(
                f"{where}: the added token {content!r:.60} has id {id!r:.30}: ids are 0 to "
                f"{_MAX_ID - 1}"
            )
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise FileFormatError(
                    f"{where}: {name} of the added token {content!r:.60} is {flag!r:.30}: "
                    "expected true or false"
                )
        return cls(content, id, **flags)

    @property
    def has_flags(self) -> bool:
        """Whether finding it takes more than comparing characters."""
        return self.single_word or self.lstrip or self.rstrip

    @property
    def is_own(self) -> bool:
        """Whether it is another thing than a piece of the same name: pieces write a space as
        U+2581, and are found in text that does."""
        return self.has_flags or self.normalized or " " in self.content

    @property
    def flags(self) -> str:
        """The names of its flags, for a sentence."""
        return ", ".join(name for name in _FLAGS[:4] if getattr(self, name))


def check_all(num_chars: int) -> None:
    """Raises FileFormatError for strings of so many characters in all that looking takes long."""
    if num_chars > MAX_ALL_CHARS:
        raise FileFormatError(
            f"the added tokens have {num_chars:,} characters in all: the limit is {MAX_ALL_CHARS:,}"
        )


class Match(NamedTuple):
    """An id, and the part of the text that it stands for."""

    id: int
    start: int
    stop: int


class Finder:
    """Finds the longest of some strings at each place of a text, from left to right."""

    def __init__(self, strings: Iterable[AddedToken]) -> None:
        """Raises UnsupportedError for strings that would take too long to look for."""
        self._strings = {string.content: string for string in strings}
        lengths: dict[str, set[int]] = {}
        for content in self._strings:
            lengths.setdefault(content[0], set()).add(len(content))
        for first, each in lengths.items():
            if len(each) > MAX_LENGTHS:
                raise UnsupportedError(
                    f"{len(each)} lengths of added tokens begin with {first!r}: the limit is "
                    f"{MAX_LENGTHS}"
                )
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}

    def __bool__(self) -> bool:
        return bool(self._strings)

    @cached_property
    def _openings(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._lengths))) or r"(?!)")

    def split(self, text: str, skipped: Container[int] = ()) -> Iterator[str | Match]:
        """The text with what is found in it taken out: text, match, text, match, ..."""
        done = 0
        for match in self.matches(text, skipped):
            if match.start > done:
                yield text[done : match.start]
            yield match
            done = match.stop
        if done < len(text):
            yield text[done:]

    def matches(self, text: str, skipped: Container[int] = ()) -> Iterator[Match]:
        """What is found in `text`, in order; the ids in `skipped` are passed over as text.

        A match begins before the end of the last one where both claim the spaces between them.
        """
        taken = 0
        for string, start, stop in self._places(text):
            if string.id in skipped or (string.single_word and _is_in_word(text, start, stop)):
                continue
            if string.lstrip:
                start = max(start - _num_spaces_at_end(text[taken:start]), taken)
            if string.rstrip:
                stop = _SPACE_RUN.match(text, stop).end()  # type: ignore[union-attr]
            if start < stop:  # else it was one of the spaces that the last match took
                yield Match(string.id, start, stop)
            taken = stop

    def _places(self, text: str) -> Iterator[tuple[AddedToken, int, int]]:
        """Where the strings are, before their flags are asked."""
        end = 0
        for opening in self._openings.finditer(text):
            start = opening.start()
            if start < end:
                continue
            for length in self._lengths[text[start]]:
                string = self._strings.get(text[start : start + length])
                if string is not None:
                    end = start + len(string.content)
                    yield string, start, end
                    break


@dataclass(frozen=True)
class AddedVocabulary:
    """Strings to look for first, in the text as it came, and then, in what is left between them, in
    the text as it is normalised."""

    raw: tuple[AddedToken, ...]
    late: tuple[AddedToken, ...]
    spaced: bool

    @classmethod
    def of(cls, strings: Iterable[AddedToken], first: Container[str], spaced: bool) -> Self | None:
        """None where it is the same to look for all at once, by comparing characters.

        first: those that are looked for first whatever their flag says; spaced: whether
        normalising writes spaces as U+2581 and does no more.
        """
        tokens = list(strings)
        raw = tuple(s for s in tokens if not s.normalized or s.content in first)
        late = tuple(s for s in tokens if s.normalized and s.content not in first)
        alike = _is_alike(raw, late, spaced)
        if any(s.has_flags or " " in s.content for s in tokens) or not alike:
            return cls(raw, late, spaced)
        return None

    @property
    def flagged(self) -> set[str]:
        """The strings that are not to be found by comparing characters."""
        return {string.content for string in (*self.raw, *self.late) if string.is_own}

    @property
    def example(self) -> str:
        """One of the strings that need this, with its flags, for a sentence."""
        string = max(self.raw + self.late, key=lambda s: (s.has_flags, s.normalized, s.is_own))
        return f"{string.content!r:.60} ({string.flags or 'a space in it'})"


def _is_alike(raw: Sequence[AddedToken], late: Sequence[AddedToken], spaced: bool) -> bool:
    """Whether late strings may be looked for with the others: none holds one of those, or ends as
    one of those begins; and normalising leaves all of them as they are."""
    if not late:
        return True
    size = sum(len(s.content) for s in raw) + sum(len(s.content) ** 2 for s in late)
    if not spaced or size > _MOST_COMPARED:
        return False
    begun = {begun for s in raw for begun in _beginnings(s.content)}
    whole = {s.content for s in raw}
    for content in (s.content for s in late):
        ends = {content[start:] for start in range(1, len(content))}
        inside = {c for start in range(len(content)) for c in _beginnings(content[start:])}
        if " " in content or SPACE in content or ends & begun or inside & whole:
            return False
    return True


def _beginnings(text: str) -> Iterator[str]:
    return (text[:length] for length in range(1, len(text) + 1))


def _is_in_word(text: str, start: int, stop: int) -> bool:
    before = start > 0 and _is_word(text[start - 1])
    return before or (stop < len(text) and _is_word(text[stop]))


def _is_word(character: str) -> bool:
    r"""Whether a character is one of \w, as Unicode's technical standard 18 has it."""
    category = unicodedata.category(character)
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or character in "\u200c\u200d"
        or (category == "So" and _CIRCLED.fullmatch(character) is not None)
    )


def _num_spaces_at_end(text: str) -> int:
    return len(text) - len(text.rstrip(_SPACES))


_CIRCLED = re.compile(
    "[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]"
)
# White_Space of Unicode, which is less than str.isspace takes for spaces.
_SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_SPACE_RUN = re.compile(f"[{_SPACES}]*")
