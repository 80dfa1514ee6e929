"""What a model is: the facts of a `config.json`, and what follows from them.

`ModelConfig` is a frozen value with Hugging Face's field names. It is read from the old form of
a config (`rope_theta`, `sliding_window_pattern`), from the transformers 5 form
(`rope_parameters`, `layer_types`), or from the `text_config` of a multimodal one; absent fields
take the defaults of the reference classes, because published files leave them out. What it cannot
express it refuses by name.

Per-layer facts (which layers slide, which attend fully) are derived, never stored twice. The cost
model at the end (parameters, FLOPs, KV bytes) is a set of functions of a config, so that planner,
benchmark and documentation cannot disagree.

    config = ModelConfig.from_hf(json.loads(Path("config.json").read_text()))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gemelo.errors import FileFormatError, UnsupportedError

LayerType = Literal["sliding_attention", "full_attention"]
SLIDING: LayerType = "sliding_attention"
FULL: LayerType = "full_attention"
LAYER_TYPES: tuple[LayerType, LayerType] = (SLIDING, FULL)

MODEL_TYPES = ("gemma3_text", "gemma3")
_LIMIT = 1 << 24  # no honest dimension of a model comes near; a corrupt file's does


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP's `vision_config`, and the pooling that brings it to `mm_tokens_per_image`."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 896
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class ModelConfig:
    """A Gemma 3 decoder, and its eye if it has one. Defaults are the reference class's."""

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: float = 256
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
    vision: VisionConfig | None = None
    mm_tokens_per_image: int = 256
    boi_token_index: int = 255999
    eoi_token_index: int = 256000
    image_token_index: int = 262144

    def __post_init__(self) -> None:
        if not self.layer_types:
            object.__setattr__(self, "layer_types", alternating(self.num_hidden_layers, 6))
        _check(self)

    @property
    def model_type(self) -> str:
        return "gemma3" if self.vision else "gemma3_text"

    @property
    def layers(self) -> range:
        return range(self.num_hidden_layers)

    def layers_of(self, kind: LayerType) -> list[int]:
        """Indices of the layers that attend as `kind` says."""
        return [layer for layer in self.layers if self.layer_types[layer] == kind]

    def window(self, kind: LayerType) -> int | None:
        """How many keys a query sees, itself included; None for all."""
        return self.sliding_window if kind == SLIDING else None

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a `config.json`. Raises `UnsupportedError` for what gemelo does not run."""
        model_type = raw.get("model_type")
        if model_type not in MODEL_TYPES:
            raise UnsupportedError(
                f"model_type {model_type!r} is not one that gemelo runs ({', '.join(MODEL_TYPES)})"
            )
        text = raw.get("text_config", {}) if model_type == "gemma3" else raw
        if not isinstance(text, Mapping):
            raise FileFormatError(f"text_config is {text!r}; expected an object")
        _refuse(text)
        known = {field.name for field in dataclasses.fields(cls)}
        facts = {key: value for key, value in text.items() if key in known and value is not None}
        facts |= _rope(text) | {"layer_types": _layer_types(text, facts)}
        for key in ("eos_token_id", "mm_tokens_per_image", *_INDEX_KEYS):
            if raw.get(key) is not None:
                facts[key] = raw[key]
        eos = facts.get("eos_token_id", (1,))
        facts["eos_token_id"] = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
        if model_type == "gemma3":
            facts["vision"] = _vision(raw.get("vision_config") or {})
        return cls(**facts)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model, readable by transformers 4.50 to 5."""
        text = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in _TOP_LEVEL
        } | {
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": {
                FULL: _rope_parameters(self.rope_theta, self.rope_scaling_factor),
                SLIDING: _rope_parameters(self.rope_local_base_freq, 1.0),
            },
            "rope_scaling": None
            if self.rope_scaling_factor == 1
            else {"rope_type": "linear", "factor": self.rope_scaling_factor},
        }
        if self.vision is None:
            return {"architectures": ["Gemma3ForCausalLM"]} | text
        return {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": text,
            "vision_config": dataclasses.asdict(self.vision)
            | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "eos_token_id": list(self.eos_token_id),
            "mm_tokens_per_image": self.mm_tokens_per_image,
            "tie_word_embeddings": self.tie_word_embeddings,
        } | {key: getattr(self, key) for key in _INDEX_KEYS}


_INDEX_KEYS = ("boi_token_index", "eoi_token_index", "image_token_index")
_TOP_LEVEL = {"vision", "mm_tokens_per_image", "rope_scaling_factor", *_INDEX_KEYS}


def alternating(num_layers: int, pattern: int) -> tuple[LayerType, ...]:
    """Layer i attends fully iff (i + 1) is a multiple of `pattern`; 6 is five local, one global."""
    return tuple(FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(num_layers))


# ---- reading -------------------------------------------------------------------------------------


def _refuse(text: Mapping[str, Any]) -> None:
    """Name the settings that would change the mathematics and that no published model uses."""
    wanted = {
        "attention_bias": (False, None),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
        "hidden_activation": ("gelu_pytorch_tanh", None),
    }
    for key, accepted in wanted.items():
        if text.get(key) not in accepted:
            raise UnsupportedError(
                f"config has {key} = {text[key]!r}; gemelo runs models with {accepted[0]!r}"
            )


def _layer_types(text: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[LayerType, ...]:
    given = text.get("layer_types")
    if given is not None:
        unknown = sorted({str(kind) for kind in given} - set(LAYER_TYPES))
        if unknown:
            raise UnsupportedError(f"layer_types holds {unknown[0]!r}; known: {LAYER_TYPES}")
        return tuple(given)
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or 6
    num_layers = facts.get("num_hidden_layers", ModelConfig.num_hidden_layers)
    _whole("sliding_window_pattern", pattern)
    _whole("num_hidden_layers", num_layers)
    return alternating(num_layers, pattern)


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """Both generations of rotary settings, as (theta, local theta, linear factor)."""
    rope = text.get("rope_parameters")
    if not isinstance(rope, Mapping) or FULL not in rope:
        return {"rope_scaling_factor": _linear_factor(text.get("rope_scaling") or {})}
    if _linear_factor(rope.get(SLIDING) or {}) != 1.0:
        raise UnsupportedError("config scales the rotary embedding of sliding layers; none does")
    return {
        "rope_theta": rope[FULL].get("rope_theta", ModelConfig.rope_theta),
        "rope_local_base_freq": (rope.get(SLIDING) or {}).get(
            "rope_theta", ModelConfig.rope_local_base_freq
        ),
        "rope_scaling_factor": _linear_factor(rope[FULL]),
    }


def _linear_factor(scaling: Mapping[str, Any]) -> float:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise UnsupportedError(f"rope_type {kind!r} is not supported (default, linear)")
    factor = scaling.get("factor", 1.0) if kind == "linear" else 1.0
    if not isinstance(factor, int | float):
        raise FileFormatError(f"config has rope factor {factor!r}; expected a number")
    return float(factor)


def _rope_parameters(theta: float, factor: float) -> dict[str, Any]:
    if factor == 1:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _vision(raw: Mapping[str, Any]) -> VisionConfig:
    if raw.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise UnsupportedError(f"vision model_type {raw['model_type']!r} is not SigLIP's")
    known = {field.name for field in dataclasses.fields(VisionConfig)}
    facts = {key: value for key, value in raw.items() if key in known and value is not None}
    for key, value in facts.items():
        if key != "layer_norm_eps":
            _whole(key, value)
    return VisionConfig(**facts)


def _check(config: ModelConfig) -> None:
    """Every number a corrupt file could have spoilt, before anything is allocated from it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "int" and field.name not in ("bos_token_id", "pad_token_id"):
            _whole(field.name, value)
        if field.type == "float" and not (isinstance(value, int | float) and 0 < value < 1e12):
            raise FileFormatError(f"config has {field.name} = {value!r}; expected a number above 0")
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


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LIMIT:
        raise FileFormatError(f"config has {name} = {value!r}; expected 1 to {_LIMIT}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ---- what it costs -------------------------------------------------------------------------------


def num_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of the decoder by group; the tied head counts once, in `embedding`."""
    width, heads = config.hidden_size, config.num_attention_heads + config.num_key_value_heads
    attention = 2 * width * heads * config.head_dim + 2 * config.head_dim
    per_layer = attention + 3 * width * config.intermediate_size + 4 * width
    head = 0 if config.tie_word_embeddings else config.vocab_size * width
    return {
        "embedding": config.vocab_size * width,
        "layers": config.num_hidden_layers * per_layer + width,
        "head": head,
    }


def kv_slots(config: ModelConfig, kind: LayerType, context: int, chunk: int) -> int:
    """Positions a layer of this kind keeps. A ring of window + chunk - 1 is enough for any chunking
    up to `chunk`: the last query of a chunk still finds the window of the first."""
    window = config.window(kind)
    return context if window is None else min(context, window + chunk - 1)


def kv_bytes(config: ModelConfig, context: int, chunk: int, bytes_per_element: float) -> int:
    """KV bytes of one row at `context` tokens (Gemma 3 report, section 2.1: the 5:1 saving)."""
    per_slot = 2 * config.num_key_value_heads * config.head_dim * bytes_per_element
    slots = sum(
        len(config.layers_of(kind)) * kv_slots(config, kind, context, chunk) for kind in LAYER_TYPES
    )
    return int(per_slot * slots)


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Two per multiply-add, for one token that attends over `context` positions; with the head."""
    matrices = sum(num_parameters(config).values()) + (
        0 if config.tie_word_embeddings else -config.vocab_size * config.hidden_size
    )
    seen = sum(
        min(context, config.window(kind) or context) * len(config.layers_of(kind))
        for kind in LAYER_TYPES
    )
    return 2 * matrices + 4 * seen * config.num_attention_heads * config.head_dim
