"""Limits on running a template: steps, and bytes of everything it makes.

Each is taken before it is spent, so that nothing is built and then found to be too large. Bytes are
counted when a value is made and never given back: what is made bounds what is held, and the time
that copying takes. A long conversation brings a larger budget with it.

    budget = Budget(num_values=12, num_chars=4000)
    budget.step()           # one node of the template is looked at
    budget.text(1000)       # a text of 1000 characters is about to be made
"""

from __future__ import annotations

MAX_STEPS = 100_000
MAX_STEPS_PER_VALUE = 400
MAX_STEPS_PER_CHAR = 10
MAX_BYTES = 20 << 20
MAX_BYTES_PER_VALUE = 4096
MAX_BYTES_PER_CHAR = 64
MAX_WRITTEN = 1 << 18  # characters of the whole prompt, which somebody has to tokenise
MAX_WRITTEN_PER_VALUE = 1024
MAX_WRITTEN_PER_CHAR = 16
MAX_BITS = 4096

CHAR_BYTES = 5  # four at most in a str, and one that says whose it is
TEXT_BYTES = 120
ITEM_BYTES = 8
LIST_BYTES = 80
SMALL_BITS = 60
CHARS_PER_STEP = 256
KEY_STEPS = 64  # of a tuple as a key: many can be chosen to meet in one slot of a table
ENTRY_ITEMS = 10  # an entry of a dict takes as much as so many items of a list

# Python's search from the left compares each character with each one sought where one of the two is
# short, or where there are few places to look at; else it takes time in proportion to both.
_FEW_SOUGHT, _FEW_PLACES = 100, 2500
_COMPARED_PER_STEP = 1024


class Fault(Exception):
    """What is wrong with a template, in words."""


class Budget:
    """The steps and bytes left for one rendering."""

    def __init__(self, num_values: int, num_chars: int) -> None:
        """For an input of so many values (messages, parts, texts) and characters in all."""
        self.max_steps = self._steps = (
            MAX_STEPS + MAX_STEPS_PER_VALUE * num_values + MAX_STEPS_PER_CHAR * num_chars
        )
        self.max_bytes = self._bytes = (
            MAX_BYTES + MAX_BYTES_PER_VALUE * num_values + MAX_BYTES_PER_CHAR * num_chars
        )
        self._max_written = (
            MAX_WRITTEN + MAX_WRITTEN_PER_VALUE * num_values + MAX_WRITTEN_PER_CHAR * num_chars
        )

    def step(self, count: int = 1) -> None:
        self._steps -= count
        if self._steps < 0:
            raise Fault(f"it takes more than {self.max_steps:,} steps")

    def read(self, num_chars: int) -> None:
        """A text of so many characters is about to be looked through."""
        self.step(1 + num_chars // CHARS_PER_STEP)

    def find(self, num_chars: int, num_sought: int) -> None:
        """As `read`, for so many characters sought from the left."""
        num_audio_tokens = max(0, num_chars - num_sought + 1)
        compared = num_audio_tokens * min(num_sought, _FEW_SOUGHT)
        compared += min(num_audio_tokens, _FEW_PLACES) * num_sought
        self.read(num_chars + num_sought)
        self.step(compared // _COMPARED_PER_STEP)

    def search(self, num_chars: int, num_sought: int) -> None:
        """As `read`, by one of the searches that may look at each character for each sought."""
        self.step(1 + num_chars * min(num_chars, num_sought) // CHARS_PER_STEP)

    def text(self, num_chars: int) -> None:
        if num_chars > self._bytes:
            raise Fault(f"it builds {num_chars:,} characters: {self._limit}")
        self._take(TEXT_BYTES + CHAR_BYTES * num_chars)

    def texts(self, count: int, num_chars: int) -> None:
        """As `text`, for the characters of `count` texts in a list."""
        self._take((TEXT_BYTES + ITEM_BYTES) * count + CHAR_BYTES * num_chars)

    def items(self, count: int) -> None:
        """A list, tuple or dict of so many items is about to be made."""
        if count > self._bytes:
            raise Fault(f"it builds a list of {count:,} items: {self._limit}")
        self.step(1 + count // CHARS_PER_STEP)
        self._take(LIST_BYTES + ITEM_BYTES * count)

    def entries(self, count: int) -> None:
        """As `items`, for the entries of a dict."""
        self.items(ENTRY_ITEMS * count)

    def written(self, num_chars: int) -> None:
        """The prompt has come to so many characters."""
        if num_chars > self._max_written:
            raise Fault(
                f"it writes {num_chars:,} characters: the limit is {self._max_written:,} "
                "for these messages"
            )

    def bits(self, count: int) -> None:
        """A whole number of up to so many bits is about to be made."""
        if count > MAX_BITS:
            raise Fault(f"it builds a number of {count:,} bits: the limit is {MAX_BITS:,}")
        if count > SMALL_BITS:
            self._take(ITEM_BYTES + count // 8)

    @property
    def _limit(self) -> str:
        return f"the limit is {self.max_bytes:,} bytes for all that it makes"

    def _take(self, num_bytes: int) -> None:
        self._bytes -= num_bytes
        if self._bytes < 0:
            raise Fault(f"it builds too much: {self._limit}")
