"""Tiny models with eyes and ears, as directories of the hub, and what to show and play them."""

from __future__ import annotations

import dataclasses
import json
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Gemma3ForConditionalGeneration, Gemma3nForConditionalGeneration

from gemelo.config import Gemma3Config, Gemma3nConfig
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.models.multimodal import Gemma3nTree, Gemma3Tree, Tree, tree_of
from gemelo.weights import names
from gemelo.weights.safetensors import write_safetensors
from tests.conftest import HEADS_OF_64, TINY_VISION, tiny_vocabulary
from tests.gemma3n import TINY_3N
from tests.tensors import entries

Config = Gemma3Config | Gemma3nConfig
BOI, EOI, IMAGE, BOA = 90, 91, 92, 93
# The window is shorter than a picture, so that the two conditions of a mask meet.
EYED = dataclasses.replace(
    HEADS_OF_64,
    vision=TINY_VISION,
    mm_tokens_per_image=16,
    boi_token_index=BOI,
    eoi_token_index=EOI,
    image_token_index=IMAGE,
    max_position_embeddings=1024,
    eos_token_id=(1, 106),
)
AWAKE = dataclasses.replace(
    TINY_3N,
    head_dim=64,  # as the native kernels take it
    vocab_size_per_layer_input=480,
    max_position_embeddings=1024,
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
    boi_token_id=BOI,
    eoi_token_id=480,
    image_token_id=481,
    boa_token_id=BOA,
    eoa_token_id=496,
    audio_token_id=497,
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}EYE{% elif part.type == 'audio' %}<audio_soft_token>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def vocabulary() -> dict[str, Any]:
    """The tiny vocabulary with the markers of both families."""
    facts = tiny_vocabulary()
    pieces: Any = facts["tokenizer.ggml.tokens"]
    pieces[BOI], pieces[EOI], pieces[IMAGE] = (
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    )
    pieces[BOA], pieces[94], pieces[95] = "<start_of_audio>", "<end_of_audio>", "<audio_soft_token>"
    return facts


@cache
def tree(config: Config) -> Tree:
    """Random weights at which every part still says something."""
    with torch.inference_mode(False):
        made = tree_of(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        _randomise(name, parameter.detach(), generator)
    return made


def _randomise(name: str, weight: Tensor, generator: torch.Generator) -> None:
    if name.startswith(("vision_tower.timm_model", "audio_tower", "embed_")):
        if weight.dim() == 1:
            weight.uniform_(0.5, 1.5, generator=generator)
        else:
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
    elif weight.dim() == 1:
        weight.uniform_(-0.5, 0.5, generator=generator)
    else:
        weight.normal_(0, 0.08, generator=generator)


def write(folder: Path, config: Config, dtype: torch.dtype = torch.float32) -> Path:
    """A directory of the hub's layout with a chat template that knows media."""
    folder.mkdir(parents=True)
    gemma3 = isinstance(config, Gemma3Config)
    layout = "multimodal" if gemma3 else "multimodal-3n"
    state = {names.to_hf(n, layout): w.to(dtype) for n, w in tree(config).state_dict().items()}
    write_safetensors(folder, entries(state))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    tokenizer = Tokenizer.from_gguf(vocabulary())
    (folder / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
    eye = "<start_of_image>" if gemma3 else "<image_soft_token>"
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("EYE", eye))
    return folder


def twin(config: Config) -> nn.Module:
    """The reference with the same weights."""
    raw = {key: value for key, value in config.to_hf().items() if key != "architectures"}
    state = {f"model.{name}": weight for name, weight in tree(config).state_dict().items()}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    kind: Any = Gemma3nForConditionalGeneration
    if isinstance(config, Gemma3Config):
        kind = Gemma3ForConditionalGeneration
    model = kind(kind.config_class(**raw)).eval()
    model.set_attn_implementation("eager")
    held = model.state_dict()
    assert state.keys() <= held.keys()
    model.load_state_dict(held | state)
    return model  # type: ignore[no-any-return]


def eyed() -> Gemma3Tree:
    made = tree(EYED)
    assert isinstance(made, Gemma3Tree)
    return made


def awake() -> Gemma3nTree:
    made = tree(AWAKE)
    assert isinstance(made, Gemma3nTree)
    return made


def photograph(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Noise: every pixel counts."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def recording(seconds: float = 1.0, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Noise at 16 kHz."""
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(int(seconds * 16000))).astype(np.float32)


def write_wave(path: Path, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """A file of 16 bits at 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((values * 32767).astype(np.int16).tobytes())
