"""A Gemma 3n with random weights, to try things on: python examples/random_gemma3n.py FOLDER

As deep as E4B and with feed-forwards as wide, so that all published sub-models fit in it, but of
width 32 elsewhere: 137 MB. It hears, by a small audio encoder, and has no vision tower. Its
tokenizer is the embedded model's. What it says means nothing.
"""

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np

import gemelo

WIDTH = 32  # the block of q8_0 and q4_0, in which every matrix can be written
CONFIG = gemelo.Gemma3nConfig(
    vocab_size_per_layer_input=512,
    hidden_size=WIDTH,
    head_dim=2 * WIDTH,  # the native kernels take multiples of 64
    hidden_size_per_layer_input=WIDTH,
    laurel_rank=WIDTH,
    audio_config={
        "model_type": "gemma3n_audio",
        "hidden_size": WIDTH,
        "conf_num_attention_heads": 4,
        "conf_num_hidden_layers": 2,
        "sscp_conv_channel_size": [8, 4],
    },
)
# Gemma's turns, without instructions; a sound leaves its placeholder.
TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<start_of_turn>\
{{ 'model' if message.role == 'assistant' else message.role }}
{% if message.content is string %}{{ message.content | trim }}{% else %}\
{% for part in message.content %}\
{% if part.type == 'audio' %}<audio_soft_token>{% else %}{{ part.text | trim }}{% endif %}\
{% endfor %}{% endif %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""


def write(folder: Path) -> Path:
    """As the hub has them; in model.safetensors a header is followed by the weights' bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (folder / "tokenizer.model").write_bytes(gemelo.load().tokenizer.to_sentencepiece())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    shapes = gemelo.parameter_shapes(CONFIG)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[f"model.{name}"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for shape in shapes.values():
            weight = np.ones(shape, np.float32)
            if len(shape) > 1:
                weight = np.float32(0.2) * generator.standard_normal(shape, np.float32)
            # bfloat16 is the upper half of float32, rounded.
            file.write((weight.view(np.uint32) + 0x8000 >> 16).astype("<u2").tobytes())
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/random_gemma3n.py FOLDER")
    print("wrote", write(Path(sys.argv[1])))
