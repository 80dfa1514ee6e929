"""Markdown tables of measured figures: rows of text between markers of a page.

A page says where a table goes with `<!-- table NAME -->` and `<!-- /table -->`, each on a line of
its own; what stands between them is the script's. A name that no table has is an error, so that a
marker can not be forgotten.

    page = filled("<!-- table speeds -->\\n<!-- /table -->", {"speeds": lambda: "| a |"})
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

MISSING = "-"  # not measured in any kept run
_MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.S)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without an end of line after its last row."""
    lines = [_line(head, " "), _line(["---"] * len(head), ""), *(_line(row, " ") for row in body)]
    return "\n".join(lines)


def _line(cells: Sequence[str], space: str) -> str:
    return "|" + "|".join(f"{space}{cell}{space}" if cell else " " for cell in cells) + "|"


def significant(value: float) -> str:
    """Three digits that mean something; whole numbers from a hundred on."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}".rstrip(".")


def filled(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with every marked table written anew. Raises KeyError for a name without one."""
    return _MARKED.sub(lambda found: f"{found[1]}{tables[found[2]]()}\n{found[3]}", page)


def names(page: str) -> list[str]:
    """The tables that a page asks for, in order."""
    return [found[2] for found in _MARKED.finditer(page)]
