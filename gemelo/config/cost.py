"""Cost model: parameters, FLOPs and KV-cache bytes as functions of a config.

Planner, summary, benchmark and documentation all ask here, so that they cannot disagree. Nothing is
built; a test compares the sums with built models.

    kv_bytes(config, context=32768, chunk=512, bytes_per_element=2)
"""

from __future__ import annotations

from gemelo.config.layers import LAYER_TYPES, LayerType
from gemelo.config.model import ModelConfig


def num_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of the decoder by group; the tied head counts once, in `embedding`."""
    width = config.hidden_size
    groups = {
        "embedding": config.vocab_size * width,
        "layers": sum(layer_parameters(config, layer) for layer in config.layers) + width,
        "head": 0 if config.tie_word_embeddings else config.vocab_size * width,
    }
    if per_layer := config.hidden_size_per_layer_input:
        columns = config.num_hidden_layers * per_layer
        groups["layers"] += columns * width + per_layer  # projection of the embedding, and its norm
        groups["layers"] += 2 * (config.altup_num_inputs - 1) * width * width
        groups["per_layer_embedding"] = config.vocab_size_per_layer_input * columns
    return groups


def layer_parameters(config: ModelConfig, layer: int) -> int:
    """Parameters of one layer; a layer that borrows keys and values has no maps to make them."""
    width, d = config.hidden_size, config.head_dim
    attention = 2 * width * config.num_attention_heads * d + d  # q, o, q_norm
    if config.layer(layer).owns_keys:
        attention += 2 * width * config.num_key_value_heads * d + d  # k, v, k_norm
    ffn = 3 * width * config.ffn_widths[layer]
    return attention + ffn + 4 * width + _gemma3n_extras(config)


def _gemma3n_extras(config: ModelConfig) -> int:
    width, streams = config.hidden_size, config.altup_num_inputs
    if not config.hidden_size_per_layer_input:
        return 0
    altup = streams**3 + streams**2 + streams * width + 2 * width  # coefficients, router, scale
    laurel = 2 * config.laurel_rank * width + width
    return altup + laurel + 2 * config.hidden_size_per_layer_input * width + width


def kv_slots(config: ModelConfig, kind: LayerType, context: int, chunk: int) -> int:
    """Positions a layer of this kind keeps. A ring of window + chunk - 1 is enough for any chunking
    up to `chunk`: the last query of a chunk still finds the window of the first."""
    window = config.window(kind)
    return context if window is None else min(context, window + chunk - 1)


def kv_bytes(config: ModelConfig, context: int, chunk: int, bytes_per_element: float) -> int:
    """KV bytes of one row at `context` tokens (Gemma 3 report, section 2.1: the 5:1 saving)."""
    per_slot = 2 * config.num_key_value_heads * config.head_dim * bytes_per_element
    slots = sum(
        kv_slots(config, config.layer_types[layer], context, chunk) for layer in config.kv_layers
    )
    return int(per_slot * slots)


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Two per multiply-add, for one token that attends over `context` positions; with the head."""
    groups = num_parameters(config)
    matrices = groups["layers"] + config.vocab_size * config.hidden_size
    seen = sum(
        min(context, config.window(kind) or context) * len(config.layers_of(kind))
        for kind in LAYER_TYPES
    )
    return 2 * matrices + 4 * seen * config.num_attention_heads * config.head_dim
