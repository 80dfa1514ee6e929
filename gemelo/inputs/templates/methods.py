"""Methods of texts, lists and dicts that templates call, each at a cost that is known.

call_method(budget, Method(said("a b"), "split"), (), {})       # ["a", "b"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.loop import Loop
from gemelo.inputs.templates.order import equal
from gemelo.inputs.templates.text_methods import TEXT_METHODS, places
from gemelo.inputs.templates.values import (
    Method,
    View,
    check_key,
    iterate,
    listed,
    type_name,
)


def call_method(
    budget: Budget, method: Method, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> Any:
    """method(*arguments, **named)"""
    owner = method.owner
    if isinstance(owner, Loop):
        return getattr(owner, method.name)(*arguments, **named)
    known = METHODS.get(type_name(owner), {}).get(method.name)
    if known is None:
        raise Fault(
            f"the method {str(method.name[:80])!r} of {type_name(owner)!r} is not supported"
        )
    return known(budget, owner, *arguments, **named)


def _count(budget: Budget, items: Any, sought: Any) -> int:
    return sum(equal(budget, item, sought) for item in iterate(budget, items))


def _index(budget: Budget, items: Any, sought: Any, *bounds: Any) -> int:
    start, stop = (*places(bounds), None, None)[:2]
    searched = range(*slice(start, stop).indices(len(items)))
    for index in searched:
        if equal(budget, items[index], sought):
            return index
    raise Fault("the item sought is not in list")


def _copy(budget: Budget, value: Any) -> Any:
    budget.items(len(value))
    return value.copy()


def _copy_dict(budget: Budget, members: dict[Any, Any]) -> dict[Any, Any]:
    budget.entries(len(members))
    return members.copy()


def _get(budget: Budget, members: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return members.get(check_key(budget, key), default)


def _keys(budget: Budget, members: dict[Any, Any]) -> View:
    return View("dict_keys", listed(budget, members))


def _values(budget: Budget, members: dict[Any, Any]) -> View:
    budget.items(len(members))
    return View("dict_values", list(members.values()))


def items(budget: Budget, members: dict[Any, Any]) -> View:
    budget.entries(len(members))
    return View("dict_items", list(members.items()))


LIST_METHODS: dict[str, Callable[..., Any]] = {"count": _count, "index": _index, "copy": _copy}
DICT_METHODS: dict[str, Callable[..., Any]] = {
    "get": _get,
    "keys": _keys,
    "values": _values,
    "items": items,
    "copy": _copy_dict,
}
METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "str": TEXT_METHODS,
    "list": LIST_METHODS,
    "tuple": {"count": _count, "index": _index},
    "Group": {"count": _count, "index": _index},
    "range": {"count": _count, "index": _index},
    "dict": DICT_METHODS,
}
