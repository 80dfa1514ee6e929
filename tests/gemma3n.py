"""Tiny Gemma 3n models: keys borrowed in both kinds of layers, two widths, sparse and dense."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Gemma3nForCausalLM

from gemelo.checkpoints.load import Checkpoint
from gemelo.checkpoints.modules import decoder_module
from gemelo.config import FULL, SLIDING, Gemma3nConfig
from gemelo.models.gemma3n import Gemma3n
from gemelo.weights.safetensors import Safetensors
from tests.conftest import randomise, write_checkpoint
from tests.tensors import held

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
DEAD_3N = [
    f"layers.{layer}.self_attn.{leaf}.weight"
    for layer in range(7, 12)
    for leaf in ("k_proj", "v_proj", "k_norm")
]
IDS = [2, *range(300, 330)]

Tensors = dict[str, Tensor]
# Windows crossed, shared layers of both kinds, mixed widths, sparse and dense feed-forwards.
SMALL = Gemma3nConfig(
    vocab_size=320,
    vocab_size_per_layer_input=300,
    hidden_size=64,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=6,
    max_position_embeddings=256,
    num_kv_shared_layers=5,
    hidden_size_per_layer_input=8,
    laurel_rank=8,
    intermediate_size=(96,) * 6 + (64,) * 6,
    activation_sparsity_pattern=(0.95,) * 4 + (0.0,) * 8,
)
VARIANTS = {
    "mixed-widths": SMALL,
    "one-kv-head": dataclasses.replace(
        SMALL, num_key_value_heads=1, hidden_size=48, head_dim=24, num_kv_shared_layers=2
    ),
    "odd-pattern": dataclasses.replace(
        SMALL,
        num_hidden_layers=7,
        num_kv_shared_layers=3,
        layer_types=(FULL, SLIDING, SLIDING, FULL, SLIDING, FULL, SLIDING),
        intermediate_size=(64, 32, 96, 64, 32, 96, 64),
        activation_sparsity_pattern=(0.5, 0.0, 0.95, 0.0, 0.0, 0.0, 0.9),
        altup_num_inputs=3,
        sliding_window=4,
    ),
    "nothing-shared": dataclasses.replace(SMALL, num_kv_shared_layers=0),
}


def tiny_3n(config: Gemma3nConfig = TINY_3N, seed: int = 0) -> Gemma3n:
    model = Gemma3n(config).eval()
    randomise(model, seed)
    return model


def write_3n(
    folder: Path, config: Gemma3nConfig = TINY_3N, dtype: torch.dtype = torch.float32
) -> Path:
    """A Hugging Face directory of a tiny model, text only."""
    return write_checkpoint(folder, tiny_3n(config), dtype)


def rewritten(folder: Path, more: Tensors, **changes: object) -> Path:
    """The directory with tensors added or replaced, and top-level entries of its config."""
    source = Safetensors(folder)
    tensors = {name: held(source.tensor(name)).clone() for name in source.names()} | more
    write_tensors(folder, tensors)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Tensors of any type, which the package writes; those of a loaded model stay as they are."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "written", {"format": "pt"})
    (folder / "written").replace(folder / "model.safetensors")


def noise(seed: int = 1) -> Tensors:
    """Keys and values of the layers that borrow theirs, in the layout of the hub's text models."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"k_proj": (32, 64), "v_proj": (32, 64), "k_norm": (16,)}
    return {
        f"model.{name}": torch.randn(shapes[name.split(".")[-2]], generator=generator)
        for name in DEAD_3N
    }


@torch.inference_mode()
def scores(model: Gemma3n | Checkpoint, ids: list[int] = IDS) -> Tensor:
    """Next-token scores after each of the ids, (T, V), without engine or cache."""
    is_file = isinstance(model, Checkpoint)
    decoder = decoder_module(model.config, model.weights) if is_file else model
    hidden = decoder(torch.tensor([ids]), torch.arange(len(ids))[None])
    return decoder.logits(hidden)[0]


@torch.inference_mode()
def reference_scores(folder: Path, ids: list[int] = IDS) -> Tensor:
    """The same from transformers, which reads the folder itself."""
    twin = Gemma3nForCausalLM.from_pretrained(folder, attn_implementation="eager")
    logits: Tensor = twin(torch.tensor([ids])).logits[0]
    return logits


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def vision_names() -> Iterator[str]:
    """The 548 names of the MobileNet tower, block by block as the network is laid out."""
    yield from ("conv_stem.conv.weight", "conv_stem.conv.bias", "conv_stem.bn.weight")
    for block in range(3):
        yield from (f"blocks.0.{block}.{x}.weight" for x in ("conv_exp", "bn1", "conv_pwl", "bn2"))
    first = ("dw_start", "pw_exp", "dw_mid", "pw_proj")
    yield from _inverted("blocks.1.0", first)
    for block in range(1, 5):
        yield from _inverted(f"blocks.1.{block}", ("dw_start", "pw_exp", "pw_proj"))
    yield from _inverted("blocks.2.0", first)
    for block in range(1, 8):
        yield from _inverted(f"blocks.2.{block}", ("dw_start", "pw_exp", "pw_proj"))
    for block in (8, *range(10, 37, 2)):
        yield from _inverted(f"blocks.2.{block}", ("pw_exp", "pw_proj"))
    for block in range(9, 36, 2):
        yield from _attention(f"blocks.2.{block}", ("down_conv", "norm", "proj"))
    yield from _inverted("blocks.3.0", first)
    for block in range(1, 38, 2):
        yield from _attention(f"blocks.3.{block}", ("proj",))
        yield from _inverted(f"blocks.3.{block + 1}", ("pw_exp", "pw_proj"))
    yield from (f"msfa.ffn.{x}.{y}.weight" for x in ("pw_exp", "pw_proj") for y in ("conv", "bn"))
    yield "msfa.norm.weight"


def _inverted(block: str, convolutions: tuple[str, ...]) -> Iterator[str]:
    yield from (f"{block}.{conv}.{x}.weight" for conv in convolutions for x in ("conv", "bn"))
    yield f"{block}.layer_scale.gamma"


def _attention(block: str, leaves: tuple[str, ...]) -> Iterator[str]:
    yield from (f"{block}.norm.weight", f"{block}.layer_scale.gamma")
    yield from (f"{block}.attn.{x}.proj.weight" for x in ("query", "output"))
    yield from (f"{block}.attn.{x}.{leaf}.weight" for x in ("key", "value") for leaf in leaves)
