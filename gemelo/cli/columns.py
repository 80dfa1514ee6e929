"""Text tables for a terminal: aligned columns that fit its width, without a library.

A column that is empty throughout is left out. Where the width does not do, the columns that are
needed least go first; what stays is never cut off, and breaks between words only.

    columns = [Column("name", names), Column("MiB", sizes, numeric=True, rank=1)]
    for line in table(columns, width=80): ...
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TextIO

WIDE = 200  # columns of a file or a pipe
_READABLE = 100  # the longest lines of prose
_GAP = "  "


@dataclass(frozen=True)
class Column:
    """A heading and a cell a row. rank 0 always stays, and the highest is left out first; most is
    the width at which a cell goes on in the next line, 0 for none."""

    heading: str
    cells: Sequence[str]
    numeric: bool = False
    rank: int = 0
    most: int = 0

    @property
    def lines(self) -> list[list[str]]:
        """The lines of every cell."""
        return [_wrapped(cell, self.most) for cell in self.cells]

    @property
    def width(self) -> int:
        """The longest line of a cell, or the longest word of the heading."""
        inside = [len(line) for cell in self.lines for line in cell]
        return max([*inside, *map(len, self.heading.split())], default=0)


def width_of(stream: TextIO | None) -> int:
    """Characters in a line of a terminal; plenty for a file or a pipe."""
    if stream is None or not stream.isatty():
        return WIDE
    return shutil.get_terminal_size().columns


def table(columns: Sequence[Column], width: int) -> list[str]:
    """The lines of a table: headings, a rule, and the rows."""
    shown = [column for column in columns if any(column.cells)]
    while _needed(shown) > width and any(column.rank for column in shown):
        shown.remove(max(shown, key=lambda column: column.rank))
    headings = [_wrapped(column.heading, column.width) for column in shown]
    rows = zip(*(column.lines for column in shown), strict=True)
    rule = _GAP.join("-" * column.width for column in shown)
    lines = [*_row(shown, headings), rule]
    for row in rows:
        lines += _row(shown, row)
    return lines


def paragraph(text: str, width: int) -> list[str]:
    """A sentence in lines of a terminal's width, and never wider than is easy to read."""
    return _wrapped(text, max(20, min(width, _READABLE)))


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * max(0, len(columns) - 1)


def _row(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """A row's lines, as many as its longest cell has."""
    lines = []
    for parts in zip_longest(*cells, fillvalue=""):
        aligned = [
            part.rjust(column.width) if column.numeric else part.ljust(column.width)
            for column, part in zip(columns, parts, strict=True)
        ]
        lines.append(_GAP.join(aligned).rstrip())
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    if not width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
