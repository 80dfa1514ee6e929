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

from gemelo.config.rope import Linear, Rope, Scaling, positive, read_entry
from gemelo.errors import FileFormatError, UnsupportedError

LayerType = Literal["sliding_attention", "full_attention"]
SLIDING: LayerType = "sliding_attention"
FULL: LayerType = "full_attention"
LAYER_TYPES: tuple[LayerType, LayerType] = (SLIDING, FULL)

LIMIT = 1 << 24  # no honest dimension of a model comes near; a corrupt file's does
SMALLEST, LARGEST = 1e-30, 1e12  # of factors, caps and the like
MOST_LAYERS = 1024  # of a decoder or a tower


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
    rope_scaling_factor: float = 1.0  # linear, of full-attention layers
    rope_scaling: Scaling | None = None  # of those layers, if it is not linear
    rope_local_scaling: Scaling | None = None  # of sliding layers
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

    def rope(self, kind: LayerType) -> Rope:
        """How the heads of a kind of layer turn."""
        if kind == SLIDING:
            return Rope(self.rope_local_base_freq, self.rope_local_scaling)
        factor = self.rope_scaling_factor
        linear = Linear(factor) if factor != 1 else None
        return Rope(self.rope_theta, self.rope_scaling or linear)

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
    """The entries of `raw` that are fields of the dataclass `cls`. A null stands for "none" where
    there may be none, and for the default of ids and lists; elsewhere nobody can tell."""
    known = {field.name: field.type for field in dataclasses.fields(cls)}
    found = {key: value for key, value in raw.items() if key in known}
    for key, value in found.items():
        if value is None and known[key] in ("int", "float", "bool") and not key.endswith(_IDS):
            raise FileFormatError(f"config has {key} = null; give it a value or leave it out")
    may_be_none = {key for key, kind in known.items() if kind == "float | None"}
    return {k: value for k, value in found.items() if value is not None or k in may_be_none}


ACTIVATION = "gelu_pytorch_tanh"
# Settings of a decoder that change the mathematics, and the values that gemelo runs.
REFUSED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False,),
    "hidden_activation": (ACTIVATION,),
    "partial_rotary_factor": (1,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "enable_moe_block": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, []),
    "per_layer_config": ({}, []),
}
_BOTH_WAYS = "use_bidirectional_attention"
_IDS = ("_token_id", "_token_index", "_per_image")
PATTERN_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")


def refuse_text(text: Mapping[str, Any]) -> None:
    """Refuse what no decoder of the family has."""
    refuse(text, REFUSED)
    if text.get("hidden_activation") is None:
        refuse(text, {"hidden_act": (ACTIVATION,)})


def refuse(text: Mapping[str, Any], wanted: Mapping[str, tuple[Any, ...]]) -> None:
    """Name the settings that would change the mathematics and that no published model uses."""
    for key, accepted in wanted.items():
        if text.get(key) not in (*accepted, None):
            why = ": an embedding model, which writes no text" if key == _BOTH_WAYS else ""
            raise UnsupportedError(
                f"config has {key} = {text[key]!r:.60}{why}; gemelo runs models with "
                f"{accepted[0]!r}"
            )


def eos_ids(raw: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[int, ...]:
    """The top level's word on what ends a text counts more than the decoder's."""
    eos = raw.get("eos_token_id", text.get("eos_token_id"))
    if isinstance(eos, list | tuple):
        return tuple(eos)
    return (1,) if eos is None else (eos,)


def ties_head(raw: Mapping[str, Any]) -> Any:
    """Whether the embedding is the head. The top level speaks for the model, as in transformers;
    what the decoder's part says beside it, the weights decide (`gemelo.checkpoints.source`)."""
    ties = raw.get("tie_word_embeddings")
    return True if ties is None else ties


def read_layer_types(
    text: Mapping[str, Any], num_layers: int, pattern: int
) -> tuple[LayerType, ...]:
    """An explicit list wins over a pattern, and that over the family's own.

    `_sliding_window_pattern` is what transformers writes beside a list; alone it has no effect.
    """
    given = text.get("layer_types")
    if given is None:
        name, hidden = PATTERN_KEYS
        every = text.get(name)
        check_whole("num_hidden_layers", num_layers, most=MOST_LAYERS)
        check_whole(name, pattern if every is None else every)
        if every is None:
            refuse(text, {hidden: (pattern,)})
        return alternating(num_layers, pattern if every is None else every)
    if not isinstance(given, list | tuple):
        raise FileFormatError(f"config has layer_types = {given!r:.60}; expected a list")
    unknown = sorted({str(kind) for kind in given} - set(LAYER_TYPES))
    if unknown:
        raise UnsupportedError(f"layer_types holds {unknown[0]!r}; known: {LAYER_TYPES}")
    return tuple(given)


def read_rope(text: Mapping[str, Any], context: int) -> dict[str, Any]:
    """The rotary settings of both kinds of layer, of every generation of files."""
    full, local = rope_entries(text)
    theta = positive(text, "rope_theta", "config") or ModelConfig.rope_theta
    base = positive(text, "rope_local_base_freq", "config") or ModelConfig.rope_local_base_freq
    slow = read_entry(full, f"config's rope of {FULL}", theta, context)
    fast = read_entry(local, f"config's rope of {SLIDING}", base, context)
    linear = slow.scaling if isinstance(slow.scaling, Linear) else None
    return {
        "rope_theta": slow.theta,
        "rope_local_base_freq": fast.theta,
        "rope_scaling_factor": 1.0 if linear is None else linear.factor,
        "rope_scaling": slow.scaling if linear is None else None,
        "rope_local_scaling": fast.scaling,
    }


def rope_entries(text: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of full and of sliding layers; `rope_scaling` is about full ones."""
    given, scaling = section(text, "rope_parameters"), section(text, "rope_scaling")
    plain = {"rope_type": "default", "rope_theta": text.get("rope_theta")}
    beside = [key for key in given if key not in LAYER_TYPES and given[key] is not None]
    strange = [key for key in beside if given[key] != plain.get(key)]
    where = "rope_parameters" if strange else "rope_scaling"
    strange += [key for key in LAYER_TYPES if key in scaling]
    if strange:
        raise UnsupportedError(
            f"config has {strange[0]!r:.40} in {where}, where it has no effect on a model of this "
            f"family; write it in rope_parameters, under {FULL} or {SLIDING}"
        )
    full, local = dict(section(given, FULL)), dict(section(given, SLIDING))
    if scaling.get("rope_type") is not None or scaling.get("type") is not None:
        full = {key: value for key, value in full.items() if key not in ("rope_type", "type")}
    return full | dict(scaling), local


def check(config: ModelConfig) -> None:
    """Every number a corrupt file could have spoilt."""
    check_numbers(config)
    for token in config.eos_token_id:
        check_whole("eos_token_id", token, lowest=0)
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


# Of what is made so many times, and no tensor's side shows.
_MOST = {
    "num_hidden_layers": MOST_LAYERS,
    "conf_num_hidden_layers": MOST_LAYERS,
    "altup_num_inputs": 16,
    "conf_attention_context_left": 1024,  # frames of 40 ms
    "vision_soft_tokens_per_image": 1 << 14,
    "audio_soft_tokens_per_image": 1 << 14,
    "mm_tokens_per_image": 1 << 14,
}


def check_numbers(config: Any) -> None:
    """Raise unless every field of a dataclass that is one value holds one that it may be."""
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if field.type == "int":
            check_whole(name, value, 0 if name in _MAY_BE_ZERO else 1, _MOST.get(name, LIMIT))
        if field.type == "float" or (field.type == "float | None" and value is not None):
            check_positive(name, value)
        if field.type == "bool" and not isinstance(value, bool):
            raise FileFormatError(f"config has {name} = {value!r:.60}; expected true or false")


def check_whole(name: str, value: Any, lowest: int = 1, most: int = LIMIT) -> None:
    """Raise unless value is a whole number from `lowest` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= most:
        raise FileFormatError(f"config has {name} = {value!r:.60}; expected {lowest} to {most}")


def check_positive(name: str, value: Any) -> None:
    """Raise unless value is a number that is above 0 and still is in float32."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not SMALLEST < value < LARGEST:
        raise FileFormatError(f"config has {name} = {value!r:.60}; expected a number above 0")


# ---- writing -------------------------------------------------------------------------------------


def text_to_hf(config: ModelConfig, left_out: set[str]) -> dict[str, Any]:
    """The decoder's fields, and the rotary settings in both generations' spelling."""
    left_out = left_out | {"rope_scaling_factor", "rope_scaling", "rope_local_scaling"}
    fields = [field.name for field in dataclasses.fields(config) if field.name not in left_out]
    full, local = config.rope(FULL), config.rope(SLIDING)
    scaling = {key: value for key, value in full.to_hf().items() if key != "rope_theta"}
    return {name: _plain(getattr(config, name)) for name in fields} | {
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {FULL: full.to_hf(), SLIDING: local.to_hf()},
        "rope_scaling": None if full.scaling is None else scaling,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
