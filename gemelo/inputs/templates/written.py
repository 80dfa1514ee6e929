"""Serialisation of values: to text as Python prints them, and to JSON.

Every piece is counted before it is made, so that a list that holds itself many times over stops at
the budget, and keeps the marks of the texts in it.

    text_of(budget, 7)                               # "7"
    to_json(budget, {"a": [1, 2]}, Style())          # '{"a": [1, 2]}'
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.order import sorted_by
from gemelo.inputs.templates.text import SAID, Text, blend, joined, marks_of, own, said, spans
from gemelo.inputs.templates.values import (
    MAX_DEPTH,
    Function,
    Macro,
    Namespace,
    Stream,
    Undefined,
    View,
    is_said,
    type_name,
)

PIECE_STEPS = 3
SIGNS = {
    sign: own(sign) for sign in ("[", "]", "(", ")", "{", "}", "[]", "{}", ",", ", ", ": ", ">")
}
NO_TEXT = (Stream, Macro, Function)


@dataclass(frozen=True)
class Style:
    """The words of json.dumps that templates use."""

    ensure_ascii: bool = False
    indent: str | None = None
    item_separator: str = ", "
    key_separator: str = ": "
    sort_keys: bool = False


def text_of(budget: Budget, value: Any) -> str:
    """str(value), and its marks."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        return own("")
    if isinstance(value, list | tuple | dict | View | Namespace):
        writing = _Writing(budget)
        _represent(writing, value, 0)
        return writing.text()
    return _scalar(budget, value)


def representation(budget: Budget, value: Any) -> str:
    """repr(value), and its marks."""
    writing = _Writing(budget)
    _represent(writing, value, 0)
    return writing.text()


def concatenated(budget: Budget, parts: Iterable[str]) -> Text:
    """All parts in one text."""
    parts = list(parts)
    budget.text(sum(map(len, parts)))
    return joined(parts)


def to_json(budget: Budget, value: Any, style: Style) -> str:
    """json.dumps(value), and its marks."""
    writing = _Writing(budget)
    _write_json(writing, value, style, 0)
    return writing.text()


class _Writing:
    """Pieces of a text to be."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        self.budget.step(PIECE_STEPS)
        self.budget.texts(1, len(piece))
        self._pieces.append(piece)

    def text(self) -> Text:
        return concatenated(self.budget, self._pieces)


def _scalar(budget: Budget, value: Any) -> Text:
    if isinstance(value, NO_TEXT):
        raise Fault(f"a {type_name(value).lower()} is no text: for items, use | list first")
    if isinstance(value, int) and not isinstance(value, bool):
        budget.text(value.bit_length() // 3)
        return said(int.__repr__(value)) if is_said(value) else own(int.__repr__(value))
    if isinstance(value, float):
        return said(float.__repr__(value)) if is_said(value) else own(float.__repr__(value))
    if value is None or isinstance(value, bool | range):
        return own(str(value))
    raise Fault(f"a {type_name(value).lower()} is no text")


# ---- as Python prints ----------------------------------------------------------------------------


def _represent(writing: _Writing, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Fault(f"it writes a value nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        writing.budget.text(2 * len(value))
        writing.add(blend(repr(str.__str__(value)), (value,)))
    elif isinstance(value, Undefined):
        writing.add(own("Undefined"))
    elif isinstance(value, dict):
        _represent_dict(writing, value, depth)
    elif isinstance(value, Namespace):
        writing.add(own("<Namespace "))
        _represent_dict(writing, value.names, depth)
        writing.add(SIGNS[">"])
    elif isinstance(value, View):
        writing.add(own(f"{value.name}("))
        _represent_items(writing, value.items, "[]", depth)
        writing.add(SIGNS[")"])
    elif isinstance(value, list | tuple):
        _represent_items(writing, value, "[]" if isinstance(value, list) else "()", depth)
    else:
        writing.add(_scalar(writing.budget, value))


def _represent_items(
    writing: _Writing, items: list[Any] | tuple[Any, ...], brackets: str, depth: int
) -> None:
    writing.add(SIGNS[brackets[0]])
    for index, item in enumerate(items):
        if index:
            writing.add(SIGNS[", "])
        _represent(writing, item, depth + 1)
    if brackets == "()" and len(items) == 1:
        writing.add(SIGNS[","])
    writing.add(SIGNS[brackets[1]])


def _represent_dict(writing: _Writing, members: dict[Any, Any], depth: int) -> None:
    writing.add(SIGNS["{"])
    for index, (key, item) in enumerate(members.items()):
        if index:
            writing.add(SIGNS[", "])
        _represent(writing, key, depth + 1)
        writing.add(SIGNS[": "])
        _represent(writing, item, depth + 1)
    writing.add(SIGNS["}"])


# ---- as JSON -------------------------------------------------------------------------------------


def _write_json(writing: _Writing, value: Any, style: Style, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Fault(f"it writes JSON nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        writing.add(_json_text(writing.budget, value, style))
    elif value is None or isinstance(value, bool | int | float):
        writing.add(_json_scalar(writing.budget, value))
    elif isinstance(value, dict):
        _write_members(writing, value, style, depth)
    elif isinstance(value, list | tuple):
        _write_items(writing, value, style, depth)
    else:
        raise Fault(f"Object of type {type_name(value)} is not JSON serializable")


def _write_items(
    writing: _Writing, items: list[Any] | tuple[Any, ...], style: Style, depth: int
) -> None:
    if not items:
        writing.add(SIGNS["[]"])
        return
    writing.add(SIGNS["["])
    for index, item in enumerate(items):
        _separate(writing, style, index, depth + 1)
        _write_json(writing, item, style, depth + 1)
    _close(writing, style, "]", depth)


def _write_members(writing: _Writing, members: dict[Any, Any], style: Style, depth: int) -> None:
    if not members:
        writing.add(SIGNS["{}"])
        return
    keys = list(members)
    if style.sort_keys:
        keys = sorted_by(writing.budget, keys, lambda key: key)
    writing.add(SIGNS["{"])
    for index, key in enumerate(keys):
        _separate(writing, style, index, depth + 1)
        writing.add(_json_text(writing.budget, _json_key(writing.budget, key), style))
        writing.add(style.key_separator)
        _write_json(writing, members[key], style, depth + 1)
    _close(writing, style, "}", depth)


def _separate(writing: _Writing, style: Style, index: int, depth: int) -> None:
    if index:
        writing.add(style.item_separator)
    _break_line(writing, style, depth)


def _close(writing: _Writing, style: Style, bracket: str, depth: int) -> None:
    _break_line(writing, style, depth)
    writing.add(SIGNS[bracket])


def _break_line(writing: _Writing, style: Style, depth: int) -> None:
    if style.indent is not None:
        writing.budget.text(1 + depth * len(style.indent))
        writing.add(blend("\n" + str.__mul__(style.indent, depth), (style.indent,)))


def _json_key(budget: Budget, key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return _json_scalar(budget, key)
    raise Fault(f"keys must be str, int, float, bool or None, not {type_name(key)}")


def _json_scalar(budget: Budget, value: Any) -> Text:
    if value is None or isinstance(value, bool):
        return own({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, float):
        chars = json.dumps(float(value))
        return said(chars) if is_said(value) else own(chars)
    return _scalar(budget, value)


def _json_text(budget: Budget, text: str, style: Style) -> Text:
    """In quotes; a character is escaped by itself, so each run of marks can be."""
    budget.text((8 if style.ensure_ascii else 3) * len(text))
    quote = said('"') if SAID in marks_of(text) else own('"')
    parts: list[str] = [quote]
    for run, is_own in spans(text):
        budget.step()
        chars = json.dumps(run, ensure_ascii=style.ensure_ascii)[1:-1]
        parts.append(own(chars) if is_own else said(chars))
    return concatenated(budget, [*parts, quote])
