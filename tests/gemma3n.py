"""Tiny Gemma 3n models: keys borrowed in both kinds of layers, two widths, sparse and dense."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from transformers import Gemma3nForCausalLM

from gemelo.checkpoint import Checkpoint
from gemelo.config import Gemma3nConfig
from gemelo.models.gemma3n import Gemma3n
from tests.conftest import randomise

IDS = [2, *range(300, 330)]

# Every width a multiple of 32, so that each matrix fits every format.
TINY_3N = Gemma3nConfig(
    vocab_size=512,
    vocab_size_per_layer_input=512,
    hidden_size=64,
    intermediate_size=(96,) * 12,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=6,
    max_position_embeddings=256,
    num_kv_shared_layers=5,
    hidden_size_per_layer_input=32,
    laurel_rank=32,
    activation_sparsity_pattern=(0.95,) * 4 + (0.75,) + (0.0,) * 7,
)
MIXED_3N = dataclasses.replace(TINY_3N, intermediate_size=(96,) * 6 + (64,) * 6)
# Rows for images and sounds past those of text, as in the published models.
SOFT_3N = dataclasses.replace(TINY_3N, vocab_size_per_layer_input=480)


def tiny_3n(config: Gemma3nConfig = TINY_3N, seed: int = 0) -> Gemma3n:
    model = Gemma3n(config).eval()
    randomise(model, seed)
    return model


@torch.inference_mode()
def scores(model: Gemma3n | Checkpoint) -> Tensor:
    """Next-token scores after each of IDS, (T, V), without engine or cache."""
    decoder = model.decoder if isinstance(model, Checkpoint) else model
    ids = torch.tensor([IDS])
    return decoder.logits(decoder(ids, torch.arange(len(IDS))[None]))[0]


@torch.inference_mode()
def reference_scores(folder: Path) -> Tensor:
    """The same from transformers, which reads the folder itself."""
    twin = Gemma3nForCausalLM.from_pretrained(folder, attn_implementation="eager")
    logits: Tensor = twin(torch.tensor([IDS])).logits[0]
    return logits


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
