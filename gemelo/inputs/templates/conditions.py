"""Jinja's tests: what stands behind `is`.

call_test(budget, "divisibleby", 6, (3,))       # True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.operators import modulo
from gemelo.inputs.templates.order import compare, equal
from gemelo.inputs.templates.text import Safe
from gemelo.inputs.templates.values import (
    NUMBERS,
    Function,
    Macro,
    Method,
    Stream,
    Undefined,
    View,
    type_name,
)
from gemelo.inputs.templates.written import text_of

CALLABLE = (Function, Macro, Method, Undefined)  # an Undefined, since it has an error for it
SEQUENCES = (str, list, tuple, dict, range, Undefined)


def call_test(budget: Budget, name: str, value: Any, arguments: tuple[Any, ...] = ()) -> bool:
    """Whether `value` is `name`, as in {% if value is name(*arguments) %}."""
    if not isinstance(name, str):
        raise Fault(f"a test is named by a text, not {type_name(name)}")
    if name not in CONDITIONS:
        raise Fault(f"No test named {name[:80]!r}.")
    return bool(CONDITIONS[name](budget, value, *arguments))


def _comparison(operator: str) -> Callable[[Budget, Any, Any], bool]:
    def ask(budget: Budget, value: Any, other: Any) -> bool:
        return compare(budget, operator, value, other)

    return ask


def _question(ask: Callable[[Any], bool]) -> Callable[[Budget, Any], bool]:
    """A test of the value alone, that costs nothing."""

    def asked(budget: Budget, value: Any) -> bool:
        return ask(value)

    return asked


def _remainder(divisor: int, wanted: int) -> Callable[[Budget, Any], bool]:
    def ask(budget: Budget, value: Any) -> bool:
        return equal(budget, modulo(budget, value, divisor), wanted)

    return ask


def _divisible(budget: Budget, value: Any, num: Any) -> bool:
    return equal(budget, modulo(budget, value, num), 0)


def _lower(budget: Budget, value: Any) -> bool:
    text = text_of(budget, value)
    budget.read(len(text))
    return text.islower()


def _upper(budget: Budget, value: Any) -> bool:
    text = text_of(budget, value)
    budget.read(len(text))
    return text.isupper()


def _is(budget: Budget, value: Any, other: Any) -> bool:
    return value is other


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


CONDITIONS: dict[str, Callable[..., bool]] = {
    "defined": _question(lambda value: not isinstance(value, Undefined)),
    "undefined": _question(lambda value: isinstance(value, Undefined)),
    "none": _question(lambda value: value is None),
    "boolean": _question(lambda value: isinstance(value, bool)),
    "true": _question(lambda value: value is True),
    "false": _question(lambda value: value is False),
    "integer": _question(_is_integer),
    "float": _question(lambda value: isinstance(value, float)),
    "number": _question(lambda value: isinstance(value, NUMBERS)),
    "string": _question(lambda value: isinstance(value, str)),
    "mapping": _question(lambda value: isinstance(value, dict)),
    "sequence": _question(lambda value: isinstance(value, SEQUENCES)),
    "iterable": _question(lambda value: isinstance(value, (*SEQUENCES, Stream, View))),
    "callable": _question(lambda value: isinstance(value, CALLABLE)),
    "escaped": _question(lambda value: isinstance(value, Safe)),
    "odd": _remainder(2, 1),
    "even": _remainder(2, 0),
    "divisibleby": _divisible,
    "lower": _lower,
    "upper": _upper,
    "sameas": _is,
    "in": _comparison("in"),
    **dict.fromkeys(("==", "eq", "equalto"), _comparison("eq")),
    **dict.fromkeys(("!=", "ne"), _comparison("ne")),
    **dict.fromkeys(("<", "lt", "lessthan"), _comparison("lt")),
    **dict.fromkeys((">", "gt", "greaterthan"), _comparison("gt")),
    **dict.fromkeys(("<=", "le"), _comparison("lteq")),
    **dict.fromkeys((">=", "ge"), _comparison("gteq")),
}
