"""Text in a terminal's width: lines broken between words, and a list of two columns.

A terminal breaks what is too long wherever its edge is. Notes and lists are broken between words
here; the model's own words are left to the terminal, which alone can join them again when its
window changes. Words that are longer than a line (paths) stay whole, so that they can be copied.

    wrapped("one sentence", 40)      # a text of lines
    two_columns([("/help", "this list")], 80)
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence

DEFAULT_WIDTH = 80
_LEAST_RIGHT = 40  # characters of the right column, or it goes below the left one


def stderr_width() -> int | None:
    """Columns of the terminal that stderr is; None where it is none."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return DEFAULT_WIDTH
    return columns or DEFAULT_WIDTH  # 0 where a terminal does not know


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """Text with its lines broken between words; those after a break begin with `indent`."""
    if width is None:
        return text
    return "\n".join(_broken(line, width, indent) for line in text.split("\n"))


def _broken(line: str, width: int, indent: str) -> str:
    if len(line) <= width:
        return line
    begin = line[: len(line) - len(line.lstrip(" "))]
    return textwrap.fill(
        line.strip(" "),
        max(width, len(begin + indent) + 2),
        initial_indent=begin,
        subsequent_indent=begin + indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def two_columns(rows: Sequence[tuple[str, str]], width: int | None) -> str:
    """Names and what they mean, side by side; one above the other in a narrow terminal."""
    left = 2 + max((len(name) for name, _ in rows), default=0) + 2
    if width is not None and width < left + _LEAST_RIGHT:
        return "\n".join(
            f"{wrapped(f'  {name}', width)}\n{wrapped(f'    {meaning}', width)}"
            for name, meaning in rows
        )
    return "\n".join(
        wrapped(f"{f'  {name}':{left}}{meaning}", width, " " * (left - 2)) for name, meaning in rows
    )
