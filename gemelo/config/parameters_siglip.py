"""Parameters of SigLIP So400m/14, the vision tower of Gemma 3, and of the projector behind it.

Every linear map has a bias, and so have the norms: this is a plain transformer. The projection's
matrix alone lies the other way round, (in, out).

    siglip_shapes(config.vision);  projector_shapes(config.vision, config.hidden_size)

E vision width, D decoder width, P patches, F feed-forward width.
"""

from __future__ import annotations

from gemelo.config.gemma3_vision import VisionConfig
from gemelo.config.parameter_names import Shapes, affine, part, parts


def siglip_shapes(config: VisionConfig) -> Shapes:
    """The tower's parameters, without "vision_tower."."""
    width, patch = config.hidden_size, config.patch_size
    return {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": (config.num_patches, width),
        **parts("encoder.layers", [_layer(config)] * config.num_hidden_layers),
        **_norm("post_layernorm", width),
    }


def _layer(config: VisionConfig) -> Shapes:
    width, ffn = config.hidden_size, config.intermediate_size
    attention: Shapes = {}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        attention |= affine(projection, width, width)
    return {
        **_norm("layer_norm1", width),
        **part("self_attn", attention),
        **_norm("layer_norm2", width),
        **affine("mlp.fc1", ffn, width),
        **affine("mlp.fc2", width, ffn),
    }


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def projector_shapes(config: VisionConfig, width: int) -> Shapes:
    """The projector's parameters into a decoder of `width`, without "multi_modal_projector."."""
    return {
        "mm_input_projection_weight": (config.hidden_size, width),
        "mm_soft_emb_norm.weight": (config.hidden_size,),
    }
