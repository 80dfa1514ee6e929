"""Sampling parameters: temperature, top-k, top-p, min-p, penalties, stop texts, and their limits.

`Sampling` is a checked value with Gemma's own defaults (temperature 1, top-k 64, top-p 0.95), and
the one place that has them: the library's keyword arguments and the command line's options read
them here, which loads neither torch nor numpy. `SamplingSettings` is the same as keyword arguments,
for editors and type checkers. What becomes of them is `engine/sampler`.

    Sampling(temperature=0.7, seed=1, stop=("\\n",))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Self, TypedDict

from gemelo.config import absent_arguments
from gemelo.errors import InputError, shown

_MAX_TOP_LOGPROBS = 20
# Settings of transformers, mlx-lm and llama.cpp by their names here.
_SAME = {
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "num_return_sequences": "n",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "top_logprobs": "logprobs",
    "generation_config": "sampling",
}
_NUMBERS = (  # name, least, most
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -100.0, 100.0),
    ("frequency_penalty", -100.0, 100.0),
)
_COUNTS = (
    ("top_k", 0, 1 << 31),
    ("max_tokens", 1, 1 << 31),
    ("n", 1, 64),
    ("seed", 0, 2**63 - 1),
    ("logprobs", 0, _MAX_TOP_LOGPROBS),
)


class _Settings:
    """Base of `Sampling`: a field that it has not is an `InputError` too, and no TypeError."""

    def __new__(cls, *values: Any, **settings: Any) -> Self:
        _check_names(settings)
        return super().__new__(cls)


@dataclass(frozen=True)
class Sampling(_Settings):
    """How to choose tokens and when to stop. Raises `InputError` for values that make no sense."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 64  # 0 keeps all
    top_p: float = 0.95  # 1 keeps all
    min_p: float = 0.0  # share of the likeliest token's probability; 0 keeps all
    repetition_penalty: float = 1.0  # divides scores of tokens seen in prompt or answer; 0.01 up
    presence_penalty: float = 0.0  # subtracted once from tokens seen in the answer
    frequency_penalty: float = 0.0  # subtracted for every time they were seen there
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # None draws one, and the completion tells which
    max_tokens: int = 256
    stop: tuple[str, ...] = ()  # ends the text before any of these
    ignore_eos: bool = False
    logprobs: int | None = None  # 0: of the chosen token; n: of the n likeliest too
    n: int = 1  # continuations of one prompt

    def __post_init__(self) -> None:
        for name, low, high in _NUMBERS:
            self._set(name, _number(name, getattr(self, name), low, high))
        if self.top_p == 0:
            raise InputError("top_p = 0 keeps no token; expected above 0, up to 1 (1 keeps all)")
        for name, lowest, highest in _COUNTS:
            value = getattr(self, name)
            if value is not None or name not in ("seed", "logprobs"):
                self._set(name, _whole(name, value, lowest, highest))
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos = {shown(self.ignore_eos)}; expected true or false")
        self._set("stop", _stops(self.stop))
        self._set("logit_bias", _biases(self.logit_bias))

    def _set(self, name: str, value: Any) -> None:
        """A field as it was checked: plain Python numbers, whatever they were given as."""
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, settings: Mapping[str, Any], sampling: Sampling | None = None) -> Sampling:
        """From keyword arguments, or the value that was given in their place.

        An unknown keyword is an `InputError` that says what was meant or lists the known, and so is
        giving both.
        """
        _check_names(settings)
        if sampling is None:
            return cls(**settings)
        if not isinstance(sampling, cls):
            raise InputError(f"sampling = {shown(sampling)}; expected a Sampling")
        if settings:
            raise InputError(
                f"both sampling= and {', '.join(settings)}= were given; give one of them, or "
                "dataclasses.replace(sampling, ...)"
            )
        return sampling

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken and no random number drawn."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def plain(self) -> bool:
        """Whether a token is the largest score as it is, and nothing else is asked."""
        return self.greedy and self.logprobs is None and not self.adjusts

    @property
    def adjusts(self) -> bool:
        """Whether scores depend on what was said before, or on a bias."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


class SamplingSettings(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments; `stop` may be one text too."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    max_tokens: int
    stop: str | Sequence[str]
    ignore_eos: bool
    logprobs: int | None
    n: int


def _check_names(names: Iterable[str]) -> None:
    """Raise InputError for the first that is no field, with the one that was meant."""
    known = [field.name for field in fields(Sampling)]
    absent_arguments.check(names, absent_arguments.GENERATING)
    for name in names:
        if name in _SAME:
            raise InputError(f"{name} is called {_SAME[name]} here")
        if name not in known:
            close = get_close_matches(name, [*known, *_SAME], 1, 0.7)
            hint = f"did you mean {_SAME.get(close[0], close[0])}?" if close else ""
            raise InputError(
                f"unknown sampling setting {shown(name)}; {hint or 'known: ' + ', '.join(known)}"
            )


def _number(name: str, value: Any, low: float, high: float) -> float:
    """A setting as a float, or an `InputError` that says what it may be."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)  # NumPy's too
    if not is_number or not low <= value <= high:  # NaN is in no range
        raise InputError(f"{name} = {shown(value)}; expected {low:g} to {high:g}")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    """A setting as a whole number, or an `InputError` that says what it may be."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not low <= value <= high:
        raise InputError(f"{name} = {shown(value)}; expected a whole number from {low} to {high}")
    return int(value)


def _stops(stop: Any) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Sequence):
        raise InputError(f"stop = {shown(stop)}; expected a text or a list of texts")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise InputError(f"stop has {shown(text)}; each stop must be a text that is not empty")
    return tuple(stop)


def _biases(biases: Any) -> dict[int, float]:
    if not isinstance(biases, Mapping):
        raise InputError(f"logit_bias = {shown(biases)}; expected token ids, and a number for each")
    return {
        _whole("logit_bias token", token, 0, 1 << 31): _number(
            f"logit_bias of token {shown(token)}", bias, -1000.0, 1000.0
        )
        for token, bias in biases.items()
    }


# What a program begins with, where nobody says otherwise.
CHAT = Sampling(max_tokens=2048)  # what a conversation at the terminal begins with
CONTINUATION = Sampling(max_tokens=128)  # and one with a base model, which seldom ends by itself
TRANSCRIPTION = Sampling(temperature=0.0, max_tokens=4096)  # what was said, not what might be
