"""Sampling settings by name, as /set takes them: ours, and those of llama.cpp, Ollama and others.

A setting is a field of the library's `Sampling`, and its value is JSON or a text as it is; `none`
is no value. Names that mean the same elsewhere are taken too. Some of theirs are chosen here when a
model is loaded: those say with which option. What a chat has no use for is refused.

    sampling = with_setting(Sampling(), "temp", "0.5")
    in_words(sampling, "stop")                          # "none"
"""

from __future__ import annotations

import dataclasses
import json
from difflib import get_close_matches

from gemelo.cli import absent
from gemelo.config.sampling import Sampling
from gemelo.errors import InputError, shown

SAME = {
    "temp": "temperature",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "stop_sequences": "stop",
}
_MOST_DIGITS = 20  # of a number that may be a token id; Python reads no more than 4,300
_AT_START = {
    "num_ctx": "--context",
    "n_ctx": "--context",
    "ctx_size": "--context",
    "context": "--context",
    "num_thread": "--threads",
    "threads": "--threads",
    "model": "--model",
    "device": "--device",
    "kv_format": "--kv-format",
}
_NOT_IN_CHAT = {
    "n": "a conversation has one continuation; n stays 1",
    "logprobs": "a chat shows no log-probabilities; `gemelo generate --json --logprobs N` does",
}


def setting_name(name: str) -> str:
    """The field of `Sampling` that a name means. Raises `InputError` with what to type instead."""
    plain = name.lower().replace("-", "_")
    field = SAME.get(plain, plain)
    known = names()
    if field in _NOT_IN_CHAT:
        raise InputError(_NOT_IN_CHAT[field])
    if field in known:
        return field
    if plain in _AT_START:
        option = _AT_START[plain]
        raise InputError(f"{name} is chosen when a model is loaded: leave, and start with {option}")
    if sentence := absent.sentence(absent.SETTINGS, name):
        raise InputError(f"/set {name}: {sentence}")
    close = get_close_matches(plain, [*known, *SAME], 1, 0.7)
    hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
    raise InputError(f"unknown sampling setting {shown(name)}{hint}")


def names() -> list[str]:
    """The settings that a chat has, in `Sampling`'s order."""
    return [one.name for one in dataclasses.fields(Sampling) if one.name not in _NOT_IN_CHAT]


def in_words(sampling: Sampling, field: str) -> str:
    """A setting's value as /set takes it: JSON, or none."""
    value = getattr(sampling, field)
    is_empty = value is None or value in ((), {})
    return "none" if is_empty else json.dumps(value, ensure_ascii=False)


def with_setting(sampling: Sampling, name: str, value: str) -> Sampling:
    """One field changed; `value` is JSON, or else a text as it is. Raises `InputError`."""
    field = setting_name(name)
    settings = dataclasses.asdict(sampling)
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None if value.lower() == "none" else value
    if parsed is None and isinstance(settings[field], tuple | list | dict):
        parsed = type(settings[field])()
    if field == "logit_bias" and isinstance(parsed, dict):
        parsed = {_id_of(key): bias for key, bias in parsed.items()}
    if isinstance(settings[field], bool) and not isinstance(parsed, bool):
        raise InputError(f"{field} = {shown(value)}; expected true or false")
    return Sampling.of(settings | {field: parsed})


def _id_of(key: str) -> int | str:
    """The token id that a key of JSON means; the key itself where it is none."""
    return int(key) if key.isdecimal() and len(key) < _MOST_DIGITS else key
