"""Gemma 3n's hyperparameters as GGUF key-values, read and written.

The files differ with their age: the number of layers that borrow keys was once a float, the
sparsity may be missing, minus infinity or zero where a layer is dense, and one feed-forward width
may stand for all. What is read is any of that; what is written is what current converters write.
Two facts are in no key: the rank of LAuReL and the rows of the per-layer table, which are shapes.

    read_config(Keys(metadata))["num_kv_shared_layers"]      # 15
    to_entries(config)["gemma3n.attention.shared_kv_layers"]

Runtimes also have facts built in that a file cannot change; `built_in` names those that a config
contradicts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.weights import keys as shared
from gemelo.weights.keys import (
    FFN,
    GLOBAL_BASE,
    LOCAL_BASE,
    MAX_FFN,
    PATTERN,
    SCALING_FACTOR,
    SCALING_TYPE,
    SOFTCAP,
    Keys,
)

DEFAULT_PATTERN = 5  # four sliding layers, then a full one
SHARED = "attention.shared_kv_layers"
SPARSITY = "activation_sparsity_scale"
SHARE_DIGITS = 6  # of a share that went through float32 as a quantile
DEFAULT_SOFTCAP = 30.0
# (GGUF key, config field, smallest and largest sensible value)
OWN_INTEGERS = (
    ("embedding_length_per_layer_input", "hidden_size_per_layer_input", 1, 1 << 16),
    ("altup.num_inputs", "altup_num_inputs", 2, 16),
    ("altup.active_idx", "altup_active_idx", 0, 15),
)
# What llama.cpp knows without reading it; another value there means another model.
BUILT_IN = {
    "hidden_size_per_layer_input": 256,
    "laurel_rank": 64,
    "altup_num_inputs": 4,
}
BUILT_IN_OWNERS, BUILT_IN_SPARSE, BUILT_IN_SHARE = 20, 10, 0.95


def read_config(keys: Keys) -> dict[str, Any]:
    """The text config of a Gemma 3n file, without `laurel_rank` and `vocab_size_per_layer_input`.

    Fields that the file is silent about, and that have a default, are left out.
    """
    config = {"model_type": "gemma3n_text"} | shared.shared_config(keys)
    layers = config["num_hidden_layers"]
    for key, field, smallest, largest in OWN_INTEGERS:
        config[field] = keys.integer(key, smallest, largest)
    config["intermediate_size"] = _widths(keys, layers)
    config["num_kv_shared_layers"] = _shared_layers(keys, layers)
    config["layer_types"] = shared.layer_types(keys, layers, DEFAULT_PATTERN)
    full = {"rope_theta": keys.positive(GLOBAL_BASE, shared.GLOBAL_THETA)}
    local = keys.positive(LOCAL_BASE, shared.LOCAL_THETA)
    _refuse_scaling(keys)
    config["rope_parameters"] = shared.rope_parameters(full, local)
    config[SOFTCAP] = keys.positive(SOFTCAP, DEFAULT_SOFTCAP)
    if keys.has(SPARSITY):
        config["activation_sparsity_pattern"] = _sparsity(keys, layers)
    return config


def _refuse_scaling(keys: Keys) -> None:
    """No Gemma 3n stretches its rotary embedding, and one that did would stretch sliding layers."""
    kind = keys.word(SCALING_TYPE, "linear")
    factors = [keys.positive(key, 1.0) for key in (SCALING_FACTOR, shared.OLD_SCALING_FACTOR)]
    if kind == "none" or (kind == "linear" and factors == [1.0, 1.0]):
        return
    what = f"{SCALING_TYPE} is {shared.short(kind)}, by a factor of {max(factors):g}"
    raise UnsupportedError(f"{keys.prefix}{what}; Gemma 3n has no rope scaling")


def _widths(keys: Keys, layers: int) -> list[int]:
    """One width for all layers, or one for each."""
    key, value = keys.prefix + FFN, keys.get(FFN)
    if not isinstance(value, np.ndarray):
        return [keys.whole(key, value, 1, MAX_FFN)] * layers
    if len(value) != layers:
        raise FileFormatError(f"{key} has {len(value)} entries for {layers} layers")
    return [keys.whole(key, width, 1, MAX_FFN) for width in value.tolist()]


def _shared_layers(keys: Keys, layers: int) -> int:
    """A whole number, also where an early converter wrote it as a float."""
    value = keys.get(SHARED)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return keys.whole(keys.prefix + SHARED, value, 0, layers - 1)


def _sparsity(keys: Keys, layers: int) -> list[float]:
    """Shares from normal quantiles: 1.6448536 is 0.95; minus infinity, or 0, is a dense layer."""
    scales = keys.get(SPARSITY)
    if not isinstance(scales, np.ndarray) or scales.dtype.kind != "f" or len(scales) != layers:
        raise FileFormatError(
            f"{keys.prefix}{SPARSITY} is {shared.short(scales)}; it must be a float for each of "
            f"the {layers} layers"
        )
    if not (scales < math.inf).all():  # neither infinite nor NaN
        raise FileFormatError(f"{keys.prefix}{SPARSITY} holds NaN or infinity")
    normal = NormalDist()
    return [
        round(normal.cdf(scale), SHARE_DIGITS) if scale > 0 else 0.0 for scale in scales.tolist()
    ]


def to_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF key-values of a Gemma 3n text config.

    Raises InputError for a missing field, UnsupportedError for what the files cannot hold.
    """
    fields = [field for _, field, _, _ in OWN_INTEGERS]
    lists = ("intermediate_size", "activation_sparsity_pattern")
    shared.require(config, *fields, *lists, "num_kv_shared_layers")
    if config.get(SOFTCAP) is None:
        raise UnsupportedError(
            f"GGUF files of Gemma 3n cannot do without {SOFTCAP}: readers take {DEFAULT_SOFTCAP:g}"
        )
    layers = config["num_hidden_layers"]
    facts = shared.shared_entries(config) | _rope_facts(config)
    facts |= {key: int(config[field]) for key, field, _, _ in OWN_INTEGERS}
    facts[FFN] = _width_fact(config["intermediate_size"])
    facts[SHARED] = int(config["num_kv_shared_layers"])
    facts[PATTERN] = np.array([kind == "sliding_attention" for kind in config["layer_types"]])
    facts[SPARSITY] = _scales(config["activation_sparsity_pattern"], layers)
    return shared.with_tokens("gemma3n", facts, config)


def _width_fact(widths: int | Sequence[int]) -> int | list[int]:
    """One number where it is enough, since that is all that most readers take."""
    if isinstance(widths, int):
        return widths
    return int(widths[0]) if len(set(widths)) == 1 else [int(width) for width in widths]


def _scales(shares: float | Sequence[float], layers: int) -> np.ndarray[Any, Any]:
    """Normal quantiles; that of 0, a dense layer, is minus infinity.

    Readers take anything up to zero for a dense layer, so shares up to a half cannot be written.
    """
    listed = shares if isinstance(shares, Sequence) else [shares] * layers
    small = [share for share in listed if 0 < share <= 0.5]
    if small:
        raise UnsupportedError(
            f"GGUF cannot hold an activation sparsity of {small[0]}; above 0.5, or 0"
        )
    normal = NormalDist()
    scales = [normal.inv_cdf(share) if share > 0 else -math.inf for share in listed]
    return np.array(scales, dtype=np.float32)


def _rope_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for key, kind in ((GLOBAL_BASE, "full_attention"), (LOCAL_BASE, "sliding_attention")):
        rope = config["rope_parameters"][kind]
        if rope.get("rope_type", "default") != "default":
            raise UnsupportedError(
                f"GGUF files of Gemma 3n hold no rope scaling, but {kind} has {rope['rope_type']!r}"
            )
        facts[key] = float(rope["rope_theta"])
    return facts


def built_in(config: Mapping[str, Any]) -> Iterator[str]:
    """What llama.cpp has built in and this config contradicts, a phrase each."""
    for field, value in BUILT_IN.items():
        if config.get(field, value) != value:
            yield f"{field} {value} (here {config[field]})"
    layers, types = config["num_hidden_layers"], config["layer_types"]
    owners = layers - config["num_kv_shared_layers"]
    if owners != BUILT_IN_OWNERS:
        yield f"{BUILT_IN_OWNERS} layers with keys and values (here {owners})"
    sparse = min(layers, BUILT_IN_SPARSE)
    shares = [BUILT_IN_SHARE] * sparse + [0.0] * (layers - sparse)
    if list(config["activation_sparsity_pattern"]) != shares:
        yield f"a sparsity of {BUILT_IN_SHARE} in the first {BUILT_IN_SPARSE} layers alone"
    if [kind == "full_attention" for kind in types] != [
        (layer + 1) % DEFAULT_PATTERN == 0 for layer in range(layers)
    ]:
        yield f"full attention in every layer that is a multiple of {DEFAULT_PATTERN}"
