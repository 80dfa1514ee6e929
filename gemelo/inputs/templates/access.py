"""Attributes, items and slices of a template's values, as Jinja's immutable sandbox gives them.

A dot prefers an attribute to an item, square brackets the item: `tool.items` is the method of a
dict, `tool["items"]` what is stored there. Methods that would change a value are not there.

    item(budget, {"role": "user"}, "role")      # "user"
"""

from __future__ import annotations

from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.loop import Loop
from gemelo.inputs.templates.text import cut, own
from gemelo.inputs.templates.values import (
    Group,
    Macro,
    Method,
    Namespace,
    Undefined,
    check_key,
    type_name,
)

CHANGING: dict[type, frozenset[str]] = {
    list: frozenset(["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"]),
    dict: frozenset(["clear", "pop", "popitem", "setdefault", "update"]),
}
BUILT_IN = (str, list, tuple, dict, range, bool, int, float)
MISSING = object()


def attribute(budget: Budget, owner: Any, name: str) -> Any:
    """owner.name"""
    if isinstance(owner, Undefined):
        owner.fail()
    value = _attribute(owner, name)
    if value is MISSING and isinstance(owner, dict):
        value = owner.get(name, MISSING)
    return _missing(owner, name) if value is MISSING else value


def item(budget: Budget, owner: Any, key: Any) -> Any:
    """owner[key]"""
    if isinstance(owner, Undefined):
        owner.fail()
    value = _item(budget, owner, key)
    if value is MISSING and isinstance(key, str):
        value = _attribute(owner, key)
    return _missing(owner, key) if value is MISSING else value


def slice_of(budget: Budget, owner: Any, start: Any, stop: Any, step: Any) -> Any:
    """owner[start:stop:step]"""
    if isinstance(owner, Undefined):
        owner.fail()
    whole = all(bound is None or isinstance(bound, int) for bound in (start, stop, step))
    if not whole or not isinstance(owner, str | list | tuple | range):
        raise Fault(f"{type_name(owner)!r} object cannot be sliced so")
    count = len(range(*slice(start, stop, step).indices(len(owner))))
    if isinstance(owner, str):
        budget.text(count)
        return cut(owner, start, stop, step)
    budget.items(count)
    return owner[start:stop:step]


def _item(budget: Budget, owner: Any, key: Any) -> Any:
    if isinstance(owner, dict):
        if isinstance(key, Undefined | list | dict):
            return MISSING
        return owner.get(check_key(budget, key), MISSING)
    if not isinstance(owner, str | list | tuple | range) or not isinstance(key, int):
        return MISSING
    if not -len(owner) <= key < len(owner):
        return MISSING
    if isinstance(owner, str):
        budget.text(1)
        index = int(key) % len(owner)
        return cut(owner, index, index + 1)
    return owner[key]


def _attribute(owner: Any, name: str) -> Any:
    if name.startswith("_"):
        return Undefined(_unsafe(owner, name)) if hasattr(owner, name) else MISSING
    if isinstance(owner, Namespace):
        return owner.names.get(name, MISSING)
    if isinstance(owner, Loop):
        return owner.attribute(name) if name in Loop.ATTRIBUTES else MISSING
    if isinstance(owner, Group) and name in Group._fields:
        return getattr(owner, name)
    if isinstance(owner, Macro) and name == "name":
        return own(owner.name)
    for known in BUILT_IN:
        if isinstance(owner, known):
            return _method(owner, known, name)
    return MISSING


def _method(owner: Any, known: type, name: str) -> Any:
    if not hasattr(known, name):
        return MISSING
    if name in CHANGING.get(known, frozenset()):
        return Undefined(_unsafe(owner, name))
    return Method(owner, name)


def _unsafe(owner: Any, name: str) -> str:
    return f"access to attribute {str(name[:80])!r} of {type_name(owner)!r} object is unsafe"


def _missing(owner: Any, name: Any) -> Undefined:
    if isinstance(name, str):
        return Undefined(f"'{type_name(owner)} object' has no attribute {str(name[:80])!r}")
    return Undefined(f"{type_name(owner)} object has no such element")
