"""Jinja's filters by name, and those that map a filter or test over a list.

call_filter(budget, "map", [" a "], ("trim",), {})        # a stream of "a"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.conditions import CONDITIONS, call_test
from gemelo.inputs.templates.list_filters import LIST_FILTERS, getter
from gemelo.inputs.templates.text_filters import TEXT_FILTERS
from gemelo.inputs.templates.values import Stream, iterate, type_name

NOT_SUPPORTED = frozenset(["filesizeformat", "random", "urlize", "wordwrap", "xmlattr"])


def call_filter(
    budget: Budget, name: str, value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> Any:
    """value | name(*arguments, **named)"""
    if not isinstance(name, str) or name not in FILTERS:
        raise _unknown(name)
    return FILTERS[name](budget, value, *arguments, **named)


def _unknown(name: Any) -> Fault:
    if not isinstance(name, str):
        return Fault(f"a filter is named by a text, not {type_name(name)}")
    known = "is not supported" if name in NOT_SUPPORTED else "is none of Jinja's"
    return Fault(f"No filter named {name[:80]!r}: it {known}")


def _map(budget: Budget, value: Any, *arguments: Any, **named: Any) -> Stream:
    change = _change(budget, arguments, named)
    changed = []
    for item in iterate(budget, value):
        budget.items(1)
        changed.append(change(item))
    return Stream(changed)


def _change(
    budget: Budget, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> Callable[[Any], Any]:
    if not arguments and "attribute" in named:
        return getter(budget, named["attribute"], named.get("default"))
    if not arguments:
        raise Fault("map requires a filter argument")
    name, rest = arguments[0], arguments[1:]
    return lambda item: call_filter(budget, name, item, rest, named)


def _choose(wanted: bool, by_attribute: bool) -> Callable[..., Stream]:
    """select, reject, and the same by an attribute."""

    def choose(budget: Budget, value: Any, *arguments: Any, **named: Any) -> Stream:
        if by_attribute and not arguments:
            raise Fault("Missing parameter for attribute name")
        get = getter(budget, arguments[0] if by_attribute else None)
        test = arguments[1 if by_attribute else 0 :]
        kept = []
        for item in iterate(budget, value):
            tested = get(item)
            meant = call_test(budget, test[0], tested, test[1:]) if test else bool(tested)
            if meant == wanted:
                budget.items(1)
                kept.append(item)
        return Stream(kept)

    return choose


FILTERS: dict[str, Callable[..., Any]] = {
    **TEXT_FILTERS,
    **LIST_FILTERS,
    "map": _map,
    "select": _choose(True, False),
    "reject": _choose(False, False),
    "selectattr": _choose(True, True),
    "rejectattr": _choose(False, True),
}
CONDITIONS["filter"] = lambda budget, value: isinstance(value, str) and value in FILTERS
CONDITIONS["test"] = lambda budget, value: isinstance(value, str) and value in CONDITIONS
