"""Jinja's filters on lists and dicts, named as Jinja names them.

join(budget, ["a", "b"], ", ")      # "a, b"
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from gemelo.inputs.templates import methods
from gemelo.inputs.templates.access import attribute, item
from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.operators import add
from gemelo.inputs.templates.order import equal, less, sorted_by
from gemelo.inputs.templates.text import cut, own
from gemelo.inputs.templates.text_methods import recased
from gemelo.inputs.templates.values import (
    Group,
    Stream,
    Undefined,
    check_key,
    iterate,
    length,
    listed,
    type_name,
)
from gemelo.inputs.templates.written import concatenated, text_of

Key = Callable[[Any], Any]


def getter(budget: Budget, path: Any, default: Any = None, *, ignore_case: bool = False) -> Key:
    """What reads `path`, dots between its names, from an item; the item itself for None."""
    if isinstance(path, str):
        budget.texts(1 + str.count(path, "."), len(path))
    steps = _steps(path)
    budget.step(len(steps))

    def get(value: Any) -> Any:
        budget.step(1 + len(steps))
        for step in steps:
            value = item(budget, value, step)
            if isinstance(value, Undefined) and default is not None:
                value = default
        return folded(budget, value) if ignore_case else value

    return get


def folded(budget: Budget, value: Any) -> Any:
    return recased("lower")(budget, value) if isinstance(value, str) else value


def _steps(path: Any) -> list[Any]:
    if path is None:
        return []
    if isinstance(path, int):
        return [path]
    if not isinstance(path, str):
        raise Fault(f"an attribute is a text or a number, not {type_name(path)}")
    return [int(name) if name.isdigit() and len(name) < 10 else name for name in path.split(".")]


def size(budget: Budget, value: Any) -> int:
    return length(value)


def default(budget: Budget, value: Any, default_value: Any = "", boolean: Any = False) -> Any:
    if isinstance(value, Undefined) or (boolean and not value):
        return own("") if isinstance(default_value, str) and not default_value else default_value
    return value


def to_list(budget: Budget, value: Any) -> list[Any]:
    return listed(budget, value)


def items(budget: Budget, value: Any) -> Stream:
    if isinstance(value, Undefined):
        return Stream([])
    if not isinstance(value, dict):
        raise Fault("Can only get item pairs from a mapping.")
    return Stream(methods.items(budget, value).items)


def join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> str:
    glue = text_of(budget, d) if d else own("")
    get = getter(budget, attribute)
    parts: list[str] = []
    for each in iterate(budget, value):
        if parts:
            parts.append(glue)
        parts.append(text_of(budget, get(each)))
        budget.items(2)
    return concatenated(budget, parts)


def first(budget: Budget, seq: Any) -> Any:
    missing = Undefined("No first item, sequence was empty.")
    return next(iterate(budget, seq), missing)


def last(budget: Budget, seq: Any) -> Any:
    if isinstance(seq, Stream):
        raise Fault("'Stream' object is not reversible: use | list first")
    if isinstance(seq, str):
        return cut(seq, -1) if seq else Undefined("No last item, sequence was empty.")
    seq = listed(budget, seq)
    return seq[-1] if seq else Undefined("No last item, sequence was empty.")


def reverse(budget: Budget, value: Any) -> Any:
    if isinstance(value, str):
        budget.text(len(value))
        return cut(value, None, None, -1)
    return Stream(listed(budget, value)[::-1])


def sort(
    budget: Budget,
    value: Any,
    reverse: Any = False,
    case_sensitive: Any = False,
    attribute: Any = None,
) -> list[Any]:
    if isinstance(attribute, str):
        budget.texts(4 * str.count(attribute, ","), len(attribute))
    paths = attribute.split(",") if isinstance(attribute, str) else [attribute]
    budget.step(10 * len(paths))
    gets = [getter(budget, path, ignore_case=not case_sensitive) for path in paths]

    def key(each: Any) -> Any:
        keys = [get(each) for get in gets]
        return keys if isinstance(attribute, str) else keys[0]

    return sorted_by(budget, listed(budget, value), key, reverse=bool(reverse))


def dictsort(
    budget: Budget, value: Any, case_sensitive: Any = False, by: Any = "key", reverse: Any = False
) -> list[Any]:
    if by not in ("key", "value"):
        raise Fault('You can only sort by either "key" or "value"')
    if not isinstance(value, dict):
        raise Fault(f"dictsort wants a dict, not {type_name(value)}")
    get = getter(budget, 0 if by == "key" else 1, ignore_case=not case_sensitive)
    return sorted_by(budget, methods.items(budget, value).items, get, reverse=bool(reverse))


def unique(
    budget: Budget, value: Any, case_sensitive: Any = False, attribute: Any = None
) -> Stream:
    get = getter(budget, attribute, ignore_case=not case_sensitive)
    seen: set[Any] = set()
    kept = []
    for each in iterate(budget, value):
        key = check_key(budget, get(each))
        if key not in seen:
            budget.items(4)
            seen.add(key)
            kept.append(each)
    return Stream(kept)


def groupby(
    budget: Budget,
    value: Any,
    attribute: Any,
    default: Any = None,
    case_sensitive: Any = False,
) -> list[Group]:
    fold = getter(budget, attribute, default, ignore_case=not case_sensitive)
    get = getter(budget, attribute, default)
    groups: list[Group] = []
    last_key: Any = None
    for each in sorted_by(budget, listed(budget, value), fold):
        key = fold(each)
        if not groups or not equal(budget, last_key, key):
            budget.items(8)
            groups.append(Group(get(each), []))
            last_key = key
        groups[-1].list.append(each)
    return groups


def batch(budget: Budget, value: Any, linecount: Any, fill_with: Any = None) -> Stream:
    """Rows of `linecount`; the last one filled up, if there is something to fill with."""
    if not isinstance(linecount, int):
        raise Fault(f"batch wants a whole number, not {type_name(linecount)}")
    pending = iter(listed(budget, value))
    rows = []
    # Jinja begins a row when one of exactly that size is full: rows of 0 are one row of all.
    while row := list(islice(pending, max(0, linecount) or None)):
        budget.items(8 + len(row))
        rows.append(row)
    if rows and fill_with is not None and len(rows[-1]) < linecount:
        budget.items(linecount)
        rows[-1] += [fill_with] * (linecount - len(rows[-1]))
    return Stream(rows)


def slice(budget: Budget, value: Any, slices: Any, fill_with: Any = None) -> Stream:
    """So many columns, the first ones longer by one where it does not come out even."""
    if not isinstance(slices, int) or slices == 0:
        raise Fault("slice wants a whole number that is not 0")
    seq = listed(budget, value)
    budget.items(12 * max(0, slices))
    budget.step(max(0, slices))
    each, more = divmod(len(seq), slices)
    columns, start = [], 0
    for column in range(slices):
        stop = start + each + (column < more)
        part = seq[start:stop]
        if fill_with is not None and column >= more:
            part.append(fill_with)
        columns.append(part)
        start = stop
    return Stream(columns)


def total(budget: Budget, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    get = getter(budget, attribute)
    if isinstance(start, str):
        raise Fault("sum() can't sum strings [use ''.join(seq) instead]")
    for each in iterate(budget, iterable):
        start = add(budget, start, get(each))
    return start


def _extreme(prefers: Callable[[Budget, Any, Any], bool]) -> Callable[..., Any]:
    def find(budget: Budget, value: Any, case_sensitive: Any = False, attribute: Any = None) -> Any:
        get = getter(budget, attribute, ignore_case=not case_sensitive)
        best: Any = Undefined("No aggregated item, sequence was empty.")
        best_key: Any = None
        for index, each in enumerate(iterate(budget, value)):
            key = get(each)
            if not index or prefers(budget, key, best_key):
                best, best_key = each, key
        return best

    return find


def named_attribute(budget: Budget, obj: Any, name: Any) -> Any:
    """The attribute alone, never the item."""
    name = text_of(budget, name)
    budget.read(len(name))
    value = attribute(budget, obj, name)
    if isinstance(obj, dict) and name in obj and value is obj[name]:
        return Undefined(f"'dict object' has no attribute {str(name[:80])!r}")
    return value


LIST_FILTERS: dict[str, Callable[..., Any]] = {
    "attr": named_attribute,
    "batch": batch,
    "count": size,
    "d": default,
    "default": default,
    "dictsort": dictsort,
    "first": first,
    "groupby": groupby,
    "items": items,
    "join": join,
    "last": last,
    "length": size,
    "list": to_list,
    "max": _extreme(lambda budget, a, b: less(budget, b, a)),
    "min": _extreme(less),
    "reverse": reverse,
    "slice": slice,
    "sort": sort,
    "sum": total,
    "unique": unique,
}
