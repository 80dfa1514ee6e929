"""What both families have in common: the fields of a decoder, its layers, and reading them.

A layer slides or attends fully; a family says which layers own keys and values and which borrow
them (`kv_donor`). Everything per layer is derived from a few numbers or read as a list, never
stored twice. Numbers are checked before anything is allocated from them, because a corrupt file
arrives here first.

    config.layers_of(SLIDING);  config.window(SLIDING);  config.kv_layers
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gemelo.errors import FileFormatError, UnsupportedError

LayerType = Literal["sliding_attention", "full_attention"]
SLIDING: LayerType = "sliding_attention"
FULL: LayerType = "full_attention"
LAYER_TYPES: tuple[LayerType, LayerType] = (SLIDING, FULL)

LIMIT = 1 << 24  # no honest dimension of a model comes near; a corrupt file's does


@dataclass(frozen=True)
class ModelConfig(ABC):
    """A decoder. `Gemma3Config` and `Gemma3nConfig` are the two there are."""

    vocab_size: int = 262208
    hidden_size: int = 2304
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    sliding_window: int = 4096
    layer_types: tuple[LayerType, ...] = ()
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    rope_scaling_factor: float = 1.0  # linear, full-attention layers only
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    bos_token_id: int = 2
    eos_token_id: tuple[int, ...] = (1,)
    pad_token_id: int = 0

    @property
    def layers(self) -> range:
        return range(self.num_hidden_layers)

    @property
    @abstractmethod
    def model_type(self) -> str:
        """Hugging Face's name of the architecture."""

    @property
    @abstractmethod
    def ffn_widths(self) -> tuple[int, ...]:
        """Width of every layer's feed-forward."""

    @property
    @abstractmethod
    def attention_scale(self) -> float:
        """What query-key products are multiplied by."""

    @abstractmethod
    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model."""

    @property
    def is_multimodal(self) -> bool:
        """Whether the checkpoint has towers beside the decoder."""
        return False

    @property
    def kv_layers(self) -> range:
        """Layers that own keys and values; later ones borrow them."""
        return self.layers

    def layers_of(self, kind: LayerType) -> list[int]:
        """Indices of the layers that attend as `kind` says."""
        return [layer for layer in self.layers if self.layer_types[layer] == kind]

    def window(self, kind: LayerType) -> int | None:
        """How many keys a query sees, itself included; None for all."""
        return self.sliding_window if kind == SLIDING else None


def alternating(num_layers: int, pattern: int) -> tuple[LayerType, ...]:
    """Layer i attends fully iff (i + 1) is a multiple of `pattern`; 6 is five local, one global."""
    return tuple(FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(num_layers))


# ---- reading -------------------------------------------------------------------------------------


def text_part(raw: Mapping[str, Any], multimodal: str) -> Mapping[str, Any]:
    """The decoder's part of a config.json: all of it, or `text_config` of a multimodal one."""
    return section(raw, "text_config") if raw.get("model_type") == multimodal else raw


def section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside a config.json, empty where there is none."""
    found = raw.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise FileFormatError(f"config has {key} = {found!r:.60}; expected an object")
    return found or {}


def known_fields(cls: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `raw` that are fields of the dataclass `cls` and have a value."""
    known = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in raw.items() if key in known and value is not None}


def refuse(text: Mapping[str, Any], wanted: Mapping[str, tuple[Any, ...]]) -> None:
    """Name the settings that would change the mathematics and that no published model uses."""
    for key, accepted in wanted.items():
        if text.get(key) not in (*accepted, None):
            raise UnsupportedError(
                f"config has {key} = {text[key]!r}; gemelo runs models with {accepted[0]!r}"
            )


def eos_ids(raw: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[int, ...]:
    """The top level's word on what ends a text counts more than the decoder's."""
    eos = raw.get("eos_token_id", text.get("eos_token_id"))
    if isinstance(eos, list | tuple):
        return tuple(eos)
    return (1,) if eos is None else (eos,)


def read_layer_types(
    text: Mapping[str, Any], num_layers: int, pattern: int
) -> tuple[LayerType, ...]:
    """An explicit list wins over a pattern, and that over the family's own."""
    given = text.get("layer_types")
    if given is None:
        every = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
        check_whole("num_hidden_layers", num_layers)
        check_whole("sliding_window_pattern", every or pattern)
        return alternating(num_layers, every or pattern)
    if not isinstance(given, list | tuple):
        raise FileFormatError(f"config has layer_types = {given!r:.60}; expected a list")
    unknown = sorted({str(kind) for kind in given} - set(LAYER_TYPES))
    if unknown:
        raise UnsupportedError(f"layer_types holds {unknown[0]!r}; known: {LAYER_TYPES}")
    return tuple(given)


def read_rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """Both generations of rotary settings, as (theta, local theta, linear factor)."""
    rope = text.get("rope_parameters")
    if not isinstance(rope, Mapping) or FULL not in rope:
        return {"rope_scaling_factor": _linear_factor(section(text, "rope_scaling"))}
    full, local = section(rope, FULL), section(rope, SLIDING)
    if _linear_factor(local) != 1.0:
        raise UnsupportedError("config scales the rotary embedding of sliding layers; none does")
    return {
        "rope_theta": full.get("rope_theta", ModelConfig.rope_theta),
        "rope_local_base_freq": local.get("rope_theta", ModelConfig.rope_local_base_freq),
        "rope_scaling_factor": _linear_factor(full),
    }


def _linear_factor(scaling: Mapping[str, Any]) -> float:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise UnsupportedError(f"rope_type {kind!r} is not supported (default, linear)")
    factor = scaling.get("factor", 1.0) if kind == "linear" else 1.0
    if not isinstance(factor, int | float):
        raise FileFormatError(f"config has rope factor {factor!r}; expected a number")
    return float(factor)


def check(config: ModelConfig) -> None:
    """Every number a corrupt file could have spoilt."""
    check_numbers(config)
    if len(config.layer_types) != config.num_hidden_layers:
        raise FileFormatError(
            f"config has {len(config.layer_types)} layer_types for "
            f"num_hidden_layers = {config.num_hidden_layers}; they must be equal"
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise FileFormatError(
            f"num_attention_heads = {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads = {config.num_key_value_heads}"
        )
    if config.head_dim % 2:
        raise FileFormatError(f"head_dim = {config.head_dim} is odd; rotary embedding needs pairs")


_MAY_BE_ZERO = (
    "bos_token_id",
    "pad_token_id",
    "altup_active_idx",
    "num_kv_shared_layers",
    "conf_attention_context_right",
)


def check_numbers(config: Any) -> None:
    """Raise unless every field of a dataclass that is one number holds one that it may be."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "int":
            check_whole(field.name, value, lowest=0 if field.name in _MAY_BE_ZERO else 1)
        if field.type == "float" and not (isinstance(value, int | float) and 0 < value < 1e12):
            raise FileFormatError(f"config has {field.name} = {value!r}; expected a number above 0")


def check_whole(name: str, value: Any, lowest: int = 1) -> None:
    """Raise unless value is a whole number from `lowest` to `LIMIT`."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= LIMIT:
        raise FileFormatError(f"config has {name} = {value!r}; expected {lowest} to {LIMIT}")


# ---- writing -------------------------------------------------------------------------------------


def text_to_hf(config: ModelConfig, left_out: set[str]) -> dict[str, Any]:
    """The decoder's fields, and the rotary settings in both generations' spelling."""
    fields = [field.name for field in dataclasses.fields(config) if field.name not in left_out]
    factor = config.rope_scaling_factor
    linear = {"rope_type": "linear", "factor": factor}
    return {name: _plain(getattr(config, name)) for name in fields} | {
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            FULL: {"rope_theta": config.rope_theta}
            | (linear if factor != 1 else {"rope_type": "default"}),
            SLIDING: {"rope_theta": config.rope_local_base_freq, "rope_type": "default"},
        },
        "rope_scaling": linear if factor != 1 else None,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
