"""Tiny models of every shape that matters, seeded weights, and the one real checkpoint at hand."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from gemelo.config import ModelConfig, VisionConfig
from gemelo.models.gemma3 import Gemma3

# Window crossed, 5:1 pattern and its remainder, grouped heads, head_dim that is not hidden / heads,
# linear scaling on full layers alone, a query scalar that is not head_dim (27B's 168).
TINY = {
    "grouped-scaled": ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        query_pre_attn_scalar=16,
        sliding_window=8,
        max_position_embeddings=256,
        rope_scaling_factor=8.0,
    ),
    "one-kv-head": ModelConfig(
        vocab_size=512,
        hidden_size=40,
        intermediate_size=96,
        num_hidden_layers=13,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=5,
        max_position_embeddings=256,
    ),
    "scalar-168": ModelConfig(
        vocab_size=512,
        hidden_size=84,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=168,
        sliding_window=16,
        layer_types=("full_attention", "sliding_attention", "full_attention"),
        max_position_embeddings=256,
        rope_scaling_factor=8.0,
    ),
}

TINY_VISION = VisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=32,
    patch_size=4,
)


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter away from its neutral value, so that no wrong path can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.5, 0.5, generator=generator)
            else:
                parameter.normal_(0, 0.08, generator=generator)


def tiny_model(config: ModelConfig, seed: int = 0) -> Gemma3:
    model = Gemma3(config).eval()
    randomise(model, seed)
    return model


@pytest.fixture(params=TINY.values(), ids=TINY.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    value: ModelConfig = request.param
    return value


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The embedded Gemma 3 270M, Q4_K_M."""
    from gemelo.store import demo

    return demo()
