"""Jinja's filters on texts and numbers, named as Jinja names them.

trim(budget, said("  Hello "))      # "Hello"
"""

from __future__ import annotations

import math
import pprint as printing
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from gemelo.inputs.templates import text_methods
from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.formatting import percent
from gemelo.inputs.templates.operators import escaped
from gemelo.inputs.templates.text import Safe, Text, blend, cut, marked_like, marks_of, own
from gemelo.inputs.templates.values import (
    NUMBERS,
    SaidFloat,
    SaidInt,
    Undefined,
    is_said,
    iterate,
    length,
    type_name,
)
from gemelo.inputs.templates.written import (
    Style,
    concatenated,
    representation,
    text_of,
    to_json,
)

MAX_LOOKED_INTO = 16_384  # characters, for what takes them apart more than once
MAX_PRECISION = 300
MAX_DIGITS = 1000
WORD_BEGINNING = re.compile(r"([-\s({\[<]+)")


def tojson(
    budget: Budget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> str:
    """As transformers has it: json.dumps, without Jinja's escapes for HTML."""
    if not (indent is None or isinstance(indent, int | str)):
        raise Fault(f"tojson's indent is a number or a text, not {type_name(indent)}")
    if isinstance(indent, int):
        budget.text(max(0, indent))
        indent = own(" " * indent)
    between, behind = (own(", ") if indent is None else own(",")), own(": ")
    if separators is not None:
        if length(separators) != 2 or not all(isinstance(s, str) for s in separators):
            raise Fault("tojson's separators are two texts")
        between, behind = separators
    style = Style(bool(ensure_ascii), indent, between, behind, bool(sort_keys))
    return to_json(budget, value, style)


def string(budget: Budget, value: Any) -> str:
    return text_of(budget, value)


def trim(budget: Budget, value: Any, chars: Any = None) -> str:
    return text_methods.strip(budget, text_of(budget, value), chars)


def _recased(name: str) -> Callable[[Budget, Any], str]:
    change = text_methods.recased(name)

    def filter(budget: Budget, value: Any) -> str:
        return change(budget, text_of(budget, value))

    return filter


def title(budget: Budget, value: Any) -> str:
    """Words begin with a capital, as Jinja takes words: not at an apostrophe."""
    text = text_of(budget, value)
    budget.text(4 * len(text))
    budget.texts(len(text) // 2, len(text))
    words = WORD_BEGINNING.split(text)
    return marked_like("".join(w[0].upper() + w[1:].lower() for w in words if w), text)


def replace(budget: Budget, s: Any, old: Any, new: Any, count: Any = None) -> str:
    old, new = text_of(budget, old), text_of(budget, new)
    times = -1 if count is None else count
    return text_methods.replace(budget, text_of(budget, s), old, new, times)


def indent(budget: Budget, s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> str:
    margin = width if isinstance(width, str) else None
    if margin is None:
        if not isinstance(width, int):
            raise Fault(f"indent wants a number or a text, not {type_name(width)}")
        budget.text(max(0, width))
        margin = own(" " * width)
    if not isinstance(s, str):
        raise Fault(f"indent wants a text, not {type_name(s)}")
    lines = text_methods.splitlines(budget, concatenated(budget, [s, own("\n")]))
    parts: list[str] = [margin] if first else []
    for index, line in enumerate(lines):
        budget.step()
        parts += [own("\n")] if index else []
        parts += [margin] if index and (line or blank) else []
        parts.append(line)
    return concatenated(budget, parts)


def format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise Fault("format takes arguments with names or without, not both")
    return percent(budget, text_of(budget, value), kwargs or args)


def center(budget: Budget, value: Any, width: Any = 80) -> str:
    return text_methods.center(budget, text_of(budget, value), width)


def truncate(
    budget: Budget,
    s: Any,
    length: Any = 255,
    killwords: Any = False,
    end: Any = "...",
    leeway: Any = 5,
) -> str:
    text = text_of(budget, s) if isinstance(s, Undefined) else s
    if not isinstance(text, str):
        raise Fault(f"truncate wants a text, not {type_name(s)}")
    end = own("...") if end == "..." else text_of(budget, end)
    if not isinstance(length, int) or not isinstance(leeway, int) or length < len(end):
        raise Fault(f"truncate expects a length of {len(end)} or more, and a leeway")
    if len(text) <= length + leeway:
        return text
    budget.text(length)
    kept = cut(text, 0, length - len(end))
    if not killwords:
        kept = cut(kept, 0, len(kept.rsplit(" ", 1)[0]))
    return concatenated(budget, [kept, end])


def wordcount(budget: Budget, s: Any) -> int:
    text = text_of(budget, s)
    budget.step(len(text) // 8)
    return sum(1 for _ in re.finditer(r"\w+", text))


def safe(budget: Budget, value: Any) -> str:
    text = text_of(budget, value)
    budget.text(len(text))
    return Safe(text, marks_of(text))


def escape(budget: Budget, value: Any) -> str:
    return escaped(budget, text_of(budget, value))


def forceescape(budget: Budget, value: Any) -> str:
    text = text_of(budget, value)
    return escaped(budget, Text(text, marks_of(text)))


def striptags(budget: Budget, value: Any) -> str:
    text = _looked_into(budget, value, "striptags")
    return blend(Markup(str.__str__(text)).striptags(), (text,))


def urlencode(budget: Budget, value: Any) -> str:
    if isinstance(value, str) or not isinstance(value, list | tuple | dict):
        return _quoted(budget, value, "/")
    pairs = value.items() if isinstance(value, dict) else iterate(budget, value)
    parts: list[str] = []
    for pair in pairs:
        if length(pair) != 2:
            raise Fault("urlencode wants pairs of a name and a value")
        parts += [own("&")] if parts else []
        parts += [_quoted(budget, pair[0], ""), own("="), _quoted(budget, pair[1], "")]
    return concatenated(budget, parts)


def _quoted(budget: Budget, value: Any, safe: str) -> str:
    text = text_of(budget, value)
    budget.text(12 * len(text))
    chars = quote(str.__str__(text).encode(), safe=safe)
    return blend(chars if safe else chars.replace("%20", "+"), (text,))


def pprint(budget: Budget, value: Any) -> str:
    written = representation(budget, value)
    _looked_into(budget, written, "pprint")
    if isinstance(value, str | list | tuple | dict | int | float | None):
        return blend(printing.pformat(_bare(value)), (written,))
    return written


def _bare(value: Any) -> Any:
    """The same without marks."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, dict):
        return {_bare(key): _bare(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_bare(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _looked_into(budget: Budget, value: Any, name: str) -> str:
    text = text_of(budget, value)
    budget.text(len(text))
    if len(text) > MAX_LOOKED_INTO:
        raise Fault(f"{name} is given {len(text):,} characters: the limit is {MAX_LOOKED_INTO:,}")
    budget.step(len(text))
    return text


# ---- numbers -------------------------------------------------------------------------------------


def absolute(budget: Budget, x: Any) -> Any:
    made = abs(_number(x))
    if not is_said(x):
        return made
    return SaidInt(made) if isinstance(made, int) else SaidFloat(made)


def to_int(budget: Budget, value: Any, default: Any = 0, base: Any = 10) -> Any:
    if isinstance(value, Undefined):
        value.fail()
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise Fault(f"it makes a number of {len(value):,} digits: the limit is {MAX_DIGITS:,}")
    try:
        number = int(str.__str__(value), base) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        try:
            number = int(float(value))
        except (TypeError, ValueError):
            return default
    budget.bits(number.bit_length())
    return SaidInt(number) if _of_people(value) else number


def to_float(budget: Budget, value: Any, default: Any = 0.0) -> Any:
    if isinstance(value, Undefined):
        value.fail()
    if isinstance(value, str):
        budget.text(len(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return SaidFloat(number) if _of_people(value) else number


def rounded(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    number = _number(value)
    if method not in ("common", "ceil", "floor"):
        raise Fault("method must be common, ceil or floor")
    if not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise Fault(f"round takes up to {MAX_PRECISION} places")
    result = round(number, precision)
    if method != "common":
        result = getattr(math, method)(number * (10**precision)) / (10**precision)
    if not is_said(value):
        return result
    return SaidInt(result) if isinstance(result, int) else SaidFloat(result)


def _number(value: Any) -> Any:
    if isinstance(value, Undefined):
        value.fail()
    if not isinstance(value, NUMBERS):
        raise Fault(f"a number is wanted, not {type_name(value)}")
    return value


def _of_people(value: Any) -> bool:
    if isinstance(value, str):
        return b"\1" in marks_of(value)
    return is_said(value)


TEXT_FILTERS: dict[str, Callable[..., Any]] = {
    "abs": absolute,
    "capitalize": _recased("capitalize"),
    "center": center,
    "e": escape,
    "escape": escape,
    "float": to_float,
    "forceescape": forceescape,
    "format": format,
    "indent": indent,
    "int": to_int,
    "lower": _recased("lower"),
    "pprint": pprint,
    "replace": replace,
    "round": rounded,
    "safe": safe,
    "string": string,
    "striptags": striptags,
    "title": title,
    "tojson": tojson,
    "trim": trim,
    "truncate": truncate,
    "upper": _recased("upper"),
    "urlencode": urlencode,
    "wordcount": wordcount,
}
