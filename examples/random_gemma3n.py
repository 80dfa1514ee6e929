"""A Gemma 3n with random weights, to try things on: python examples/random_gemma3n.py FOLDER

As deep as E4B and with feed-forwards as wide, so that all published sub-models fit in it, but of
width 16 elsewhere: 63 MB. Its tokenizer is the embedded model's. Its text means nothing.
"""

import json
import struct
import sys
from pathlib import Path

import torch

import gemelo

CONFIG = gemelo.Gemma3nConfig(
    vocab_size=262144,
    vocab_size_per_layer_input=512,
    hidden_size=16,
    head_dim=16,
    hidden_size_per_layer_input=32,
    laurel_rank=8,
)


def shapes(config: gemelo.Gemma3nConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the text model by its name in transformers."""
    width, streams = config.hidden_size, config.altup_num_inputs
    per_layer, rank = config.hidden_size_per_layer_input, config.laurel_rank
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    columns = config.num_hidden_layers * per_layer
    found: dict[str, tuple[int, ...]] = {
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
    return found


def write(folder: Path) -> Path:
    """config.json, tokenizer.model and model.safetensors: a header, then the weights' bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (folder / "tokenizer.model").write_bytes(gemelo.load().tokenizer.to_sentencepiece())
    header, end = {}, 0
    for name, shape in shapes(CONFIG).items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[f"model.{name}"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    torch.manual_seed(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for shape in shapes(CONFIG).values():
            weight = torch.ones(shape) if len(shape) == 1 else 0.2 * torch.randn(shape)
            file.write(weight.bfloat16().view(torch.int16).numpy().tobytes())
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/random_gemma3n.py FOLDER")
    print("wrote", write(Path(sys.argv[1])))
