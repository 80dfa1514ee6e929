"""The config.json of every published Gemma 3, in the form of the hub."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemelo.config import VisionConfig

# The published sizes as their config.json's text fields differ from the class defaults.
SIZES: dict[str, dict[str, Any]] = {
    "270M": {
        "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
        "sliding_window": 512, "max_position_embeddings": 32768,
    },
    "1B": {
        "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912,
        "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
        "sliding_window": 512, "max_position_embeddings": 32768,
    },
    "4B": {
        "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "12B": {
        "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "27B": {
        "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
        "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
        "query_pre_attn_scalar": 168, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}  # fmt: skip


def published(size: str) -> dict[str, Any]:
    """A config.json in the form of the hub: multimodal from 4B up, defaults left out."""
    text = {"model_type": "gemma3_text", **SIZES[size]}
    if size in ("270M", "1B"):
        return text
    return {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **dataclasses.asdict(VisionConfig()),
        },
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
    }
