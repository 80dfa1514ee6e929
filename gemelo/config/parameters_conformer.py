"""Parameters of the Universal Speech Model's conformer, the audio encoder of Gemma 3n.

    conformer_shapes(config.audio)["conformer.0.norm.weight"]      # (D,)

D encoder width, d head width, C channels of a convolution, F frequency bands.
"""

from __future__ import annotations

from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.config.parameter_names import Shapes, part, parts


def conformer_shapes(config: AudioConfig) -> Shapes:
    """The encoder's parameters, without "audio_tower."."""
    return {
        **part("subsample_conv_projection", _subsampling(config)),
        **parts("conformer", [_block(config)] * config.conf_num_hidden_layers),
    }


def _subsampling(config: AudioConfig) -> Shapes:
    """Two convolutions over time and frequency, and a map of what is left to the width."""
    first, second = config.sscp_conv_channel_size
    (kernel_0, kernel_1), bands = config.sscp_conv_kernel_size, config.num_bands[1]
    return {
        "conv_0.conv.weight": (first, 1, *kernel_0),
        "conv_0.norm.weight": (first,),
        "conv_1.conv.weight": (second, first, *kernel_1),
        "conv_1.norm.weight": (second,),
        "input_proj_linear.weight": (config.hidden_size, second * bands),
    }


def _block(config: AudioConfig) -> Shapes:
    return {
        **part("ffw_layer_start", _feed_forward(config)),
        **part("attention", _attention(config)),
        **part("lconv1d", _light_conv(config)),
        **part("ffw_layer_end", _feed_forward(config)),
        "norm.weight": (config.hidden_size,),
    }


def _feed_forward(config: AudioConfig) -> Shapes:
    width = config.hidden_size
    return {
        "pre_layer_norm.weight": (width,),
        "ffw_layer_1.weight": (4 * width, width),
        "ffw_layer_2.weight": (width, 4 * width),
        "post_layer_norm.weight": (width,),
    }


def _attention(config: AudioConfig) -> Shapes:
    width = config.hidden_size
    return {
        "pre_attn_norm.weight": (width,),
        "attn.per_dim_scale": (config.head_dim,),
        "attn.relative_position_embedding.pos_proj.weight": (width, width),
        "attn.q_proj.weight": (width, width),
        "attn.k_proj.weight": (width, width),
        "attn.v_proj.weight": (width, width),
        "post.weight": (width, width),
        "post_norm.weight": (width,),
    }


def _light_conv(config: AudioConfig) -> Shapes:
    """A gated convolution over time, each channel by itself."""
    width = config.hidden_size
    return {
        "pre_layer_norm.weight": (width,),
        "linear_start.weight": (2 * width, width),
        "depthwise_conv1d.weight": (width, 1, config.conf_conv_kernel_size),
        "conv_norm.weight": (width,),
        "linear_end.weight": (width, width),
    }
