"""Tiny decoders with every matrix in one format, and the modules that they are compared with."""

from __future__ import annotations

import dataclasses

import torch

from gemelo.config import Gemma3Config, Gemma3nConfig
from gemelo.config.options import KVFormat
from gemelo.engine.decoder import Decoder
from gemelo.engine.kv import KVCache
from gemelo.engine.memory.per_layer_table import table_of
from gemelo.engine.modules.decoder import ModuleDecoder, weights_of
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.kernels.quants import FORMATS, Packed, converted
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.weights.tensors import Weights
from tests.conftest import TINY, randomise
from tests.gemma3n import TINY_3N

GEMMA3 = dataclasses.replace(
    TINY["blocks-of-32"], head_dim=64, hidden_size=64, final_logit_softcapping=20.0
)
GEMMA3N = dataclasses.replace(
    TINY_3N, vocab_size_per_layer_input=500, intermediate_size=(128,) * 12, head_dim=64
)
IDS = torch.randint(3, 500, (60,), generator=torch.Generator().manual_seed(3)).tolist()


def in_format(weights: Weights, name: str) -> Weights:
    """The same with every matrix whose rows are whole blocks in a format."""
    format = FORMATS[name]

    def fits(weight: Packed) -> bool:
        return len(weight.shape) == 2 and weight.shape[1] % max(32, format.block) == 0

    return Weights({n: converted(w, format) if fits(w) else w for n, w in weights.items()})


def native_of(module: Gemma3 | Gemma3n, name: str = "f32") -> NativeDecoder:
    """The decoder over a module's weights as they are now, in a format; f32 changes no number."""
    weights = in_format(weights_of(module), name)
    width = module.config.hidden_size_per_layer_input
    return NativeDecoder(module.config, weights, table=table_of(weights, width) if width else None)


def made(config: Gemma3Config | Gemma3nConfig, name: str = "f32", seed: int = 0) -> NativeDecoder:
    """A decoder of random weights in a format."""
    module = Gemma3n(config) if isinstance(config, Gemma3nConfig) else Gemma3(config)
    randomise(module, seed)
    return native_of(module, name)


def again(decoder: NativeDecoder) -> NativeDecoder:
    """The same decoder with a program of its own, under the instruction set that is in use, over
    the weights as they are now."""
    return NativeDecoder(
        decoder.config, Weights(decoder.weights), decoder.panels, decoder.table,
        decoder.modality_embeddings, decoder.layer_indices, decoder.nested_in,
    )  # fmt: skip


def modules_of(decoder: NativeDecoder) -> ModuleDecoder:
    """The same model as modules, over the same memory."""
    return ModuleDecoder.of(decoder)


def cache_of(decoder: Decoder, chunk: int = 32, kv_format: KVFormat = "plain") -> KVCache:
    return decoder.cache(256, chunk, kv_format)
