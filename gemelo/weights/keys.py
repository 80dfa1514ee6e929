"""GGUF key-values read with types, and the entries that both families store alike.

Nothing in a file is trusted: a number is checked for its type and range before anybody allocates
from it, and an error names the key, its value and the limit.

    keys = Keys(GGUFFile("model.gguf").metadata)
    keys.integer("gemma3.block_count", 1, 1024), shared_config(keys)["num_hidden_layers"]
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemelo.config.checks import is_whole
from gemelo.errors import FileFormatError, InputError, UnsupportedError

ARCHITECTURES = ("gemma3", "gemma3n")

# (GGUF key after the architecture, config field, largest sensible value)
Integers = tuple[tuple[str, str, int], ...]
INTEGERS: Integers = (
    ("context_length", "max_position_embeddings", 1 << 31),
    ("embedding_length", "hidden_size", 1 << 20),
    ("block_count", "num_hidden_layers", 1 << 10),
    ("attention.head_count", "num_attention_heads", 1 << 12),
    ("attention.head_count_kv", "num_key_value_heads", 1 << 12),
    ("attention.key_length", "head_dim", 1 << 14),
    ("attention.sliding_window", "sliding_window", 1 << 31),
)
FFN, MAX_FFN = "feed_forward_length", 1 << 22
PER_LAYER = (FFN, "attention.head_count", "attention.head_count_kv")
MAX_VOCABULARY = 1 << 24
# (GGUF key, config field, value where the file is silent)
TOKEN_IDS = (
    ("tokenizer.ggml.bos_token_id", "bos_token_id", 2),
    ("tokenizer.ggml.eos_token_id", "eos_token_id", 1),
    ("tokenizer.ggml.padding_token_id", "pad_token_id", 0),
)
EPS = "attention.layer_norm_rms_epsilon"
LOCAL_THETA, GLOBAL_THETA = 10_000.0, 1_000_000.0
GLOBAL_BASE, LOCAL_BASE = "rope.freq_base", "rope.freq_base_swa"
SCALING_TYPE, SCALING_FACTOR = "rope.scaling.type", "rope.scaling.factor"
OLD_SCALING_FACTOR = "rope.scale_linear"
# What some converters call a key that others write; the usual one counts where both are there.
SPELLINGS = {"attention.key_length": "head_dim", LOCAL_BASE: "rope.freq_base_local"}
PATTERN = "attention.sliding_window_pattern"
SOFTCAP = "final_logit_softcapping"


class Keys:
    """Typed access to the key-values, with errors that name the key.

    `read` has the short keys that somebody has asked for.
    """

    read: set[str]

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata, self.read = metadata, set()
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise FileFormatError("the file does not name its general.architecture")
        if architecture not in ARCHITECTURES:
            raise UnsupportedError(
                f"the file holds a {architecture[:40]!r} model; gemelo reads "
                f"{', '.join(ARCHITECTURES)}"
            )
        self.architecture, self.prefix = architecture, f"{architecture}."

    def has(self, key: str) -> bool:
        self.read.add(key)
        return self.prefix + key in self.metadata

    def get(self, key: str, default: Any = None) -> Any:
        """Whatever stands under a short key, or under its other spelling."""
        if not self.has(key) and key in SPELLINGS:
            return self.get(SPELLINGS[key], default)
        return self.metadata.get(self.prefix + key, default)

    def integer(self, key: str, smallest: int, largest: int, default: int | None = None) -> int:
        """A whole number under its short key; of a list with one for each layer, all are one."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(set(value)) == 1:
            layers = self.get("block_count")
            if key in PER_LAYER and type(layers) is int and len(value) == layers:
                value = value[0].item()
        return self.whole(self.prefix + key, value, smallest, largest)

    def token(self, key: str, default: int) -> int:
        """A token's id under its full key."""
        return self.whole(key, self.metadata.get(key, default), 0, MAX_VOCABULARY)

    def whole(self, key: str, value: Any, smallest: int, largest: int) -> int:
        """A value found under a full key, if it is a whole number in the range."""
        if value is None:
            raise FileFormatError(f"the file lacks {key}")
        if not is_whole(value, smallest, largest):
            raise FileFormatError(
                f"{key} is {short(value)}; it must be a whole number, {smallest} to {largest}"
            )
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive number under its short key, as the decimal that was rounded to float32."""
        value = self.get(key, default)
        with np.errstate(over="ignore", under="ignore"):
            narrow = np.float32(value) if type(value) in (int, float) else np.float32(0)
        if not 0 < narrow < math.inf:
            raise FileFormatError(
                f"{self.prefix}{key} is {short(value)}; it must be a positive number"
            )
        return float(str(narrow))

    def word(self, key: str, default: str) -> str:
        """A string under its short key."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise FileFormatError(f"{self.prefix}{key} is {short(value)}; it must be a string")
        return value


def short(value: Any) -> str:
    """A value for an error message."""
    return repr(value)[:60] if isinstance(value, int | float | str) else type(value).__name__


def shared_config(keys: Keys) -> dict[str, Any]:
    """The config fields that every family's files store in the same way."""
    config: dict[str, Any] = {"vocab_size": _vocabulary(keys)}
    for key, field, largest in INTEGERS:
        config[field] = keys.integer(key, 1, largest)
    config["rms_norm_eps"] = keys.positive(EPS, 1e-6)
    for key, field, default in TOKEN_IDS:
        config[field] = keys.token(key, default)
    config["tie_word_embeddings"] = True
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        raise FileFormatError(
            f"{config['num_attention_heads']} heads cannot share "
            f"{config['num_key_value_heads']} key/value heads evenly"
        )
    length = keys.integer("attention.value_length", 1, 1 << 14, config["head_dim"])
    if length != config["head_dim"]:
        raise FileFormatError("attention.value_length differs from attention.key_length")
    return config


def _vocabulary(keys: Keys) -> int:
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Sequence) and tokens:
        return len(tokens)
    return keys.integer("vocab_size", 1, MAX_VOCABULARY)


def layer_types(keys: Keys, layers: int, period: int) -> list[str]:
    """From a period, a list of bools (true slides), or the family's own period."""
    pattern = keys.get(PATTERN, period)
    if isinstance(pattern, np.ndarray) and len(pattern) == layers and _are_flags(pattern):
        return [_layer_type(bool(sliding)) for sliding in pattern]
    if type(pattern) is not int or pattern < 1:
        raise FileFormatError(
            f"{keys.prefix}{PATTERN} is {short(pattern)}; it must be a period of at least 1, "
            f"or a bool for each of the {layers} layers"
        )
    return [_layer_type((layer + 1) % pattern != 0) for layer in range(layers)]


def _are_flags(values: np.ndarray[Any, Any]) -> bool:
    """Whether an array is of bools, or of the integers that stand for them."""
    return values.dtype.kind == "b" or values.dtype.kind in "iu" and set(values.tolist()) <= {0, 1}


def _layer_type(sliding: bool) -> str:
    return "sliding_attention" if sliding else "full_attention"


def rope_parameters(full: Mapping[str, Any], local_theta: float) -> dict[str, dict[str, Any]]:
    """Both kinds of layers' rotary settings; sliding layers are never stretched."""
    return {
        "full_attention": {"rope_type": "default"} | dict(full),
        "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
    }


def require(config: Mapping[str, Any], *fields: str) -> None:
    """Raise InputError unless the config has these fields and those of `shared_config`."""
    wanted = [field for _, field, _ in INTEGERS]
    wanted += ["vocab_size", "rms_norm_eps", "layer_types", "rope_parameters", *fields]
    missing = [field for field in wanted if config.get(field) is None]
    if missing:
        raise InputError(f"the config lacks {', '.join(missing)}")


def shared_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `shared_config`, under short keys; see `with_tokens` for the token ids."""
    facts: dict[str, Any] = {key: int(config[field]) for key, field, _ in INTEGERS}
    facts["vocab_size"] = int(config["vocab_size"])
    facts["attention.value_length"] = int(config["head_dim"])
    facts[EPS] = float(config["rms_norm_eps"])
    if config.get(SOFTCAP) is not None:
        facts[SOFTCAP] = float(config[SOFTCAP])
    return facts


def with_tokens(
    architecture: str, facts: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Facts under their full keys, and the token ids."""
    entries = {"general.architecture": architecture}
    entries |= {f"{architecture}.{key}": value for key, value in facts.items()}
    return entries | {key: _first(config.get(field), default) for key, field, default in TOKEN_IDS}


def _first(ids: int | Sequence[int] | None, default: int) -> int:
    """GGUF holds one id where a config may list several, or none."""
    if isinstance(ids, Sequence):
        return int(ids[0]) if ids else default
    return default if ids is None else int(ids)
