"""Jinja's operators on a template's values, their results counted before they are made.

add(budget, own("a"), said("b"))        # "ab", and whose each is
"""

from __future__ import annotations

from typing import Any

from markupsafe import escape

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.formatting import percent
from gemelo.inputs.templates.text import Safe, blend, joined, marks_of, repeated
from gemelo.inputs.templates.values import (
    LISTS,
    NUMBERS,
    SaidFloat,
    SaidInt,
    Undefined,
    is_said,
    type_name,
)


def add(budget: Budget, a: Any, b: Any) -> Any:
    if isinstance(a, str) and isinstance(b, str):
        return _add_texts(budget, a, b)
    if isinstance(a, list) and isinstance(b, list) or isinstance(a, tuple) and isinstance(b, tuple):
        budget.items(len(a) + len(b))
        return [*a, *b] if isinstance(a, list) else (*a, *b)
    if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
        return _number(budget, a, b, "+")
    raise _unsupported(a, b, "+")


def multiply(budget: Budget, a: Any, b: Any) -> Any:
    if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
        return _number(budget, a, b, "*")
    if isinstance(a, int):
        a, b = b, a
    if isinstance(a, str) and isinstance(b, int):
        budget.text(len(a) * max(0, b))
        return repeated(a, b)
    if isinstance(a, LISTS) and isinstance(b, int):
        budget.items(len(a) * max(0, b))
        return list(a) * b if isinstance(a, list) else tuple(a) * b
    raise _unsupported(a, b, "*")


def modulo(budget: Budget, a: Any, b: Any) -> Any:
    if isinstance(a, str):
        return percent(budget, a, b)
    return arithmetic(budget, "%", a, b)


def arithmetic(budget: Budget, operator: str, a: Any, b: Any) -> Any:
    """An operator that only numbers have."""
    if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
        return _number(budget, a, b, operator)
    raise _unsupported(a, b, operator)


def negative(a: Any) -> Any:
    if isinstance(a, NUMBERS):
        return _told(-a, is_said(a))
    raise _unsupported_alone(a, "-")


def positive(a: Any) -> Any:
    if isinstance(a, NUMBERS):
        return _told(+a, is_said(a))
    raise _unsupported_alone(a, "+")


def _add_texts(budget: Budget, a: str, b: str) -> str:
    if isinstance(a, Safe) or isinstance(b, Safe):
        a, b = escaped(budget, a), escaped(budget, b)
        budget.text(len(a) + len(b))
        return Safe(str.__add__(a, b), marks_of(a) + marks_of(b))
    budget.text(len(a) + len(b))
    return joined((a, b))


def escaped(budget: Budget, text: str) -> Safe:
    """`text` with the characters escaped that mean something in HTML, once."""
    if isinstance(text, Safe):
        return text
    budget.text(2 * len(text))  # five characters at most for one, of one byte
    chars = str(escape(str.__str__(text)))
    budget.text(len(chars))
    source = text if len(chars) == len(text) else blend(chars, (text,))
    return Safe(chars, marks_of(source))


def _number(budget: Budget, a: Any, b: Any, operator: str) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        budget.bits(_bits(a, b, operator))
    result: Any
    if operator == "+":
        result = a + b
    elif operator == "-":
        result = a - b
    elif operator == "*":
        result = a * b
    elif operator == "/":
        result = a / b
    elif operator == "//":
        result = a // b
    elif operator == "%":
        result = a % b
    else:
        result = a**b
    if not isinstance(result, NUMBERS):
        raise Fault("it takes the root of a negative number")
    return _told(result, is_said(a) or is_said(b))


def _bits(a: int, b: int, operator: str) -> int:
    """How many bits the result may have."""
    if operator == "**":
        return 1 + a.bit_length() * max(0, b)
    if operator == "*":
        return a.bit_length() + b.bit_length()
    return 1 + max(a.bit_length(), b.bit_length())


def _told(number: Any, of_people: bool) -> Any:
    if not of_people or isinstance(number, bool):
        return number
    return SaidInt(number) if isinstance(number, int) else SaidFloat(number)


def _unsupported(a: Any, b: Any, operator: str) -> Fault:
    for value in (a, b):
        if isinstance(value, Undefined):
            return Fault(value.reason)
    return Fault(
        f"unsupported operand type(s) for {operator}: {type_name(a)!r} and {type_name(b)!r}"
    )


def _unsupported_alone(a: Any, operator: str) -> Fault:
    if isinstance(a, Undefined):
        return Fault(a.reason)
    return Fault(f"bad operand type for unary {operator}: {type_name(a)!r}")
