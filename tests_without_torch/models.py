"""Tiny models of both families as directories of the hub, made with NumPy alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from gemelo.config import Gemma3Config, Gemma3nConfig
from gemelo.config.parameters import parameter_shapes
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.quants import FORMATS, Floats, Packed
from gemelo.weights import names
from gemelo.weights.safetensors import TensorToWrite, write_safetensors
from tests.vocabulary import tiny_vocabulary

Config = Gemma3Config | Gemma3nConfig
# Widths that the native kernels take, and that fit every format.
GEMMA3 = Gemma3Config(
    vocab_size=512,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    query_pre_attn_scalar=64,
    sliding_window=8,
    max_position_embeddings=256,
    rope_scaling_factor=4.0,
)
GEMMA3N = Gemma3nConfig(
    vocab_size=512,
    vocab_size_per_layer_input=512,
    hidden_size=64,
    intermediate_size=(128,) * 12,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    sliding_window=6,
    max_position_embeddings=256,
    num_kv_shared_layers=5,
    hidden_size_per_layer_input=32,
    laurel_rank=32,
    activation_sparsity_pattern=(0.95,) * 4 + (0.75,) + (0.0,) * 7,
)
SEEING_3N = dataclasses.replace(
    GEMMA3N,
    vocab_size_per_layer_input=480,
    eos_token_id=(1, 106),
    vision_config={
        "model_type": "gemma3n_vision",
        "architecture": "mobilenetv5_300m_enc",
        "hidden_size": 2048,
        "vocab_size": 16,
        "vocab_offset": 480,
        "model_args": {"channel_multiplier": 0.0625, "msfa_output_resolution": 4},
    },
    audio_config={
        "model_type": "gemma3n_audio",
        "vocab_size": 16,
        "vocab_offset": 496,
        "hidden_size": 32,
        "conf_num_attention_heads": 4,
        "conf_num_hidden_layers": 2,
        "conf_attention_chunk_size": 4,
        "conf_attention_context_left": 5,
        "sscp_conv_channel_size": [8, 4],
    },
    vision_soft_tokens_per_image=16,
    audio_soft_tokens_per_image=12,
    boi_token_id=90,
    eoi_token_id=480,
    image_token_id=481,
    boa_token_id=93,
    eoa_token_id=496,
    audio_token_id=497,
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def vocabulary() -> dict[str, Any]:
    """The tiny vocabulary with the markers of media."""
    facts = tiny_vocabulary()
    pieces: Any = facts["tokenizer.ggml.tokens"]
    pieces[90:96] = [
        *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        *("<start_of_audio>", "<end_of_audio>", "<audio_soft_token>"),
    ]
    return facts


def write(folder: Path, config: Config) -> Path:
    """A directory with random weights at which every part says something, and a chat template."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    layout = "text" if config.vision is None else "multimodal-3n"

    low, high = (-0.5, 0.5) if config.norm_offset else (0.5, 1.5)

    def made(name: str, shape: tuple[int, ...]) -> Floats:
        if len(shape) == 1:
            return random.uniform(low, high, shape).astype(np.float32)
        weight = random.normal(0, 0.08, shape).astype(np.float32)
        if name == "language_model.embed_tokens.weight":
            weight[[1, 106]] = 0  # what ends a turn is never the likeliest
        return weight

    def entry(name: str, shape: tuple[int, ...]) -> TensorToWrite:
        packed = Packed.of(made(name, shape))
        return names.to_hf(name, layout), shape, FORMATS["f32"], lambda: packed

    write_safetensors(folder, [entry(*item) for item in parameter_shapes(config).items()])
    (folder / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    tokenizer = Tokenizer.from_gguf(vocabulary())
    (folder / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
