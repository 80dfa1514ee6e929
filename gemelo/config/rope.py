"""Rotary embedding (RoPE): frequencies and scaling, from every spelling that config files have.

A kind of layer has a base (theta) and perhaps a way to stretch it to longer contexts: linear
(position interpolation, arXiv 2306.15595), yarn (arXiv 2309.00071) or llama3 (arXiv 2407.21783),
which are tables of frequencies made once. `dynamic` begins to stretch past the trained context,
where gemelo does not go. What depends on the length of a text, or turns a part of a head, is
refused by name. The rules of precedence are transformers': a kind's own entry in `rope_parameters`
counts more than the top level, and `rope_scaling` more than the entry of full layers.

    Rope(theta=1e6, scaling=Yarn(8.0, 32768)).frequencies(head_dim=256)      # 128 numbers
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from gemelo.config.checks import is_number
from gemelo.errors import FileFormatError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_MOST = 1e12
# Of full and of sliding layers, where a file does not say.
ROPE_THETA, ROPE_LOCAL_BASE_FREQ = 1_000_000.0, 10_000.0


@dataclass(frozen=True)
class Linear:
    """All positions divided by one factor."""

    factor: float

    def stretch(self, frequencies: Floats, theta: float) -> Floats:
        """Frequencies (d / 2,) as they turn in the longer context."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Yarn:
    """Slow pairs are stretched, fast ones left alone, with a ramp between; and attention is a
    little sharper, which is a factor on both sides of its product."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def stretch(self, frequencies: Floats, theta: float) -> Floats:
        """Frequencies (d / 2,) as they turn in the longer context."""
        import numpy as np

        pairs = len(frequencies)
        low = max(math.floor(self._pair_of(self.beta_fast, theta, pairs)), 0.0)
        high = min(math.ceil(self._pair_of(self.beta_slow, theta, pairs)), 2.0 * pairs - 1)
        width = high - low or 0.001
        ramp: Floats = ((np.arange(pairs, dtype=np.float32) - low) / width).clip(0, 1)
        return frequencies / self.factor * ramp + frequencies * (1 - ramp)

    @property
    def attention_scaling(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._grown(self.mscale) / self._grown(self.mscale_all_dim)
        return self._grown(1.0)

    def _grown(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    def _pair_of(self, turns: float, theta: float, pairs: int) -> float:
        """The pair that turns so often within the original context."""
        length = self.original_max_position_embeddings
        return pairs * math.log(length / (turns * 2 * math.pi)) / math.log(theta)


@dataclass(frozen=True)
class Llama3:
    """Waves longer than the original context are stretched, short ones left alone."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def stretch(self, frequencies: Floats, theta: float) -> Floats:
        """Frequencies (d / 2,) as they turn in the longer context."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        kept: Floats = ((turns - self.low_freq_factor) / span).clip(0, 1)
        return frequencies / self.factor * (1 - kept) + frequencies * kept


Scaling = Linear | Yarn | Llama3
_KINDS: dict[str, type[Scaling]] = {"linear": Linear, "yarn": Yarn, "llama3": Llama3}
_NAMES = {kind: name for name, kind in _KINDS.items()}
PLAIN = ("default", "dynamic")
# Keys that say nothing more, or that only a refused kind reads.
_KNOWN = {"rope_type", "type", "rope_theta", "truncate", "partial_rotary_factor"}


@dataclass(frozen=True)
class Rope:
    """The turning of one kind of layer."""

    theta: float
    scaling: Scaling | None = None

    def frequencies(self, head_dim: int) -> tuple[float, ...]:
        """Radians a position for every pair of a head, in float32: (head_dim / 2,)."""
        import numpy as np  # here, so that the command line's help does without it

        # The exponents are float32, as the reference has them; their powers are rounded to that
        # once, from float64, so that they are the same on every machine.
        exponents = -np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        with np.errstate(all="ignore"):  # of absurd factors: infinite, and no warning
            powers = np.float64(np.float32(self.theta)) ** exponents.astype(np.float64)
            plain = powers.astype(np.float32)
            stretched = plain if self.scaling is None else self.scaling.stretch(plain, self.theta)
        return tuple(stretched.tolist())

    @property
    def attention_scaling(self) -> float:
        """What the cosines and sines of queries and keys are multiplied by: 1 but for yarn."""
        return self.scaling.attention_scaling if isinstance(self.scaling, Yarn) else 1.0

    def to_hf(self) -> dict[str, Any]:
        """The entry of this kind of layer in `rope_parameters`."""
        if self.scaling is None:
            return {"rope_theta": self.theta, "rope_type": "default"}
        values = {key: value for key, value in vars(self.scaling).items() if value is not None}
        return {"rope_theta": self.theta, "rope_type": _NAMES[type(self.scaling)]} | values


# ---- reading -------------------------------------------------------------------------------------


def read_entry(raw: Mapping[str, Any], where: str, theta: float, context: int) -> Rope:
    """A kind of layer's entry; theta and context stand for what it does not say."""
    theta = positive(raw, "rope_theta", where) or theta
    kind = _kind(raw, where)
    if kind in PLAIN:
        if kind == "default" and raw.get("factor") not in (None, 1):
            raise UnsupportedError(
                f"{where} has factor = {raw['factor']!r:.40} and no rope_type that uses it; give "
                f"it one ({', '.join(_KINDS)}), or take the factor out"
            )
        return Rope(theta)
    if kind not in _KINDS:
        raise UnsupportedError(
            f"{where} has rope_type {kind!r:.40}, which is not supported; gemelo runs "
            f"{', '.join((*PLAIN, *_KINDS))}"
        )
    scaling = _scaling(_KINDS[kind], raw, where, context)
    if isinstance(scaling, Yarn) and theta <= 1:
        raise FileFormatError(f"{where} has rope_theta = {theta:g}; yarn needs one above 1")
    return Rope(theta, scaling)


def unknown_keys(raw: Mapping[str, Any]) -> list[str]:
    """Keys of an entry that nothing is known of."""
    known = _KNOWN | {field.name for kind in _KINDS.values() for field in fields(kind)}
    return [str(key) for key in raw if key not in known]


def _kind(raw: Mapping[str, Any], where: str) -> str:
    """The rope_type, or the `type` that older files call it."""
    kind, old = raw.get("rope_type"), raw.get("type")
    if kind is not None and old is not None and kind != old:
        raise FileFormatError(
            f"{where} has rope_type = {kind!r:.40} and type = {old!r:.40}; take one out"
        )
    for key, wanted in (("partial_rotary_factor", 1), ("truncate", True)):
        if raw.get(key) not in (None, wanted):
            raise UnsupportedError(
                f"{where} has {key} = {raw[key]!r:.40}; gemelo runs models with {wanted}"
            )
    name = kind or old or "default"
    if not isinstance(name, str):
        raise FileFormatError(f"{where} has rope_type = {name!r:.40}; expected a name")
    return name


def _scaling(kind: type[Scaling], raw: Mapping[str, Any], where: str, context: int) -> Scaling:
    own: dict[str, Any] = {field.name: positive(raw, field.name, where) for field in fields(kind)}
    values = {key: value for key, value in own.items() if value is not None}
    if "original_max_position_embeddings" in own:
        values.setdefault("original_max_position_embeddings", context)
    lacking = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if lacking:
        raise FileFormatError(f"{where} lacks {lacking[0]}, which its rope_type needs")
    if kind is Llama3 and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise FileFormatError(
            f"{where} has high_freq_factor = {values['high_freq_factor']:g}; expected one above "
            f"low_freq_factor = {values['low_freq_factor']:g}"
        )
    return kind(**values)


def positive(raw: Mapping[str, Any], key: str, where: str) -> float | None:
    """A number above 0, as it is; None where there is none."""
    value = raw.get(key)
    if value is None:
        return None
    if not is_number(value) or not 0 < value < _MOST:
        raise FileFormatError(
            f"{where} has {key} = {value!r:.40}; expected a number above 0 and below {_MOST:g}"
        )
    return value
