"""Tiny decoders whose every matrix lies in blocks, so that they have a native program."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from gemelo.config import Gemma3Config, Gemma3nConfig
from gemelo.engine.kv import KVCache, KVFormat
from gemelo.kernels.linear import QuantEmbedding, QuantLinear
from gemelo.kernels.quants import FORMATS, Packed, pack
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.layers import Embedding, Linear
from tests.conftest import TINY, randomise
from tests.gemma3n import TINY_3N

GEMMA3 = dataclasses.replace(
    TINY["blocks-of-32"], head_dim=64, hidden_size=64, final_logit_softcapping=20.0
)
GEMMA3N = dataclasses.replace(
    TINY_3N, vocab_size_per_layer_input=500, intermediate_size=(128,) * 12, head_dim=64
)
IDS = torch.randint(3, 500, (60,), generator=torch.Generator().manual_seed(3)).tolist()


def quantised(decoder: Gemma3 | Gemma3n, name: str = "f32") -> Gemma3 | Gemma3n:
    """The decoder with every matrix as blocks; "f32" blocks change no number."""
    randomise(decoder)

    def packed(weight: Tensor) -> Packed:
        if name == "f32":
            return Packed(weight.detach().clone().view(torch.uint8), FORMATS["f32"])
        return pack(weight.detach(), FORMATS[name])

    def exchange(module: nn.Module) -> None:
        for leaf, child in module.named_children():
            if isinstance(child, Embedding):
                setattr(module, leaf, QuantEmbedding(packed(child.weight), torch.float32))
            elif type(child) is Linear and child.weight.shape[1] % 32 == 0:
                setattr(module, leaf, QuantLinear(packed(child.weight)))
            else:
                exchange(child)

    exchange(decoder)
    return decoder.eval()


def made(config: Gemma3Config | Gemma3nConfig, name: str = "f32") -> Gemma3 | Gemma3n:
    return quantised(Gemma3n(config) if isinstance(config, Gemma3nConfig) else Gemma3(config), name)


def cache_of(
    decoder: Gemma3 | Gemma3n, rows: int = 1, chunk: int = 32, kv_format: KVFormat = "plain"
) -> KVCache:
    return KVCache(decoder.config, 256, rows, chunk, kv_format=kv_format)
