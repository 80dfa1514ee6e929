"""String formatting: the % operator and `format`, with whose each character is kept.

percent(budget, own("%s!"), said("Hello"))          # "Hello!"
braces(budget, own("{0:>8}"), (said("Hello"),), {}) # "   Hello"
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

from gemelo.inputs.templates.access import attribute, item
from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.text import SAID, blend, cut, marks_of, own, repeated, said
from gemelo.inputs.templates.values import NUMBERS, Undefined, is_said, type_name
from gemelo.inputs.templates.written import concatenated, representation, text_of

MAX_WIDTH = 1000
MAX_NAME = 200
CONVERSION = re.compile(
    r"%(?:\((?P<key>[^()]*+)\))?+(?P<flags>[#0\- +]*+)(?P<width>\*|\d*+)"
    r"(?:\.(?P<precision>\*|\d*+))?+[hlL]?(?P<type>[sradiuoxXeEfFgGc%])"
)
TEXT_SPEC = re.compile(
    r"(?:(?P<fill>.)?(?P<align>[<>^]))?(?P<zero>0)?(?P<width>\d*)(?:\.(?P<precision>\d+))?s?", re.S
)
FIELD = re.compile(r"\.([^.\[]+)|\[([^\]]+)\]")


def padded(budget: Budget, text: str, width: int, align: str = "<", fill: str = "") -> str:
    """`text` filled up to `width` characters: at its end, its beginning, or on both sides."""
    missing = width - len(text)
    if missing <= 0:
        return text
    budget.text(missing)
    fill = fill or own(" ")
    left = {"<": 0, ">": missing, "^": missing // 2}[align]
    parts = [repeated(fill, left), text, repeated(fill, missing - left)]
    return concatenated(budget, parts)


# ---- % -------------------------------------------------------------------------------------------


def percent(budget: Budget, text: str, given: Any) -> str:
    """text % given"""
    arguments = _Arguments(budget, given)
    parts: list[str] = []
    budget.read(len(text))
    position = 0
    while (start := str.find(text, "%", position)) >= 0:
        match = CONVERSION.match(text, start)
        if match is None:
            raise Fault(f"unsupported format character at index {start}")
        budget.texts(2, start - position)
        budget.step(4)
        parts.append(cut(text, position, start))
        of_people = SAID in marks_of(text)[start : match.end()]
        parts.append(_converted(budget, match, arguments, of_people))
        position = match.end()
    parts.append(cut(text, position))
    arguments.finish()
    return concatenated(budget, parts)


class _Arguments:
    """What stands to the right of %: one value, several in a tuple, or named ones."""

    def __init__(self, budget: Budget, given: Any) -> None:
        self._budget, self._given = budget, given
        self._left = deque(given) if isinstance(given, tuple) else deque([given])
        self._named = isinstance(given, dict | list | Undefined)

    def named(self, key: str) -> Any:
        if not isinstance(self._given, dict):
            raise Fault("format requires a mapping")
        if key not in self._given:
            raise Fault(f"the format asks for {key[:80]!r}, which is not there")
        return self._given[key]

    def next(self) -> Any:
        if not self._left:
            raise Fault("not enough arguments for format string")
        return self._left.popleft()

    def finish(self) -> None:
        if self._left and not self._named:
            raise Fault("not all arguments converted during string formatting")


def _converted(budget: Budget, match: re.Match[str], arguments: _Arguments, of_people: bool) -> str:
    what, flags = match["type"], match["flags"]
    if what == "%":
        return said("%") if of_people else own("%")
    width = _size(arguments, match["width"])
    precision = _size(arguments, match["precision"])
    value = arguments.next() if match["key"] is None else arguments.named(match["key"])
    if what in "sra":
        text = text_of(budget, value) if what == "s" else representation(budget, value)
        if what == "a":
            budget.text(2 * len(text))
            text = blend(text.encode("ascii", "backslashreplace").decode(), (text,))
        text = text if precision is None else cut(text, 0, precision)
        return padded(budget, text, width or 0, "<" if "-" in flags else ">")
    if not isinstance(value, NUMBERS) and not (what == "c" and isinstance(value, str)):
        raise Fault(f"%{what} format: a number is required, not {type_name(value)}")
    if max(width or 0, precision or 0) > MAX_WIDTH:
        raise Fault(f"it writes a number {MAX_WIDTH} places wide, or wider")
    spec = f"%{flags}{width or ''}" + ("" if precision is None else f".{precision}") + what
    budget.text(MAX_WIDTH)
    chars = spec % value
    from_people = of_people or is_said(value) or isinstance(value, str)
    return said(chars) if from_people else own(chars)


def _size(arguments: _Arguments, digits: str | None) -> int | None:
    if digits is None:
        return None
    if digits == "*":
        value = arguments.next()
        if not isinstance(value, int) or value < 0:
            raise Fault("* wants a whole number")
        return int(value)
    if len(digits) > 9:
        raise Fault("it formats to a width of more than 9 digits")
    return int(digits or 0)


# ---- {} ------------------------------------------------------------------------------------------


def braces(budget: Budget, text: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """text.format(*arguments, **named)"""
    return _Braces(budget, text, arguments, named).format(text, 2)


class _Braces:
    """One call of `format`: fields without a name take the arguments in order."""

    def __init__(
        self, budget: Budget, text: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        self._budget, self._source = budget, text
        self._arguments, self._named = arguments, named
        self._next: int | None = 0

    def format(self, text: str, depth: int) -> str:
        if depth == 0:
            raise Fault("Max string recursion exceeded")
        parts = []
        self._budget.read(len(text))
        for part in self._parts(text, depth):
            self._budget.step(8)
            self._budget.texts(1, len(part))
            parts.append(part)
        return concatenated(self._budget, parts)

    def _parts(self, text: str, depth: int) -> Iterator[str]:
        for literal, name, spec, conversion in Formatter().parse(str.__str__(text)):
            yield blend(literal, (self._source,))
            if name is not None:
                value = self._field(name)
                if conversion:
                    value = self._as_text(value, conversion)
                yield self._formatted(value, self.format(spec, depth - 1) if spec else "")

    def _field(self, name: str) -> Any:
        if len(name) > MAX_NAME:
            raise Fault(f"a field's name has {len(name)} characters: the limit is {MAX_NAME}")
        first = re.split(r"[.\[]", name, maxsplit=1)[0]
        value = self._first(first)
        for match in FIELD.finditer(name, len(first)):
            if match[1] is not None:
                value = attribute(self._budget, value, match[1])
            else:
                digits = match[2].isdigit() and len(match[2]) < 10
                value = item(self._budget, value, int(match[2]) if digits else match[2])
        return value

    def _first(self, name: str) -> Any:
        if name and not name.isdigit():
            if name not in self._named:
                raise Fault(f"the format asks for {name[:80]!r}, which is not given")
            return self._named[name]
        if not name:
            if self._next is None:
                raise Fault("cannot switch from manual field numbering to automatic")
            index, self._next = self._next, self._next + 1
        else:
            if self._next:
                raise Fault("cannot switch from automatic field numbering to manual")
            index, self._next = int(name[:10]), None
        if index >= len(self._arguments):
            raise Fault(f"the format asks for argument {index}, which is not given")
        return self._arguments[index]

    def _as_text(self, value: Any, conversion: str) -> str:
        if conversion == "s":
            return text_of(self._budget, value)
        if conversion == "r":
            return representation(self._budget, value)
        raise Fault(f"the conversion !{conversion} is not supported: use !s or !r")

    def _formatted(self, value: Any, spec: str) -> str:
        if isinstance(value, NUMBERS) and spec:
            return self._number(value, spec)
        if isinstance(value, str):
            return self._text(value, spec)
        if spec:
            raise Fault(f"unsupported format string passed to {type_name(value)}.__format__")
        return text_of(self._budget, value)

    def _text(self, text: str, spec: str) -> str:
        match = TEXT_SPEC.fullmatch(spec)
        if match is None or len(match["width"]) > 9:
            raise Fault(f"invalid format specifier {str(spec)[:40]!r}")
        if match["precision"]:
            text = cut(text, 0, int(match["precision"][:9]))
        zero = own("0") if match["zero"] else own(" ")
        fill = blend(match["fill"], (spec,)) if match["fill"] else zero
        return padded(self._budget, text, int(match["width"] or 0), match["align"] or "<", fill)

    def _number(self, value: Any, spec: str) -> str:
        if any(len(digits) > 3 for digits in re.findall(r"\d+", spec)):
            raise Fault(f"it writes a number {MAX_WIDTH} places wide, or wider")
        self._budget.text(MAX_WIDTH)
        plain = float(value) if isinstance(value, float) else value
        plain = int(value) if isinstance(value, int) and not isinstance(value, bool) else plain
        chars = format(plain, str.__str__(spec))
        return said(chars) if is_said(value) else blend(chars, (self._source,))
