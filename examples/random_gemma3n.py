"""A Gemma 3n with random weights, to try things on: python examples/random_gemma3n.py FOLDER

As deep as E4B and with feed-forwards as wide, so that all published sub-models fit in it, but of
width 32 elsewhere: 165 MB. Its vision tower and its audio encoder are small too, so that it takes
pictures and sound. Its tokenizer is the embedded model's. What it says means nothing.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

import gemelo
from gemelo.models.multimodal import tree_of
from gemelo.weights import names
from gemelo.weights.safetensors import write_safetensors

WIDTH = 32  # the block of q8_0 and q4_0: every matrix can be quantised
CONFIG = gemelo.Gemma3nConfig(
    vocab_size_per_layer_input=512,
    hidden_size=WIDTH,
    head_dim=WIDTH,
    hidden_size_per_layer_input=WIDTH,
    laurel_rank=WIDTH,
    vision_config={
        "architecture": "mobilenetv5_300m_enc",
        "model_args": {"channel_multiplier": 0.0625},
    },
    audio_config={
        "model_type": "gemma3n_audio",
        "hidden_size": WIDTH,
        "conf_num_attention_heads": 4,
        "conf_num_hidden_layers": 2,
        "sscp_conv_channel_size": [8, 4],
    },
)
# Gemma's turns, without instructions; a picture or a sound leaves its placeholder.
TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<start_of_turn>\
{{ 'model' if message.role == 'assistant' else message.role }}
{% if message.content is string %}{{ message.content | trim }}{% else %}\
{% for part in message.content %}\
{% if part.type == 'image' %}<image_soft_token>\
{% elif part.type == 'audio' %}<audio_soft_token>\
{% else %}{{ part.text | trim }}{% endif %}\
{% endfor %}{% endif %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""


def weight(like: torch.Tensor) -> torch.Tensor:
    """Ones for a norm; else small enough that no layer drowns the others."""
    made = torch.ones(like.shape) if like.dim() < 2 else 0.2 * torch.randn(like.shape)
    return made


def dtype_of(name: str) -> torch.dtype:
    """bfloat16, but for the vision tower: a CPU is slow at its convolutions in that."""
    return torch.float32 if name.startswith("vision_tower.") else torch.bfloat16


def write(folder: Path) -> Path:
    """A folder as the hub has them: config, weights, tokenizer and chat template."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (folder / "tokenizer.model").write_bytes(gemelo.load().tokenizer.to_sentencepiece())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with torch.device("meta"):
        tree = tree_of(CONFIG).state_dict()
    torch.manual_seed(0)
    write_safetensors(
        folder,
        [
            (names.to_hf(name, "multimodal-3n"), (*w.shape,), dtype_of(name), partial(weight, w))
            for name, w in tree.items()
        ],
    )
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/random_gemma3n.py FOLDER")
    print("wrote", write(Path(sys.argv[1])))
