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
Shapes = dict[str, tuple[int, ...]]


def text_shapes(config: gemelo.Gemma3nConfig) -> Shapes:
    """Every weight of the text model by its name in transformers."""
    width, streams = config.hidden_size, config.altup_num_inputs
    per_layer, rank = config.hidden_size_per_layer_input, config.laurel_rank
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    columns = config.num_hidden_layers * per_layer
    found: Shapes = {
        "embed_tokens.weight": (config.vocab_size, width),
        "embed_tokens_per_layer.weight": (config.vocab_size_per_layer_input, columns),
        "per_layer_model_projection.weight": (columns, width),
        "per_layer_projection_norm.weight": (per_layer,),
        "norm.weight": (width,),
    }
    for other in range(streams - 1):
        found[f"altup_projections.{other}.weight"] = (width, width)
        found[f"altup_unembed_projections.{other}.weight"] = (width, width)
    for layer, ffn in enumerate(config.ffn_widths):
        block = {
            "self_attn.q_proj.weight": (queries, width),
            "self_attn.q_norm.weight": (config.head_dim,),
            "self_attn.o_proj.weight": (width, queries),
            "mlp.gate_proj.weight": (ffn, width),
            "mlp.up_proj.weight": (ffn, width),
            "mlp.down_proj.weight": (width, ffn),
            "altup.correct_output_scale": (width,),
            "altup.prediction_coefs.weight": (streams * streams, streams),
            "altup.correction_coefs.weight": (streams, streams),
            "altup.modality_router.weight": (streams, width),
            "altup.router_norm.weight": (width,),
            "laurel.linear_left.weight": (rank, width),
            "laurel.linear_right.weight": (width, rank),
            "laurel.post_laurel_norm.weight": (width,),
            "per_layer_input_gate.weight": (per_layer, width),
            "per_layer_projection.weight": (width, per_layer),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            "pre_feedforward_layernorm.weight": (width,),
            "post_feedforward_layernorm.weight": (width,),
            "post_per_layer_input_norm.weight": (width,),
        }
        if config.layer(layer).owns_keys:  # the upper layers borrow theirs
            block["self_attn.k_proj.weight"] = block["self_attn.v_proj.weight"] = (keys, width)
            block["self_attn.k_norm.weight"] = (config.head_dim,)
        found |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    return {f"language_model.{name}": shape for name, shape in found.items()}


def audio_shapes(audio: gemelo.AudioConfig, text_width: int) -> Shapes:
    """Every weight of the audio encoder and of its projector."""
    width, (first, second) = audio.hidden_size, audio.sscp_conv_channel_size
    (high, wide), (higher, wider) = audio.sscp_conv_kernel_size
    found: Shapes = {
        "subsample_conv_projection.conv_0.conv.weight": (first, 1, high, wide),
        "subsample_conv_projection.conv_0.norm.weight": (first,),
        "subsample_conv_projection.conv_1.conv.weight": (second, first, higher, wider),
        "subsample_conv_projection.conv_1.norm.weight": (second,),
        "subsample_conv_projection.input_proj_linear.weight": (width, second * audio.num_bands[1]),
    }
    half = {
        "pre_layer_norm.weight": (width,),
        "ffw_layer_1.weight": (4 * width, width),
        "ffw_layer_2.weight": (width, 4 * width),
        "post_layer_norm.weight": (width,),
    }
    block: Shapes = {
        **{f"ffw_layer_start.{name}": shape for name, shape in half.items()},
        **{f"ffw_layer_end.{name}": shape for name, shape in half.items()},
        "attention.pre_attn_norm.weight": (width,),
        "attention.attn.per_dim_scale": (audio.head_dim,),
        "attention.attn.relative_position_embedding.pos_proj.weight": (width, width),
        **{f"attention.attn.{name}_proj.weight": (width, width) for name in "qkv"},
        "attention.post.weight": (width, width),
        "attention.post_norm.weight": (width,),
        "lconv1d.pre_layer_norm.weight": (width,),
        "lconv1d.linear_start.weight": (2 * width, width),
        "lconv1d.depthwise_conv1d.weight": (width, 1, audio.conf_conv_kernel_size),
        "lconv1d.conv_norm.weight": (width,),
        "lconv1d.linear_end.weight": (width, width),
        "norm.weight": (width,),
    }
    for layer in range(audio.conf_num_hidden_layers):
        found |= {f"conformer.{layer}.{name}": shape for name, shape in block.items()}
    return {f"audio_tower.{name}": shape for name, shape in found.items()} | {
        "embed_audio.embedding.weight": (audio.vocab_size, width),
        "embed_audio.hard_embedding_norm.weight": (width,),
        "embed_audio.soft_embedding_norm.weight": (width,),
        "embed_audio.embedding_projection.weight": (text_width, width),
    }


def write(folder: Path) -> Path:
    """As the hub has them; in model.safetensors a header is followed by the weights' bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (folder / "tokenizer.model").write_bytes(gemelo.load().tokenizer.to_sentencepiece())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert CONFIG.audio is not None
    shapes = text_shapes(CONFIG) | audio_shapes(CONFIG.audio, CONFIG.hidden_size)
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
