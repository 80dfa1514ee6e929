"""GGUF hyperparameters that these two families have at one value alone.

llama.cpp knows some two hundred keys, for models of every kind. One that asks for what Gemma does
not do (experts, a cap on attention scores, attention both ways) makes another model of the same
tensors, and to pass it over would run the wrong one. At the value that changes nothing a key is
harmless; at another it is refused by name. What nobody here has read is listed, once.

    check(keys, config);  notice = unread(keys)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gemelo.errors import FileFormatError, UnsupportedError, listed, one_line
from gemelo.weights.keys import EPS, Keys, short

# Short keys and the values at which they change nothing; None for any.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "router_logit_softcapping": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.value_scale": (1.0,),
    "attention.temperature_scale": (0.0,),
    "attention.temperature_length": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0,),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
    "tensor_data_layout": ("reference",),
    "pooling_type": (0, -1),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "n_deepstack_layers": (0,),
    "interleave_moe_layer_step": (0,),
    "moe_every_n_layers": (0,),
    "moe_latent_size": (0,),
    "full_attention_interval": (0,),
    "decoder_block_count": (0,),
    "rope.freq_scale": (1.0,),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (0.0, -1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.extrapolation_factor": (0.0,),
}
_NEUTRAL_HERE: dict[str, dict[str, tuple[Any, ...]]] = {
    "gemma3": {
        "attention.shared_kv_layers": (0,),
        "embedding_length_per_layer_input": (0,),
        "activation_sparsity_scale": (0.0,),
    },
    "gemma3n": {"altup.correct_scale": (True,)},
}
# Read by nobody, since nothing follows from them: what a training did, and limits of a stretching
# that is refused.
_HARMLESS = {
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.beta_fast",
    "rope.scaling.beta_slow",
    "altup.lr_multiplier",
    "vocab_size",
}
# Of towers: the file's own, which `mmproj` reads, or those beside it, which have keys of their own.
_TOWERS = ("vision.", "mm.", "audio.")
# Sizes of which the network has one for all layers.
_AS_HEAD_DIM = (
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count",
    "rope.dimension_count_swa",
)


def check(keys: Keys, config: Mapping[str, Any], leftovers: Collection[str] = ()) -> None:
    """Raise `UnsupportedError` for a key that asks for another network than the config's.

    leftovers are keys that the file's converter wrote and that are not true.
    """
    for key in _AS_HEAD_DIM:
        _equal(keys, key, config["head_dim"], "the network has one head size for all")
    for key, neutral in (_NEUTRAL | _NEUTRAL_HERE[keys.architecture]).items():
        if key not in leftovers:
            _in(keys, key, neutral)
    for key in keys.metadata:
        if key.startswith(f"{keys.prefix}expert"):
            _in(keys, key.removeprefix(keys.prefix), (0, 0.0, False))
    _close(keys, "attention.layer_norm_epsilon", float(config["rms_norm_eps"]), f"that of {EPS}")
    scalar = config.get("query_pre_attn_scalar")
    scale = 1.0 if scalar is None else scalar**-0.5  # Gemma 3n's scores are not scaled
    _close(keys, "attention.scale", scale, "what follows from this model's size")


def unread(keys: Keys) -> str | None:
    """A notice that lists the keys of the model's own that nothing here has looked at."""
    own = [key.removeprefix(keys.prefix) for key in keys.metadata if key.startswith(keys.prefix)]
    left = [key for key in own if not (key in keys.read or key in _HARMLESS or _of_tower(key))]
    if not left:
        return None
    names = listed(left, show=lambda key: one_line(keys.prefix + key, 80))
    return f"{len(left)} settings of the file are not known here and have no effect: {names}"


def _of_tower(key: str) -> bool:
    return key.startswith(_TOWERS)


def _in(keys: Keys, key: str, neutral: Sequence[Any]) -> None:
    value = keys.get(key)
    values = value.tolist() if isinstance(value, np.ndarray) else [value]
    wrong = [x for x in values if not any(_same(x, one) for one in neutral)]
    if value is not None and wrong:
        wanted = " or ".join(map(str, neutral))
        raise UnsupportedError(
            f"{keys.prefix}{key[:80]} is {short(wrong[0])}, which {keys.architecture} models do "
            f"not do here (only {wanted}); the file is not a plain model of this kind"
        )


def _same(value: Any, neutral: Any) -> bool:
    if isinstance(value, int | float) and isinstance(neutral, int | float):
        return value == neutral
    return type(value) is type(neutral) and bool(value == neutral)


def _equal(keys: Keys, key: str, wanted: int, why: str) -> None:
    value = keys.get(key)
    if value is not None and keys.whole(keys.prefix + key, value, 1, 1 << 14) != wanted:
        raise UnsupportedError(
            f"{keys.prefix}{key} is {value} and attention.key_length {wanted}; {why}"
        )


def _close(keys: Keys, key: str, wanted: float, what: str) -> None:
    value = keys.get(key)
    if value is None:
        return
    if not isinstance(value, float):
        raise FileFormatError(f"{keys.prefix}{key} is {short(value)}; it must be a float")
    if value and not math.isclose(value, wanted, rel_tol=1e-4):
        raise UnsupportedError(
            f"{keys.prefix}{key} is {value:g}; gemelo runs such a model with {wanted:g}, {what}"
        )
