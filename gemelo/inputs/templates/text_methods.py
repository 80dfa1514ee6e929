"""String methods that templates call, each at a cost that is known.

split(budget, said("a b"))      # ["a", "b"]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.formatting import braces, padded
from gemelo.inputs.templates.text import Text, cut, joined, located, marked_like, own
from gemelo.inputs.templates.values import iterate, type_name
from gemelo.inputs.templates.written import concatenated

MAX_COLUMNS = 1 << 16
EXPANDS = 3  # characters at most for one that changes its case


def _question(name: str) -> Callable[[Budget, str], bool]:
    """isdigit and its kin."""

    def ask(budget: Budget, text: str) -> bool:
        budget.read(len(text))
        return bool(getattr(str, name)(text))

    return ask


def recased(name: str) -> Callable[[Budget, str], Text]:
    """upper and its kin."""

    def change(budget: Budget, text: str) -> Text:
        budget.text(2 * EXPANDS * len(text) if not text.isascii() else len(text))
        return marked_like(getattr(str, name)(text), text)

    return change


def _ends(name: str) -> Callable[..., bool]:
    """startswith and endswith."""

    def ask(budget: Budget, text: str, ends: Any, *bounds: Any) -> bool:
        for end in ends if isinstance(ends, tuple) else (ends,):
            if not isinstance(end, str):
                raise Fault(f"{name} wants a text or a tuple of texts, not {type_name(end)}")
            budget.read(len(end))
        return bool(getattr(str, name)(text, ends, *places(bounds)))

    return ask


def _finding(name: str) -> Callable[..., int]:
    """find, index, count, and those that begin at the end."""

    def find(budget: Budget, text: str, sought: Any, *bounds: Any) -> int:
        sought = _wanted(sought, name)
        charge = budget.search if name.startswith("r") else budget.find
        charge(len(text), len(sought))
        return int(getattr(str, name)(text, sought, *places(bounds)))

    return find


def places(bounds: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where a search begins and ends, checked."""
    for bound in bounds:
        if not (bound is None or isinstance(bound, int)):
            raise Fault(f"a place in a text is a whole number, not {type_name(bound)}")
    return bounds


def _wanted(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise Fault(f"{name} wants a text, not {type_name(text)}")
    return text


def strip(budget: Budget, text: str, chars: Any = None) -> Text:
    return lstrip(budget, rstrip(budget, text, chars), chars)


def lstrip(budget: Budget, text: str, chars: Any = None) -> Text:
    _check_stripped(budget, text, chars)
    return cut(text, len(text) - len(str.lstrip(text, chars)))


def rstrip(budget: Budget, text: str, chars: Any = None) -> Text:
    _check_stripped(budget, text, chars)
    return cut(text, 0, len(str.rstrip(text, chars)))


def _check_stripped(budget: Budget, text: str, chars: Any) -> None:
    if chars is not None:
        budget.search(len(text), len(_wanted(chars, "strip")))
    budget.text(2 * len(text))


def split(budget: Budget, text: str, sep: Any = None, maxsplit: Any = -1) -> list[Text]:
    _charge_pieces(budget, text, sep, maxsplit)
    return (
        located(str.split(text, sep, maxsplit), text)
        if sep is None
        else _apart(text, str.split(text, sep, maxsplit), len(sep))
    )


def rsplit(budget: Budget, text: str, sep: Any = None, maxsplit: Any = -1) -> list[Text]:
    _charge_pieces(budget, text, sep, maxsplit)
    if sep is None:
        return located(str.rsplit(text, None, maxsplit), text)
    budget.search(len(text), len(sep))
    return _apart(text, str.rsplit(text, sep, maxsplit), len(sep))


def _charge_pieces(budget: Budget, text: str, sep: Any, maxsplit: Any) -> None:
    if not isinstance(maxsplit, int):
        raise Fault(f"maxsplit is a whole number, not {type_name(maxsplit)}")
    if sep is None:
        count = 1 + len(text) // 2
    elif not _wanted(sep, "split"):
        raise Fault("empty separator")
    else:
        budget.find(len(text), len(sep))
        count = 1 + str.count(text, sep)
    count = count if maxsplit < 0 else min(count, 1 + maxsplit)
    if sep is None:
        # Looked at in full first, since a text of one word would seem to be many.
        budget.read(4 * len(text))
        count = min(count, 1 + _num_gaps(text))
    budget.step(count)
    budget.texts(2 * count, 2 * len(text))


def _num_gaps(text: str) -> int:
    """At least the number of places where a text of words can be split."""
    gaps = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    gaps += "".join(map(chr, range(0x2000, 0x200B)))
    return sum(str.count(text, gap) for gap in gaps)


def _apart(text: str, pieces: list[str], gap: int) -> list[Text]:
    """The pieces as cuts of `text`, `gap` characters between them."""
    found, at = [], 0
    for piece in pieces:
        found.append(cut(text, at, at + len(piece)))
        at += len(piece) + gap
    return found


def splitlines(budget: Budget, text: str, keepends: Any = False) -> list[Text]:
    budget.read(8 * len(text))
    ends = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    count = 1 + sum(str.count(text, end) for end in ends)
    budget.step(count)
    budget.texts(3 * count, 3 * len(text))
    lines, position = [], 0
    for whole, line in zip(str.splitlines(text, True), str.splitlines(text), strict=True):
        lines.append(cut(text, position, position + len(whole if keepends else line)))
        position += len(whole)
    return lines


def _partition(budget: Budget, text: str, sep: Any) -> tuple[str, str, str]:
    budget.find(len(text), len(_wanted(sep, "partition")))
    return _parted(budget, text, sep, str.partition(text, sep))


def _rpartition(budget: Budget, text: str, sep: Any) -> tuple[str, str, str]:
    budget.search(len(text), len(_wanted(sep, "rpartition")))
    return _parted(budget, text, sep, str.rpartition(text, sep))


def _parted(
    budget: Budget, text: str, sep: str, parts: tuple[str, str, str]
) -> tuple[str, str, str]:
    budget.texts(6, 2 * len(text))
    first, second, third = _apart(text, list(parts), 0)
    return first, second, third


def replace(budget: Budget, text: str, old: Any, new: Any, count: Any = -1) -> Text:
    old, new = _wanted(old, "replace"), _wanted(new, "replace")
    if not isinstance(count, int):
        raise Fault(f"replace wants a whole number, not {type_name(count)}")
    budget.find(len(text), len(old))
    times = str.count(text, old) if old else len(text) + 1
    times = times if count < 0 else min(times, count)
    budget.text(len(text) + times * (len(new) - len(old)))
    budget.texts(2 * times, len(text))
    budget.step(times)
    if old:
        kept = _apart(text, str.split(text, old, times), len(old))
    else:
        kept = [own(""), *(cut(text, index, index + 1) for index in range(times - 1))]
        kept.append(cut(text, max(0, times - 1)))
        kept = kept if times else [cut(text, 0)]
    parts: list[str] = []
    for piece in kept:
        parts += [new, piece]
    return joined(parts[1:])


def join(budget: Budget, glue: str, parts: Any) -> Text:
    texts: list[str] = []
    for part in iterate(budget, parts):
        if not isinstance(part, str):
            raise Fault(
                f"sequence item {len(texts)}: expected str instance, {type_name(part)} found"
            )
        if texts:
            texts.append(glue)
        budget.items(2)
        texts.append(part)
    return concatenated(budget, texts)


def _removeprefix(budget: Budget, text: str, prefix: Any) -> Text:
    budget.text(len(text))
    return cut(text, len(prefix) if str.startswith(text, _wanted(prefix, "removeprefix")) else 0)


def _removesuffix(budget: Budget, text: str, suffix: Any) -> Text:
    budget.text(len(text))
    ends = str.endswith(text, _wanted(suffix, "removesuffix")) and bool(suffix)
    return cut(text, 0, len(text) - len(suffix) if ends else None)


def _justified(align: str) -> Callable[..., str]:
    """ljust, rjust; align: where the text comes to stand."""

    def justify(budget: Budget, text: str, width: Any, fillchar: Any = None) -> str:
        return padded(budget, text, _width(width), align, _fill(fillchar))

    return justify


def center(budget: Budget, text: str, width: Any, fillchar: Any = None) -> str:
    missing = _width(width) - len(text)
    # Python's own rule for where the odd one goes.
    left = max(0, missing // 2 + (missing & width & 1))
    shifted = padded(budget, text, len(text) + left, ">", _fill(fillchar))
    return padded(budget, shifted, width, "<", _fill(fillchar))


def _width(width: Any) -> int:
    if not isinstance(width, int):
        raise Fault(f"a width is a whole number, not {type_name(width)}")
    return width


def _fill(fillchar: Any) -> str:
    if fillchar is None:
        return own(" ")
    if len(_wanted(fillchar, "center")) != 1:
        raise Fault("The fill character must be exactly one character long")
    return str(fillchar) if not isinstance(fillchar, Text) else fillchar


def _zfill(budget: Budget, text: str, width: Any) -> str:
    signed = text[:1] in ("+", "-")
    digits = padded(budget, cut(text, 1) if signed else text, _width(width) - signed, ">", own("0"))
    return concatenated(budget, [cut(text, 0, 1), digits]) if signed else digits


def _expandtabs(budget: Budget, text: str, tabsize: Any = 8) -> Text:
    if _width(tabsize) > MAX_COLUMNS:
        raise Fault(f"it sets tabs {tabsize} columns apart: the limit is {MAX_COLUMNS}")
    budget.text(2 * (len(text) + str.count(text, "\t") * max(0, tabsize)))
    return marked_like(str.expandtabs(text, tabsize), text)


def _format(budget: Budget, text: str, *arguments: Any, **named: Any) -> str:
    return braces(budget, text, arguments, named)


def _format_map(budget: Budget, text: str, named: Any) -> str:
    if not isinstance(named, dict):
        raise Fault("format_map wants a dict")
    return braces(budget, text, (), named)


QUESTIONS = (
    "isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace "
    "istitle isupper"
).split()
TEXT_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _question(name) for name in QUESTIONS},
    **{name: recased(name) for name in "upper lower title capitalize swapcase casefold".split()},
    **{name: _ends(name) for name in ("startswith", "endswith")},
    **{name: _finding(name) for name in "find index count rfind rindex".split()},
    "strip": strip,
    "lstrip": lstrip,
    "rstrip": rstrip,
    "split": split,
    "rsplit": rsplit,
    "splitlines": splitlines,
    "partition": _partition,
    "rpartition": _rpartition,
    "replace": replace,
    "join": join,
    "removeprefix": _removeprefix,
    "removesuffix": _removesuffix,
    "ljust": _justified("<"),
    "rjust": _justified(">"),
    "center": center,
    "zfill": _zfill,
    "expandtabs": _expandtabs,
    "format": _format,
    "format_map": _format_map,
}
