"""The text config of every published size, nothing left out, and the key-values of a bare GGUF."""

from __future__ import annotations

from typing import Any

# layers, hidden, ffn, heads, kv heads, head_dim, vocabulary, window, context, query scalar, factor
SIZES = {
    "270m": (18, 640, 2048, 4, 1, 256, 262144, 512, 32768, 256, 1),
    "1b": (26, 1152, 6912, 4, 1, 256, 262144, 512, 32768, 256, 1),
    "4b": (34, 2560, 10240, 8, 4, 256, 262208, 1024, 131072, 256, 8),
    "12b": (48, 3840, 15360, 16, 8, 256, 262208, 1024, 131072, 256, 8),
    "27b": (62, 5376, 21504, 32, 16, 128, 262208, 1024, 131072, 168, 8),
}
SIZES_3N = {"E4B": (35, 16384, 15), "E2B": (30, 8192, 10)}


def published(size: str) -> dict[str, Any]:
    layers, hidden, ffn, heads, kv, dim, vocabulary, window, context, scalar, factor = SIZES[size]
    full: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    if factor != 1:
        full |= {"rope_type": "linear", "factor": 8.0}
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)]
    return {
        "model_type": "gemma3_text",
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": dim,
        "sliding_window": window,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": scalar,
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }


def published_3n(size: str) -> dict[str, Any]:
    layers, ffn, shared = SIZES_3N[size]
    return {
        "model_type": "gemma3n_text",
        "vocab_size": 262400,
        "max_position_embeddings": 32768,
        "hidden_size": 2048,
        "num_hidden_layers": layers,
        "intermediate_size": [ffn] * layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "sliding_window": 512,
        "rms_norm_eps": 1e-6,
        "layer_types": [
            "full_attention" if i % 5 == 4 else "sliding_attention" for i in range(layers)
        ],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "final_logit_softcapping": 30.0,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (layers - 10),
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": 256,
        "altup_num_inputs": 4,
        "altup_active_idx": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }


def bare(size: str) -> dict[str, Any]:
    """What every converter writes; what readers must derive is left out."""
    layers, hidden, ffn, heads, kv, dim, vocabulary, window, context, _, _ = SIZES[size]
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": context,
        "gemma3.embedding_length": hidden,
        "gemma3.block_count": layers,
        "gemma3.feed_forward_length": ffn,
        "gemma3.attention.head_count": heads,
        "gemma3.attention.head_count_kv": kv,
        "gemma3.attention.key_length": dim,
        "gemma3.attention.sliding_window": window,
        "tokenizer.ggml.tokens": [b"x"] * vocabulary,
    }
