"""Tokenizer pipeline: the normalizer, pre-tokenizer, post-processor and decoder that are run.

A normaliser, a pre-tokeniser and a decoder are small programs, and a file from anywhere may hold
any: forty replacements of "a" by "aa" never end, one by three megabytes ends the process. So the
steps that Gemma's family and its fine-tunes use are known here by name, each with its settings, and
any other step or setting is refused by name. What the steps can make of a text is bounded before
one runs: the product of what each replacement makes longer.

    pipeline = Pipeline.parse(top)      # top: the members of a tokenizer.json
    pipeline.around                     # the ids before and after a text: ((2,), ())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from gemelo.errors import FileFormatError, UnsupportedError

MAX_STEPS = 16
MAX_STEP_CHARS = 64  # of a string to look for, or to put in its place
MAX_PREFIX_CHARS = 4  # put before a text once for each added string in it
MAX_GROWTH = 8.0  # bytes that all replacements together make of one
MAX_AROUND = 8  # ids before a text, and after it

Check = Callable[[Any], bool]
Steps = Mapping[str, Mapping[str, Check]]


@dataclass(frozen=True)
class Pipeline:
    """Checked steps, as the file has them; around: ids before and after a text, None if
    unsaid; strips: whether normalising takes spaces from the ends of a text."""

    normalizer: Any = None
    pre_tokenizer: Any = None
    decoder: Any = None
    around: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    strips: bool = False

    @classmethod
    def parse(cls, top: Mapping[str, Any]) -> Self:
        """The steps among the members of a tokenizer.json.

        Raises UnsupportedError for a step or a setting that is not run, by its name, and for
        replacements that make a text too long.
        """
        normalizer = _checked(top, "normalizer", "normalizers", _NORMALIZERS)
        _check_growth("normalizer", normalizer)
        _checked(top, "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS)
        decoder = _checked(top, "decoder", "decoders", _DECODERS)
        _check_growth("decoder", decoder)
        after = _checked(top, "post_processor", "processors", _POST_PROCESSORS)
        templates = [step for step in after if step["type"] == "TemplateProcessing"]
        if len(templates) > 1:
            raise UnsupportedError("post_processor has two templates: one is run")
        around = _around(templates[0]) if templates else None
        strips = any(step["type"] == "Strip" for step in normalizer)
        return cls(
            top.get("normalizer"), top.get("pre_tokenizer"), top.get("decoder"), around, strips
        )


def _checked(top: Mapping[str, Any], member: str, listed: str, known: Steps) -> list[Any]:
    """The steps of a member, alone or in a sequence, each of a known name with known settings."""
    value = top.get(member)
    if value is None:
        return []
    steps = [value]
    if isinstance(value, dict) and value.get("type") == "Sequence":
        steps = value.get(listed)  # type: ignore[assignment]
        unknown = value.keys() - {"type", listed}
        if not isinstance(steps, list) or unknown:
            raise FileFormatError(f"{member}: the Sequence is no list of {listed}")
    if len(steps) > MAX_STEPS:
        raise UnsupportedError(f"{member} has {len(steps)} steps: the limit is {MAX_STEPS}")
    for step in steps:
        _check_step(member, step, known)
    return steps


def _check_step(member: str, step: Any, known: Steps) -> None:
    name = step.get("type") if isinstance(step, dict) else None
    if not isinstance(name, str):
        raise FileFormatError(f"{member}: {step!r:.60} is no step")
    if name not in known:
        raise UnsupportedError(f"{member}: {name!r:.60} is not run; run are {', '.join(known)}")
    checks = known[name]
    for setting, value in step.items():
        if setting == "type":
            continue
        if setting not in checks or not checks[setting](value):
            raise UnsupportedError(
                f"{member}: {name} with {setting!r:.40} = {value!r:.60} is not run"
            )


def _check_growth(member: str, steps: list[Any]) -> None:
    """Refuse replacements that, one after the other, make many bytes of one."""
    growth = 1.0
    for step in steps:
        if step["type"] == "Replace":
            _require(member, step, "pattern", "content")
            pattern = step["pattern"].get("String", " ")  # a rule that is known matches a byte
            growth *= max(1.0, len(step["content"].encode()) / len(pattern.encode()))
    forms = sum(step["type"] in _FORMS for step in steps)
    if growth > MAX_GROWTH or forms > 1:
        raise UnsupportedError(
            f"{member}: its steps make a text up to {growth:.3g} times as long, "
            f"in {forms} Unicode forms: the limits are {MAX_GROWTH:g} times and 1 form"
        )


def _require(member: str, step: Any, *settings: str) -> None:
    for setting in settings:
        if setting not in step:
            raise FileFormatError(f"{member}: {step['type']} has no {setting!r}")


def _around(template: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a template puts before and after a single text."""
    single, special = template.get("single"), template.get("special_tokens")
    before: list[int] = []
    after: list[int] = []
    side = before
    for piece in single if isinstance(single, list) else ():
        named = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if isinstance(named, dict):
            side += _ids_of(special, named.get("id"))
        elif isinstance(piece, dict) and isinstance(piece.get("Sequence"), dict) and side is before:
            side = after
        else:
            raise FileFormatError(f"post_processor: {piece!r:.60} is no place")
    if side is before or max(len(before), len(after)) > MAX_AROUND:
        raise FileFormatError(
            f"post_processor: the template has no text with at most {MAX_AROUND} "
            "ids before and after it"
        )
    return tuple(before), tuple(after)


def _ids_of(special: Any, name: Any) -> list[int]:
    entry = special.get(name) if isinstance(special, dict) and isinstance(name, str) else None
    ids = entry.get("ids") if isinstance(entry, dict) else None
    if not isinstance(ids, list) or not all(type(id) is int and 0 <= id < 1 << 22 for id in ids):
        raise FileFormatError(f"post_processor: {name!r:.60} has no ids")
    return ids


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_STEP_CHARS and _is_utf8(value)


def _is_prefix(value: Any) -> bool:
    return _is_text(value) and 0 < len(value) <= MAX_PREFIX_CHARS  # of none the library panics


def _is_character(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 1 and _is_utf8(value)


def _is_utf8(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_pattern(value: Any) -> bool:
    """A literal string, or one of the regular expressions that are known to be quick."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    literal = value.get("String")
    return (_is_text(literal) and literal != "") or value.get("Regex") in _EXPRESSIONS


def _is_behavior(value: Any) -> bool:
    return value in _BEHAVIORS


def _is_scheme(value: Any) -> bool:
    return value in ("always", "never", "first")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_STEPS


def _is_zero(value: Any) -> bool:
    return type(value) is int and value == 0  # beyond a token's characters the library panics


def _is_anything(value: Any) -> bool:
    return True  # looked at where it is used


_EXPRESSIONS = (" {2,}", r"\s+")
_BEHAVIORS = (
    "Removed",
    "Isolated",
    "MergedWithPrevious",
    "MergedWithNext",
    "Contiguous",
)
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_REPLACE = {"pattern": _is_pattern, "content": _is_text}
_METASPACE = {
    "replacement": _is_character,
    "prepend_scheme": _is_scheme,
    "split": _is_bool,
    "add_prefix_space": _is_bool,
    "str_rep": _is_character,
}
_BYTE_LEVEL = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), _is_bool)
_NORMALIZERS: Steps = {
    "Replace": _REPLACE,
    "Prepend": {"prepend": _is_prefix},
    "Strip": {"strip_left": _is_bool, "strip_right": _is_bool},
    "Lowercase": {},
} | {form: {} for form in _FORMS}
_PRE_TOKENIZERS: Steps = {
    "Split": {"pattern": _is_pattern, "behavior": _is_behavior, "invert": _is_bool},
    "Metaspace": _METASPACE,
    "ByteLevel": _BYTE_LEVEL,
    "Whitespace": {},
    "WhitespaceSplit": {},
    "Digits": {"individual_digits": _is_bool},
}
_DECODERS: Steps = {
    "Replace": _REPLACE,
    "ByteFallback": {},
    "Fuse": {},
    "Strip": {"content": _is_character, "start": _is_count, "stop": _is_zero},
    "Metaspace": _METASPACE,
    "ByteLevel": _BYTE_LEVEL,
}
_POST_PROCESSORS: Steps = {
    "TemplateProcessing": dict.fromkeys(("single", "pair", "special_tokens"), _is_anything),
    "ByteLevel": _BYTE_LEVEL,
}
