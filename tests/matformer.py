"""A tiny MatFormer: a Gemma 3n with sub-models that differ in width, and the ids of a turn.

Its widths are such that the native kernels take it.
"""

from __future__ import annotations

import torch

from gemelo.config import Gemma3nConfig, Submodel
from gemelo.config.sampling import Sampling
from gemelo.engine.session import Session
from gemelo.models.gemma3n import Gemma3n

CONFIG = Gemma3nConfig(
    vocab_size=512,
    vocab_size_per_layer_input=512,
    hidden_size=64,
    num_hidden_layers=14,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    sliding_window=8,
    max_position_embeddings=512,
    num_kv_shared_layers=7,
    hidden_size_per_layer_input=32,
    laurel_rank=32,
    intermediate_size=(128,) * 14,
    activation_sparsity_pattern=(0.95,) * 4 + (0.0,) * 10,
)
SMALL = Submodel((64,) * 12, (9, 10), "small")  # differs everywhere
UPPER = Submodel((128,) * 7 + (64,) * 7, (), "upper")  # differs above the last keys only
PROMPT = [2, *range(300, 330)]
GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)


def tiny_gemma3n(config: Gemma3nConfig, seed: int = 0) -> Gemma3n:
    model = Gemma3n(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms multiply by w, not by 1 + w
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(0, 0.15, generator=generator)
    return model


def ids_of(session: Session, prompt: list[int] = PROMPT, sampling: Sampling = GREEDY) -> list[int]:
    return [token for piece in session.stream(prompt, sampling) for token in piece.token_ids]
