"""Comparisons at a cost that is known: texts by length, lists and dicts item by item.

equal(budget, [1, "a"], [1, "a"])       # True
less(budget, "a", "b")                  # True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cmp_to_key
from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.values import (
    NUMBERS,
    Stream,
    Undefined,
    View,
    check_key,
    iterate,
    type_name,
)


def equal(budget: Budget, a: Any, b: Any) -> bool:
    """a == b"""
    budget.step()
    if isinstance(a, str) and isinstance(b, str):
        budget.read(min(len(a), len(b)))
        return str.__eq__(a, b)
    if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
        return bool(a == b)
    if a is b:
        return True
    if isinstance(a, list) and isinstance(b, list) or isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(equal(budget, x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(
            key in b and equal(budget, value, b[key]) for key, value in a.items()
        )
    if isinstance(a, range) and isinstance(b, range):
        return a == b
    return isinstance(a, Undefined) and isinstance(b, Undefined)


def less(budget: Budget, a: Any, b: Any, sign: str = "<") -> bool:
    """a < b; sign: how an error writes it."""
    budget.step()
    for value in (a, b):
        if isinstance(value, Undefined):
            value.fail()
    if isinstance(a, str) and isinstance(b, str):
        budget.read(min(len(a), len(b)))
        return str.__lt__(a, b)
    if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
        return bool(a < b)
    if isinstance(a, list) and isinstance(b, list) or isinstance(a, tuple) and isinstance(b, tuple):
        for x, y in zip(a, b, strict=False):
            if not equal(budget, x, y):
                return less(budget, x, y, sign)
        return len(a) < len(b)
    raise Fault(
        f"{sign!r} not supported between instances of {type_name(a)!r} and {type_name(b)!r}"
    )


def compare(budget: Budget, operator: str, a: Any, b: Any) -> bool:
    """One of Jinja's comparisons, by its name in the syntax tree."""
    if operator == "eq":
        return equal(budget, a, b)
    if operator == "ne":
        return not equal(budget, a, b)
    if operator == "lt":
        return less(budget, a, b)
    if operator == "gt":
        return less(budget, b, a, ">")
    if operator == "lteq":
        return less(budget, a, b, "<=") or equal(budget, a, b)
    if operator == "gteq":
        return less(budget, b, a, ">=") or equal(budget, a, b)
    return contains(budget, b, a) == (operator == "in")


def contains(budget: Budget, box: Any, item: Any) -> bool:
    """item in box"""
    if isinstance(box, str):
        if not isinstance(item, str):
            raise Fault(f"'in <string>' requires string as left operand, not {type_name(item)}")
        budget.find(len(box), len(item))
        return str.__contains__(box, item)
    if isinstance(box, dict):
        return check_key(budget, item) in box
    if isinstance(box, range):
        return _in_range(box, item)
    if isinstance(box, list | tuple | View | Stream | Undefined):
        return any(each is item or equal(budget, each, item) for each in iterate(budget, box))
    raise Fault(f"argument of type {type_name(box)!r} is not iterable")


def sorted_by(
    budget: Budget, items: Iterable[Any], key: Callable[[Any], Any], *, reverse: bool = False
) -> list[Any]:
    """sorted(items, key=key), every comparison counted."""

    def order(a: tuple[Any, Any], b: tuple[Any, Any]) -> int:
        if less(budget, a[0], b[0]):
            return -1
        return 1 if less(budget, b[0], a[0]) else 0

    keyed = []
    for item in items:
        budget.items(12)
        keyed.append((key(item), item))
    return [item for _, item in sorted(keyed, key=cmp_to_key(order), reverse=reverse)]


def _in_range(box: range, item: Any) -> bool:
    if isinstance(item, float):
        return item.is_integer() and int(item) in box
    return isinstance(item, int) and int(item) in box
