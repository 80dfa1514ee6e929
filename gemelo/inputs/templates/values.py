"""Values of a template besides text: numbers, lists, dicts, and a few types of Jinja's.

Lists, tuples, dicts, ranges, numbers, booleans and None are Python's own. Numbers that people gave
are told from those that the template counts, as texts are.

    messages, size = received([{"role": "user", "content": "Hello"}])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from gemelo.errors import InputError
from gemelo.inputs.templates.budget import KEY_STEPS, Budget, Fault
from gemelo.inputs.templates.text import cut

MAX_DEPTH = 100
MAX_KEY = 1 << 60
MAX_KEY_ITEMS = 64


class SaidInt(int):
    """A whole number that people gave."""


class SaidFloat(float):
    """A number that people gave."""


class Undefined:
    """A name or attribute that is not there: empty, until something is asked of it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __bool__(self) -> bool:
        return False

    def fail(self) -> NoReturn:
        raise Fault(self.reason)


class Namespace:
    """What `namespace()` makes: the one thing whose attributes a template may set."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names: dict[str, Any] = {}
        for name, value in names.items():
            self.assign(name, value)

    def assign(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise Fault(f"it stores {str(name[:80])!r} on a namespace: names may not begin with _")
        self.names[name] = value


class Stream:
    """Items that can be gone through once, as most filters give them; never false."""

    def __init__(self, items: list[Any]) -> None:
        self._items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self._items


@dataclass(frozen=True, eq=False)
class View:
    """The keys, values or items of a dict: with a length, without indices."""

    name: str
    items: list[Any]

    def __len__(self) -> int:
        return len(self.items)


class Group(NamedTuple):
    """One of the groups of `groupby`."""

    grouper: Any
    list: list[Any]


@dataclass(frozen=True, eq=False)
class Method:
    """A method of a text, list or dict, bound."""

    owner: Any
    name: str


@dataclass(frozen=True, eq=False)
class Macro:
    """A macro, or the body of a call block, with the scope that it stands in."""

    name: str
    node: Any
    scope: Any
    reads: frozenset[str] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Function:
    """A global function."""

    name: str
    call: Any


NUMBERS = (int, float)
LISTS = (list, tuple)


def is_said(number: object) -> bool:
    return isinstance(number, SaidInt | SaidFloat)


def type_name(value: object) -> str:
    """The type's name, as Python's errors and Jinja's say it."""
    for known in (bool, int, float, str, Group, list, tuple, dict):
        if isinstance(value, known):
            return known.__name__
    return type(value).__name__


def iterate(budget: Budget, value: Any) -> Iterator[Any]:
    """The items of `value`, each a step."""
    if isinstance(value, str):
        yield from _characters(budget, value)
        return
    if isinstance(value, Undefined):
        return
    if isinstance(value, View):
        value = value.items
    if not isinstance(value, list | tuple | dict | range | Stream):
        raise Fault(f"{type_name(value)!r} object is not iterable")
    for item in value:
        budget.step()
        yield item


def listed(budget: Budget, value: Any) -> list[Any]:
    """The items of `value` as a list of its own."""
    if isinstance(value, list | tuple | dict | range | View):
        budget.items(len(value))
    items = []
    for item in iterate(budget, value):
        budget.step()
        items.append(item)
    return items


def length(value: Any) -> int:
    if isinstance(value, Undefined):
        return 0
    if isinstance(value, str | list | tuple | dict | range | View):
        return len(value)
    raise Fault(f"object of type {type_name(value)!r} has no len()")


def check_key(budget: Budget, key: Any) -> Any:
    """`key`, if it can be one of a dict at a cost that is known."""
    if isinstance(key, str):
        budget.read(len(key))
    elif isinstance(key, tuple):
        _check_tuple(budget, key)
    elif isinstance(key, int | float):
        # Larger ones can be chosen to meet in one slot of the table.
        if not -MAX_KEY < key < MAX_KEY:
            raise Fault("it uses a number beyond 2**60 as a key")
    elif isinstance(key, list | dict | View):
        raise Fault(f"unhashable type: {type_name(key)!r}")
    return key


def received(value: Any) -> tuple[Any, int, int]:
    """Input as a template sees it, with the number of its values and of its characters.

    Raises InputError for what is not of JSON's kinds.
    """
    counts = [0, 0]
    return _received(value, counts, 0), counts[0], counts[1]


def _received(value: Any, counts: list[int], depth: int) -> Any:
    counts[0] += 1
    if depth > MAX_DEPTH:
        raise InputError(f"the chat template's input is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        counts[1] += len(value)
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > 64:
            raise InputError("the chat template's input has a number of more than 64 bits")
        return SaidInt(value)
    if isinstance(value, float):
        return SaidFloat(value)
    if isinstance(value, Mapping):
        return {
            _received_key(key, counts): _received(item, counts, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        items = [_received(item, counts, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    raise InputError(
        f"the chat template's input has a {type(value).__name__}: "
        "give texts, numbers, booleans, lists and objects"
    )


def _received_key(key: Any, counts: list[int]) -> str:
    if not isinstance(key, str):
        raise InputError(
            f"the chat template's input has a {type_name(key)} as a key: keys are texts"
        )
    counts[1] += len(key)
    return key


def _characters(budget: Budget, text: str) -> Iterator[str]:
    for at in range(len(text)):
        budget.step()
        budget.text(1)
        yield cut(text, at, at + 1)


def _check_tuple(budget: Budget, key: tuple[Any, ...]) -> None:
    budget.step(KEY_STEPS)
    waiting, count = list(key[: MAX_KEY_ITEMS + 1]), 0
    while waiting:
        count += 1
        if count + len(waiting) > MAX_KEY_ITEMS:
            raise Fault(f"it uses a tuple of more than {MAX_KEY_ITEMS} items as a key")
        item = waiting.pop()
        if isinstance(item, tuple):
            waiting += item[: MAX_KEY_ITEMS + 1]
        else:
            check_key(budget, item)
