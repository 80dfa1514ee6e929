"""The facts of a model in GGUF key-values, and back: one table, and the facts that GGUF leaves out.

The dictionaries have the field names of Hugging Face's `Gemma3TextConfig`. GGUF files do not store
the local rope base, the attention scale or (mostly) the layer pattern; runtimes derive them from
the model's size. Older converters also left out the rope factor or spelled keys their own way.
Every such rule stands here, once.

    config_from_gguf(GGUFFile("model.gguf").metadata)["num_hidden_layers"]
    config_to_gguf(config)                              # {"general.architecture": "gemma3", ...}

`vocab_size` is the tokenizer's; some converters list one entry more than the embedding has rows,
and then the rows count. `tie_word_embeddings` is True: a file with an own head says so by its
tensor `output.weight`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemelo.errors import FileFormatError, InputError, UnsupportedError

ARCHITECTURES = ("gemma3",)
DEFAULT_PATTERN = 6  # five sliding layers, then a full one
LOCAL_THETA, GLOBAL_THETA = 10_000.0, 1_000_000.0
LONG_CONTEXT_BLOCKS = (34, 48, 62)  # 4B, 12B and 27B stretch their global rope
LONG_CONTEXT_FACTOR = 8.0
WIDE_QUERY_BLOCKS = 62  # 27B scales queries by hidden_size / heads instead of head_dim

# (GGUF key after the architecture, config field, largest sensible value)
INTEGERS = (
    ("context_length", "max_position_embeddings", 1 << 31),
    ("embedding_length", "hidden_size", 1 << 20),
    ("block_count", "num_hidden_layers", 1 << 10),
    ("feed_forward_length", "intermediate_size", 1 << 22),
    ("attention.head_count", "num_attention_heads", 1 << 12),
    ("attention.head_count_kv", "num_key_value_heads", 1 << 12),
    ("attention.key_length", "head_dim", 1 << 14),
    ("attention.sliding_window", "sliding_window", 1 << 31),
)
MAX_VOCABULARY = 1 << 24
# (GGUF key, config field, value where the file is silent)
TOKEN_IDS = (
    ("tokenizer.ggml.bos_token_id", "bos_token_id", 2),
    ("tokenizer.ggml.eos_token_id", "eos_token_id", 1),
    ("tokenizer.ggml.padding_token_id", "pad_token_id", 0),
)
EPS = "attention.layer_norm_rms_epsilon"
GLOBAL_BASE, OLD_GLOBAL_BASE = "rope.freq_base", "rope.global.freq_base"
LOCAL_BASE, OLD_LOCAL_BASE = "rope.freq_base_swa", "rope.local.freq_base"
SCALING_TYPE, SCALING_FACTOR = "rope.scaling.type", "rope.scaling.factor"
PATTERN = "attention.sliding_window_pattern"
SOFTCAP = "final_logit_softcapping"


def config_from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A text config from the metadata of a GGUF file.

    Raises UnsupportedError for an architecture that is not Gemma 3's, FileFormatError for values
    that are missing, of the wrong type or absurd.
    """
    keys = _Keys(metadata)
    config: dict[str, Any] = {"model_type": "gemma3_text", "vocab_size": _vocabulary(keys)}
    for key, field, largest in INTEGERS:
        config[field] = keys.integer(keys.prefix + key, 1, largest)
    config["rms_norm_eps"] = keys.positive(EPS, 1e-6)
    config["query_pre_attn_scalar"] = _query_scalar(config)
    config["layer_types"] = _layer_types(keys, config["num_hidden_layers"])
    config["rope_parameters"] = _rope_parameters(keys, config["num_hidden_layers"])
    for key, field, default in TOKEN_IDS:
        config[field] = keys.integer(key, 0, MAX_VOCABULARY, default)
    config["tie_word_embeddings"] = True
    # One converter wrote Gemma 2's cap of 30 into Gemma 3 files, beside its own rope keys: not a
    # fact.
    if keys.has(SOFTCAP) and not keys.has(OLD_GLOBAL_BASE):
        config[SOFTCAP] = keys.positive(SOFTCAP)
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        raise FileFormatError(
            f"{config['num_attention_heads']} heads cannot share "
            f"{config['num_key_value_heads']} key/value heads evenly"
        )
    if (
        keys.integer(keys.prefix + "attention.value_length", 1, 1 << 14, config["head_dim"])
        != config["head_dim"]
    ):
        raise FileFormatError("attention.value_length differs from attention.key_length")
    return config


class _Keys:
    """Typed access to the key-values, with errors that name the key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise FileFormatError("the file does not name its general.architecture")
        if architecture not in ARCHITECTURES:
            raise UnsupportedError(
                f"the file holds a {architecture[:40]!r} model; gemelo reads "
                f"{', '.join(ARCHITECTURES)}"
            )
        self.prefix = f"{architecture}."

    def has(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def integer(self, key: str, smallest: int, largest: int, default: int | None = None) -> int:
        """A whole number under its full key."""
        value = self.metadata.get(key, default)
        if value is None:
            raise FileFormatError(f"the file lacks {key}")
        if type(value) is not int or not smallest <= value <= largest:
            raise FileFormatError(
                f"{key} is {_short(value)}; it must be a whole number, {smallest} to {largest}"
            )
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive number under its short key, as the decimal that was rounded to float32."""
        value = self.metadata.get(self.prefix + key, default)
        if type(value) not in (int, float) or not (0 < value < math.inf):
            raise FileFormatError(
                f"{self.prefix}{key} is {_short(value)}; it must be a positive number"
            )
        return float(str(np.float32(value)))


def _short(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, int | float | str) else type(value).__name__


def _vocabulary(keys: _Keys) -> int:
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Sequence) and tokens:
        return len(tokens)
    return keys.integer(keys.prefix + "vocab_size", 1, MAX_VOCABULARY)


def _query_scalar(config: Mapping[str, Any]) -> int | float:
    """What the attention scale is the inverse root of, which GGUF does not store."""
    if config["num_hidden_layers"] != WIDE_QUERY_BLOCKS:
        return int(config["head_dim"])
    wide = config["hidden_size"] / config["num_attention_heads"]
    return int(wide) if wide.is_integer() else float(wide)


def _layer_types(keys: _Keys, layers: int) -> list[str]:
    """From a period, a list of bools (true slides), or the default period."""
    pattern = keys.metadata.get(keys.prefix + PATTERN, DEFAULT_PATTERN)
    if isinstance(pattern, np.ndarray) and pattern.dtype == np.bool_ and len(pattern) == layers:
        return [_layer_type(bool(sliding)) for sliding in pattern]
    if type(pattern) is not int or pattern < 1:
        raise FileFormatError(
            f"{keys.prefix}{PATTERN} is {_short(pattern)}; it must be a period of at least 1, "
            f"or a bool for each of the {layers} layers"
        )
    return [_layer_type((layer + 1) % pattern != 0) for layer in range(layers)]


def _layer_type(sliding: bool) -> str:
    return "sliding_attention" if sliding else "full_attention"


def _rope_parameters(keys: _Keys, layers: int) -> dict[str, dict[str, Any]]:
    """Both bases, and the factor of the global one; sliding layers are never stretched."""
    full: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": keys.positive(GLOBAL_BASE, keys.positive(OLD_GLOBAL_BASE, GLOBAL_THETA)),
    }
    local = keys.positive(LOCAL_BASE, keys.positive(OLD_LOCAL_BASE, LOCAL_THETA))
    factor = _rope_factor(keys, layers)
    if factor != 1:
        full |= {"rope_type": "linear", "factor": factor}
    return {
        "full_attention": full,
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _rope_factor(keys: _Keys, layers: int) -> float:
    kind = keys.metadata.get(keys.prefix + SCALING_TYPE, "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise UnsupportedError(
            f"{keys.prefix}{SCALING_TYPE} is {_short(kind)}; Gemma 3 uses 'linear' or 'none'"
        )
    # Early converters dropped the factor, and the long-context sizes read nonsense without it.
    return keys.positive(
        SCALING_FACTOR, LONG_CONTEXT_FACTOR if layers in LONG_CONTEXT_BLOCKS else 1.0
    )


def config_to_gguf(config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF key-values for a Gemma 3 text config, such that `config_from_gguf` gives it back.

    Raises InputError for a missing field, UnsupportedError for what GGUF readers could not know (an
    attention scale other than the one they derive, a rope scaling that is not linear).
    """
    missing = [field for field in _required_fields() if config.get(field) is None]
    if missing:
        raise InputError(f"the config lacks {', '.join(missing)}")
    scalar = _query_scalar(config)
    if config["query_pre_attn_scalar"] != scalar:
        raise UnsupportedError(
            f"GGUF cannot hold query_pre_attn_scalar {config['query_pre_attn_scalar']}: its "
            f"readers take {scalar} for a model with {config['num_hidden_layers']} layers"
        )
    facts: dict[str, Any] = {key: int(config[field]) for key, field, _ in INTEGERS}
    facts["vocab_size"] = int(config["vocab_size"])
    facts["attention.value_length"] = int(config["head_dim"])
    facts[EPS] = float(config["rms_norm_eps"])
    facts |= _pattern_facts(config["layer_types"]) | _rope_facts(config)
    if config.get(SOFTCAP) is not None:
        facts[SOFTCAP] = float(config[SOFTCAP])
    entries = {"general.architecture": "gemma3"} | {
        f"gemma3.{key}": value for key, value in facts.items()
    }
    return entries | {key: _first(config.get(field), default) for key, field, default in TOKEN_IDS}


def _required_fields() -> list[str]:
    fields = [field for _, field, _ in INTEGERS]
    return [
        *fields,
        "vocab_size",
        "rms_norm_eps",
        "query_pre_attn_scalar",
        "layer_types",
        "rope_parameters",
    ]


def _first(ids: int | Sequence[int] | None, default: int) -> int:
    """GGUF holds one id where a config may list several, or none."""
    if isinstance(ids, Sequence):
        return int(ids[0]) if ids else default
    return default if ids is None else int(ids)


def _pattern_facts(layer_types: Sequence[str]) -> dict[str, Any]:
    """Nothing for the usual pattern, a period for another regular one, else a bool per layer."""
    sliding = [kind == "sliding_attention" for kind in layer_types]
    for period in (DEFAULT_PATTERN, *range(1, len(sliding) + 2)):
        if sliding == [(layer + 1) % period != 0 for layer in range(len(sliding))]:
            return {} if period == DEFAULT_PATTERN else {PATTERN: period}
    return {PATTERN: np.array(sliding)}


def _rope_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    full, local = (
        config["rope_parameters"][kind] for kind in ("full_attention", "sliding_attention")
    )
    kind = full.get("rope_type", "default")
    if kind not in ("default", "linear") or local.get("rope_type", "default") != "default":
        raise UnsupportedError(
            f"GGUF files of Gemma 3 hold linear rope scaling of full layers only, not {kind!r}"
        )
    facts: dict[str, Any] = {
        GLOBAL_BASE: float(full["rope_theta"]),
        LOCAL_BASE: float(local["rope_theta"]),
    }
    if kind == "linear":
        facts |= {SCALING_TYPE: "linear", SCALING_FACTOR: float(full["factor"])}
    elif config["num_hidden_layers"] in LONG_CONTEXT_BLOCKS:
        facts[SCALING_TYPE] = "none"  # said aloud: readers would assume the factor otherwise
    return facts
