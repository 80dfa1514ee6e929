"""Gemma 3's hyperparameters as GGUF key-values, read and written; and what GGUF leaves out.

The dictionaries have the field names of Hugging Face's text configs. GGUF files of Gemma 3 do not
store the local rope base, the attention scale or (mostly) the layer pattern; runtimes derive them
from the model's size. Older converters also left out the rope factor or spelled keys their own way.
Every such rule stands here, once; Gemma 3n's stand in `metadata_gemma3n`.

    config_from_gguf(GGUFFile("model.gguf").metadata)["num_hidden_layers"]
    config_to_gguf(config)                              # {"general.architecture": "gemma3", ...}

`vocab_size` is the tokenizer's; some converters list one entry more than the embedding has rows,
and then the rows count. `tie_word_embeddings` is True: a file with an own head says so by its
tensor `output.weight`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemelo.errors import UnsupportedError
from gemelo.weights import hyperparameters, metadata_gemma3n
from gemelo.weights import keys as shared
from gemelo.weights.keys import (
    FFN,
    GLOBAL_BASE,
    LOCAL_BASE,
    PATTERN,
    SCALING_FACTOR,
    SCALING_TYPE,
    SOFTCAP,
    Keys,
)

DEFAULT_PATTERN = 6  # five sliding layers, then a full one
LONG_CONTEXT_BLOCKS = (34, 48, 62)  # 4B, 12B and 27B stretch their global rope
LONG_CONTEXT_FACTOR = 8.0
WIDE_QUERY_BLOCKS = 62  # 27B scales queries by hidden_size / heads instead of head_dim
OLD_GLOBAL_BASE, OLD_LOCAL_BASE = "rope.global.freq_base", "rope.local.freq_base"
OLD_ATTENTION_CAP = "attn_logit_softcapping"


def read_facts(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A text config from the metadata of a GGUF file, and a notice where settings have no effect.

    Gemma 3n's lacks `laurel_rank` and `vocab_size_per_layer_input`, which the tensors' shapes tell.
    Raises UnsupportedError for an architecture that is neither family's and for settings that make
    another model of it, FileFormatError for values that are missing, of the wrong type or absurd.
    """
    keys = Keys(metadata)
    read = metadata_gemma3n.read_config if keys.architecture == "gemma3n" else _gemma3_config
    config = read(keys)
    leftovers = {OLD_ATTENTION_CAP} if _has_leftovers(keys) else set()
    hyperparameters.check(keys, config, leftovers)
    notice = hyperparameters.unread(keys)
    return config, () if notice is None else (notice,)


def config_from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The config alone."""
    return read_facts(metadata)[0]


def config_to_gguf(config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF key-values for a text config, such that `config_from_gguf` gives it back.

    Raises InputError for a missing field, UnsupportedError for what GGUF readers could not know (an
    attention scale other than the one they derive, a rope scaling that is not linear).
    """
    if str(config.get("model_type")).startswith("gemma3n"):
        return metadata_gemma3n.to_entries(config)
    return _gemma3_entries(config)


# ---- reading Gemma 3 -----------------------------------------------------------------------------


def _gemma3_config(keys: Keys) -> dict[str, Any]:
    config = {"model_type": "gemma3_text"} | shared.shared_config(keys)
    config["intermediate_size"] = keys.integer(FFN, 1, shared.MAX_FFN)
    config["query_pre_attn_scalar"] = _query_scalar(config)
    layers = config["num_hidden_layers"]
    config["layer_types"] = shared.layer_types(keys, layers, DEFAULT_PATTERN)
    config["rope_parameters"] = _rope_parameters(keys, layers)
    cap = keys.get(SOFTCAP)
    is_off = cap is None or (isinstance(cap, int | float) and cap == 0)
    if not is_off and not _has_leftovers(keys):
        config[SOFTCAP] = keys.positive(SOFTCAP)
    return config


def _has_leftovers(keys: Keys) -> bool:
    """Whether the converter is the one that wrote Gemma 2's caps into Gemma 3 files, beside its own
    rope keys: no facts."""
    return keys.has(OLD_GLOBAL_BASE)


def _query_scalar(config: Mapping[str, Any]) -> int | float:
    """What the attention scale is the inverse root of, which GGUF does not store."""
    if config["num_hidden_layers"] != WIDE_QUERY_BLOCKS:
        return int(config["head_dim"])
    wide = config["hidden_size"] / config["num_attention_heads"]
    return int(wide) if wide.is_integer() else float(wide)


def _rope_parameters(keys: Keys, layers: int) -> dict[str, dict[str, Any]]:
    """Both bases, and the factor of the global one."""
    old = keys.positive(OLD_GLOBAL_BASE, shared.GLOBAL_THETA)
    full: dict[str, Any] = {"rope_theta": keys.positive(GLOBAL_BASE, old)}
    local = keys.positive(LOCAL_BASE, keys.positive(OLD_LOCAL_BASE, shared.LOCAL_THETA))
    factor = _rope_factor(keys, layers)
    if factor != 1:
        full |= {"rope_type": "linear", "factor": factor}
    return shared.rope_parameters(full, local)


def _rope_factor(keys: Keys, layers: int) -> float:
    kind = keys.word(SCALING_TYPE, "linear")
    if kind == "none":
        keys.read |= {SCALING_FACTOR, shared.OLD_SCALING_FACTOR}
        return 1.0
    if kind != "linear":
        raise UnsupportedError(
            f"{keys.prefix}{SCALING_TYPE} is {shared.short(kind)}; Gemma 3 uses 'linear' or 'none'"
        )
    # Early converters dropped the factor, and the long-context sizes read nonsense without it.
    usual = LONG_CONTEXT_FACTOR if layers in LONG_CONTEXT_BLOCKS else 1.0
    return keys.positive(SCALING_FACTOR, keys.positive(shared.OLD_SCALING_FACTOR, usual))


# ---- writing Gemma 3 -----------------------------------------------------------------------------


def _gemma3_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    shared.require(config, "intermediate_size", "query_pre_attn_scalar")
    scalar = _query_scalar(config)
    if config["query_pre_attn_scalar"] != scalar:
        raise UnsupportedError(
            f"GGUF cannot hold query_pre_attn_scalar {config['query_pre_attn_scalar']}: its "
            f"readers take {scalar} for a model with {config['num_hidden_layers']} layers"
        )
    facts = shared.shared_entries(config) | {FFN: int(config["intermediate_size"])}
    facts |= _pattern_facts(config["layer_types"]) | _rope_facts(config)
    return shared.with_tokens("gemma3", facts, config)


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
