"""Reading a `config.json`: its sections, its fields of every generation, and settings refused.

Files differ by the version of transformers that wrote them: `rope_theta` or `rope_parameters`, a
pattern or `layer_types`, a text config alone or inside a multimodal one. What would change the
mathematics, and no published model uses, is refused by name.

    text = text_part(raw, "gemma3");  refuse_text(text);  facts = known_fields(Gemma3Config, text)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gemelo.config.checks import MOST_LAYERS, check_whole
from gemelo.config.layers import FULL, LAYER_TYPES, SLIDING, LayerType, alternating
from gemelo.config.rope import (
    ROPE_LOCAL_BASE_FREQ,
    ROPE_THETA,
    Linear,
    positive,
    read_entry,
)
from gemelo.errors import FileFormatError, UnsupportedError


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
    values = {key: value for key, value in raw.items() if key in known}
    for key, value in values.items():
        if value is None and known[key] in ("int", "float", "bool") and not key.endswith(_IDS):
            raise FileFormatError(f"config has {key} = null; give it a value or leave it out")
    may_be_none = {key for key, kind in known.items() if kind == "float | None"}
    return {k: value for k, value in values.items() if value is not None or k in may_be_none}


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
    theta = positive(text, "rope_theta", "config") or ROPE_THETA
    base = positive(text, "rope_local_base_freq", "config") or ROPE_LOCAL_BASE_FREQ
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
