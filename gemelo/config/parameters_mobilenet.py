"""Parameters of MobileNet-V5-300M, the vision tower of Gemma 3n, from the table of its stages.

Every convolution is followed by a norm over its channels (`bn`, a name that batch norm left), and
no convolution but the first has a bias.

    mobilenet_shapes(config.vision)["timm_model.conv_stem.conv.weight"]      # (64, 3, 3, 3)

C channels, F channels inside a block, E the width of the tower's output.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.mobilenet import (
    STAGES,
    Bottleneck,
    Edge,
    MultiQuery,
    Spec,
    Stages,
    scaled,
    stem_channels,
)
from gemelo.config.parameter_names import Shapes, part, parts


def mobilenet_shapes(config: Vision3nConfig, stages: Stages = STAGES) -> Shapes:
    """The tower's parameters, without "vision_tower."."""
    stages = scaled(stages, config.channel_multiplier)
    stem = stem_channels(config.channel_multiplier)
    outputs = [stem, *(stage[-1].channels for stage in stages)]
    return part(
        "timm_model",
        {
            "conv_stem.conv.weight": (stem, 3, 3, 3),
            "conv_stem.conv.bias": (stem,),
            "conv_stem.bn.weight": (stem,),
            **parts("blocks", map(_stage, stages, outputs)),
            **part("msfa", _fusion(outputs[-2] + outputs[-1], config.hidden_size)),
        },
    )


def _stage(specs: Sequence[Spec], in_channels: int) -> Shapes:
    """The blocks of one stage, the first taking `in_channels`; called by number."""
    inputs = [in_channels, *(spec.channels for spec in specs)]
    named: Shapes = {}
    for index, shapes in enumerate(map(_block, specs, inputs)):
        named |= part(str(index), shapes)
    return named


def _block(spec: Spec, channels: int) -> Shapes:
    """A block that takes `channels`."""
    if isinstance(spec, Edge):
        return _edge_residual(spec, channels)
    if isinstance(spec, Bottleneck):
        return _inverted_bottleneck(spec, channels)
    return _multi_query(spec)


def _edge_residual(spec: Edge, channels: int) -> Shapes:
    inner = channels * spec.expand
    return {
        "conv_exp.weight": (inner, channels, spec.kernel, spec.kernel),
        "bn1.weight": (inner,),
        "conv_pwl.weight": _pointwise(spec.channels, inner),
        "bn2.weight": (spec.channels,),
    }


def _inverted_bottleneck(spec: Bottleneck, channels: int) -> Shapes:
    inner = channels * spec.expand
    return {
        **(_conv_norm("dw_start", _depthwise(channels, spec.start)) if spec.start else {}),
        **_conv_norm("pw_exp", _pointwise(inner, channels)),
        **(_conv_norm("dw_mid", _depthwise(inner, spec.mid)) if spec.mid else {}),
        **_conv_norm("pw_proj", _pointwise(spec.channels, inner)),
        "layer_scale.gamma": (spec.channels,),
    }


def _multi_query(spec: MultiQuery) -> Shapes:
    channels, heads = spec.channels, spec.heads * spec.width
    return {
        "norm.weight": (channels,),
        "attn.query.proj.weight": _pointwise(heads, channels),
        **part("attn.key", _reduction(spec)),
        **part("attn.value", _reduction(spec)),
        "attn.output.proj.weight": _pointwise(channels, heads),
        "layer_scale.gamma": (channels,),
    }


def _reduction(spec: MultiQuery) -> Shapes:
    """Keys or values of one head; pixels are first taken together where the stride is not 1."""
    coarser = {
        "down_conv.weight": _depthwise(spec.channels, 3),
        "norm.weight": (spec.channels,),
    }
    return {
        "proj.weight": _pointwise(spec.width, spec.channels),
        **(coarser if spec.stride > 1 else {}),
    }


def _fusion(in_channels: int, width: int) -> Shapes:
    """The last two stages as one map (MSFA)."""
    inner = 2 * in_channels
    return {
        **_conv_norm("ffn.pw_exp", _pointwise(inner, in_channels)),
        **_conv_norm("ffn.pw_proj", _pointwise(width, inner)),
        "norm.weight": (width,),
    }


def _conv_norm(name: str, conv: tuple[int, ...]) -> Shapes:
    return {f"{name}.conv.weight": conv, f"{name}.bn.weight": conv[:1]}


def _pointwise(out_channels: int, in_channels: int) -> tuple[int, ...]:
    return out_channels, in_channels, 1, 1


def _depthwise(channels: int, kernel: int) -> tuple[int, ...]:
    return channels, 1, kernel, kernel
