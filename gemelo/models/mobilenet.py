"""MobileNet-V5-300M, the vision tower of Gemma 3n: pixels to 256 image features.

Four stages of MobileNet-V4's blocks halve a picture's sides and widen its channels; the last two
stages are then fused into one map of 16 x 16 pixels, whatever size the picture had. The stages are
a table of data (`config.mobilenet`). Names are those of the checkpoint.

    features = MobileNetTower(Vision3nConfig())(pixels)  # (N, 3, 768, 768) in [0, 1] -> (N, 256, E)

N pictures, H rows and W columns of pixels, C channels, E the width of the tower's output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.mobilenet import STAGES, Spec, Stages, scaled, stem_channels
from gemelo.errors import InputError
from gemelo.models.layers import Module
from gemelo.models.mobilenet_blocks import (
    ChannelNorm,
    ConvNorm,
    Convolution,
    Pointwise,
    block_of,
)


class MobileNetTower(Module):
    """The tower as Gemma 3n uses it: pixels in, image features for the embedder out."""

    def __init__(self, config: Vision3nConfig, stages: Stages = STAGES) -> None:
        super().__init__()
        wide = config.channel_multiplier
        self.timm_model = MobileNet(
            scaled(stages, wide),
            stem_channels(wide),
            config.hidden_size,
            config.msfa_output_resolution,
        )
        self.scale = config.hidden_size**0.5

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, side, side) in [0, 1] -> (N, 256, E), row by row, scaled by sqrt(E)."""
        return self.timm_model(pixels).flatten(1, 2).mul_(self.scale)


class MobileNet(Module):
    """The encoder alone."""

    def __init__(self, stages: Stages, stem: int, width: int, side: int) -> None:
        """`width` channels and `side` x `side` pixels come out."""
        super().__init__()
        self.conv_stem = ConvNorm(Convolution(3, stem, kernel=3, stride=2, bias=True))
        outputs = [stem, *(stage[-1].channels for stage in stages)]
        self.blocks = nn.ModuleList(
            stage_of(stage, before) for stage, before in zip(stages, outputs, strict=False)
        )
        self.msfa = MultiScaleFusion(outputs[-2] + outputs[-1], width, side)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, side, side, E). Raises `InputError` for anything else."""
        if pixels.dim() != 4 or pixels.shape[1] != 3 or not pixels.numel():
            raise InputError(
                f"pixels have the shape {tuple(pixels.shape)}; (pictures, 3, height, width) is "
                "what the vision tower takes"
            )
        x = self.conv_stem.gelu(pixels.permute(0, 2, 3, 1).contiguous())
        before = x
        for stage in self.blocks:
            before, x = x, stage(x)
        return self.msfa(before, x)


class MultiScaleFusion(Module):
    """The last two stages as one map of a fixed size (MSFA)."""

    def __init__(self, in_channels: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.ffn = FusionFeedForward(in_channels, width)
        self.norm = ChannelNorm(width)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(N, H, W, C), (N, H / 2, W / 2, C') -> (N, side, side, E)."""
        nearest = F.interpolate(coarse.permute(0, 3, 1, 2), size=fine.shape[1:3])
        x = torch.cat([fine, nearest.permute(0, 2, 3, 1)], dim=-1)  # (N, H, W, C + C')
        return self.norm(resized(self.ffn(x), self.side))


class FusionFeedForward(Module):
    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.pw_exp = ConvNorm(Pointwise(in_channels, 2 * in_channels))
        self.pw_proj = ConvNorm(Pointwise(2 * in_channels, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.pw_proj(self.pw_exp.gelu(x))


def resized(x: Tensor, side: int) -> Tensor:
    """x (N, H, W, C) as (N, side, side, C): means where they divide evenly, else bilinear."""
    x = x.permute(0, 3, 1, 2)
    rows, columns = x.shape[2:]
    if rows % side or columns % side:
        x = F.interpolate(x, size=(side, side), mode="bilinear")
    elif (rows, columns) != (side, side):
        x = F.avg_pool2d(x, (rows // side, columns // side))
    return x.permute(0, 2, 3, 1)


def stage_of(specs: Sequence[Spec], in_channels: int) -> nn.Sequential:
    """The blocks of one stage, the first taking `in_channels`."""
    inputs = [in_channels, *(spec.channels for spec in specs)]
    return nn.Sequential(*map(block_of, specs, inputs))
