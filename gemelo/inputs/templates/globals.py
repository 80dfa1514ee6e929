"""Jinja's global functions: what every template can call.

names = global_names(budget)
names["range"].call(3)      # range(0, 3)
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NoReturn

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.text import blend
from gemelo.inputs.templates.values import (
    Function,
    Namespace,
    Undefined,
    check_key,
    iterate,
    length,
    type_name,
)
from gemelo.inputs.templates.written import text_of

MAX_RANGE = 100_000
MAX_DATE_CHARS = 200


class Refusal(Exception):
    """What a template raises by its own decision."""


def global_names(budget: Budget) -> dict[str, Any]:
    """What transformers and Jinja give to every template."""

    def make_range(*bounds: Any) -> range:
        for bound in bounds:
            if not isinstance(bound, int):
                raise Fault(f"range wants whole numbers, not {type_name(bound)}")
        numbers = range(*map(int, bounds))
        # Its len() fails for what does not fit in 64 bits.
        towards = 1 if numbers.step > 0 else -1
        if (numbers.stop - numbers.start + numbers.step - towards) // numbers.step > MAX_RANGE:
            raise Fault(f"Range too big: the limit is {MAX_RANGE:,}")
        return numbers

    def make_dict(*given: Any, **named: Any) -> dict[Any, Any]:
        return _dict(budget, given, named)

    def make_namespace(*given: Any, **named: Any) -> Namespace:
        members = _dict(budget, given, named)
        if not all(isinstance(name, str) for name in members):
            raise Fault("a namespace's names are texts")
        return Namespace(members)

    def raise_exception(message: Any) -> NoReturn:
        raise Refusal(text_of(budget, message))

    def strftime_now(format: Any) -> str:
        text = text_of(budget, format)
        if len(text) > MAX_DATE_CHARS:
            raise Fault(
                f"a date's format has {len(text)} characters: the limit is {MAX_DATE_CHARS}"
            )
        budget.text(256 * len(text))
        return blend(datetime.now().strftime(str.__str__(text)), (text,))

    calls = (make_range, make_dict, make_namespace, raise_exception, strftime_now)
    names = ("range", "dict", "namespace", "raise_exception", "strftime_now")
    functions = {name: Function(name, call) for name, call in zip(names, calls, strict=True)}
    return {**_refused("lipsum", "cycler", "joiner"), **functions}


def _dict(budget: Budget, given: tuple[Any, ...], named: dict[str, Any]) -> dict[Any, Any]:
    if len(given) > 1:
        raise Fault(f"dict expected at most 1 argument, got {len(given)}")
    members: dict[Any, Any] = {}
    for source in given:
        if isinstance(source, dict):
            budget.entries(len(source))
            members.update(source)
            continue
        for pair in iterate(budget, source):
            if not isinstance(pair, list | tuple) or length(pair) != 2:
                raise Fault("a dict is made of pairs")
            budget.entries(1)
            members[check_key(budget, pair[0])] = pair[1]
    budget.entries(len(named))
    return members | named


def _refused(*names: str) -> dict[str, Undefined]:
    return {name: Undefined(f"{name!r} is not supported in chat templates") for name in names}
