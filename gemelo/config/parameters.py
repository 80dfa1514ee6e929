"""Parameters: the canonical name and shape of every weight of a model, told by its config alone.

A file's tensors are held against these before anything is made of them. They are written as the
networks of `gemelo.models` are nested, in the same order, and a test compares the two; nothing is
built here and PyTorch is not needed. Shapes are those of a checkpoint: a linear map is (out, in).

    parameter_shapes(config)["language_model.layers.0.mlp.up_proj.weight"]      # (F, D)
    decoder_shapes(config)["norm.weight"]                                       # (D,)

V vocabulary, D width, F feed-forward width, d head width, L layers, P width of a per-layer
embedding, S streams, R rank, E width of a tower.
"""

from __future__ import annotations

from gemelo.config.gemma3_vision import VisionConfig
from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.model import ModelConfig
from gemelo.config.parameter_names import Shapes, part, parts
from gemelo.config.parameters_conformer import conformer_shapes
from gemelo.config.parameters_mobilenet import mobilenet_shapes
from gemelo.config.parameters_siglip import projector_shapes, siglip_shapes


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Every parameter of a model: the decoder's, then those of its towers and what joins them."""
    return {
        **part("language_model", decoder_shapes(config)),
        **_vision(config),
        **_audio(config),
    }


def _vision(config: ModelConfig) -> Shapes:
    vision, width = config.vision, config.hidden_size
    if vision is None:
        return {}
    if isinstance(vision, VisionConfig):
        return {
            **part("vision_tower", siglip_shapes(vision)),
            **part("multi_modal_projector", projector_shapes(vision, width)),
        }
    return {
        **part("vision_tower", mobilenet_shapes(vision)),
        **part("embed_vision", embedder_shapes(vision, width)),
    }


def _audio(config: ModelConfig) -> Shapes:
    audio = config.audio
    if audio is None:
        return {}
    return {
        **part("audio_tower", conformer_shapes(audio)),
        **part("embed_audio", embedder_shapes(audio, config.hidden_size)),
    }


def embedder_shapes(tower: Vision3nConfig | AudioConfig, width: int) -> Shapes:
    """What brings a Gemma 3n tower's features, and ids of its own, to the decoder's width."""
    return {
        "embedding.weight": (tower.vocab_size, tower.hidden_size),
        "hard_embedding_norm.weight": (tower.hidden_size,),
        "soft_embedding_norm.weight": (tower.hidden_size,),
        "embedding_projection.weight": (width, tower.hidden_size),
    }


# ---- decoder -------------------------------------------------------------------------------------


def decoder_shapes(config: ModelConfig) -> Shapes:
    """The decoder's parameters, without "language_model.": embeddings, layers, norm, and a head
    where it is not tied."""
    embedding = (config.vocab_size, config.hidden_size)
    return {
        "embed_tokens.weight": embedding,
        **_around_layers(config),
        **parts("layers", (layer_shapes(config, layer) for layer in config.layers)),
        "norm.weight": (config.hidden_size,),
        **({} if config.tie_word_embeddings else {"lm_head.weight": embedding}),
    }


def _around_layers(config: ModelConfig) -> Shapes:
    """Per-layer embeddings, and what makes streams of one embedding and one of them again."""
    per_layer, width = config.hidden_size_per_layer_input, config.hidden_size
    if not per_layer:
        return {}
    columns = config.num_hidden_layers * per_layer
    streams = range(config.altup_num_inputs - 1)
    return {
        "embed_tokens_per_layer.weight": (config.vocab_size_per_layer_input, columns),
        "per_layer_model_projection.weight": (columns, width),
        "per_layer_projection_norm.weight": (per_layer,),
        **{f"altup_projections.{stream}.weight": (width, width) for stream in streams},
        **{f"altup_unembed_projections.{stream}.weight": (width, width) for stream in streams},
    }


def layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    """One decoder layer's parameters."""
    norm, per_layer = (config.hidden_size,), config.hidden_size_per_layer_input
    return {
        **part("self_attn", _attention(config, layer)),
        **part("mlp", _feed_forward(config, layer)),
        **(_streams(config) if per_layer else {}),
        "input_layernorm.weight": norm,
        "post_attention_layernorm.weight": norm,
        "pre_feedforward_layernorm.weight": norm,
        "post_feedforward_layernorm.weight": norm,
        **({"post_per_layer_input_norm.weight": norm} if per_layer else {}),
    }


def _attention(config: ModelConfig, layer: int) -> Shapes:
    """A layer that borrows its keys and values has no maps to make them."""
    width, d = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * d, config.num_key_value_heads * d
    own = {"k_proj.weight": (keys, width), "k_norm.weight": (d,), "v_proj.weight": (keys, width)}
    return {
        "q_proj.weight": (queries, width),
        "q_norm.weight": (d,),
        "o_proj.weight": (width, queries),
        **(own if config.layer(layer).owns_keys else {}),
    }


def _feed_forward(config: ModelConfig, layer: int) -> Shapes:
    width, ffn = config.hidden_size, config.layer(layer).intermediate_size
    return {
        "gate_proj.weight": (ffn, width),
        "up_proj.weight": (ffn, width),
        "down_proj.weight": (width, ffn),
    }


def _streams(config: ModelConfig) -> Shapes:
    """AltUp, LAuReL, and what a per-layer embedding goes through."""
    width, per_layer = config.hidden_size, config.hidden_size_per_layer_input
    streams, rank = config.altup_num_inputs, config.laurel_rank
    return {
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
    }
