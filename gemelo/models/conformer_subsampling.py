"""Convolutional sub-sampling of the audio encoder: one encoder frame of four spectrogram frames.

Time is padded on the far side only, so an output row waits for the two input rows after its first
and for nothing more. Between them stands a group norm whose statistics run from the start of the
sound up to the row itself: the one part of the encoder with an unbounded memory, kept in two sums.
Every step is written for a stream: rows and a state in, rows and the next state out; a whole clip
is a stream with a fresh state. States are values: an old one can be gone on from again.

    x, state = subsampling(mel, subsampling.init_state(rows=1));  tail = subsampling.finish(state)

B rows, T time steps, C channels, F frequency bands, D encoder width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.models.layers import Linear


class Statistics(NamedTuple):
    """What a cumulative norm has seen: sums in float64, which stay exact through a long day."""

    num_steps: int
    total: Tensor  # (B,)
    deviation: Tensor  # (B,), squared, each step from the mean up to itself


class ConvState(NamedTuple):
    """Rows that the next output still needs, and the norm's statistics."""

    held: Tensor  # (B, C, below the kernel, F)
    statistics: Statistics


class SubsamplingState(NamedTuple):
    """The state of both convolutions between two pieces of a sound."""

    conv_0: ConvState
    conv_1: ConvState


class CumulativeNorm(nn.Module):
    """(x_t - m_t) / sqrt(v_t + eps) * w, over all channels and bands of the steps up to t.

    v_t averages squared distances from the mean as it stood at each step, not from m_t.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor, state: Statistics) -> tuple[Tensor, Statistics]:
        """x (B, C, T, F) -> the same shape in float32, and the statistics after the last step."""
        steps = x.shape[2]
        count = torch.arange(1, steps + 1, dtype=torch.float64, device=x.device)
        count = (count + state.num_steps) * (x.shape[1] * x.shape[3])
        x = x.float()
        total = running(x, state.total)  # (B, T)
        centred = x - (total / count).float()[:, None, :, None]
        deviation = running(centred.square(), state.deviation)
        scale = (deviation / count + self.eps).rsqrt().float()
        y = centred.mul_(scale[:, None, :, None]).mul_(self.weight.float()[:, None, None])
        last = (sums[:, -1].clone() for sums in (total, deviation))
        return y, Statistics(state.num_steps + steps, *last)


def running(x: Tensor, before: Tensor) -> Tensor:
    """Sums of x (B, C, T, F) over all steps up to each, on top of `before` (B,): (B, T) float64."""
    return x.sum((1, 3)).double().cumsum(1) + before[:, None]


class ConvBlock(nn.Module):
    """One convolution, its norm, and ReLU."""

    def __init__(self, config: AudioConfig, index: int) -> None:
        super().__init__()
        channels = (1, *config.sscp_conv_channel_size)
        self.kernel = config.sscp_conv_kernel_size[index]
        self.stride = config.sscp_conv_stride_size[index]
        self.conv = nn.Conv2d(
            channels[index],
            channels[index + 1],
            self.kernel,
            self.stride,
            padding=(0, 1),
            bias=False,
        )
        self.norm = CumulativeNorm(channels[index + 1], config.sscp_conv_group_norm_eps)

    def forward(self, x: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        """x (B, C, T, F) -> every row (B, C', T', F') that x completes, T' perhaps 0."""
        rows = torch.cat([state.held, x], dim=2)
        done = self.num_done(rows.shape[2])
        if not done:
            bands = (x.shape[3] + 2 - self.kernel[1]) // self.stride[1] + 1
            empty = x.new_zeros(x.shape[0], self.conv.out_channels, 0, bands)
            return empty, ConvState(rows, state.statistics)
        y, statistics = self.norm(self.conv(rows), state.statistics)
        held = rows[:, :, done * self.stride[0] :].clone()  # a view would keep all rows alive
        return y.relu_().to(x.dtype), ConvState(held, statistics)

    def num_done(self, num_rows: int) -> int:
        """Rows that the first so many complete."""
        return max(0, (num_rows - self.kernel[0]) // self.stride[0] + 1)

    def silence(self, like: Tensor) -> Tensor:
        """The zero rows that follow the last row of a sound, shaped like `like` (B, C, T, F)."""
        shape = (*like.shape[:2], self.kernel[0] - 1, like.shape[3])
        return like.new_zeros(shape)


class Subsampling(nn.Module):
    """Spectrogram frames to encoder frames, four to one."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.num_mels = config.input_feat_size
        self.num_bands = config.num_bands
        self.conv_0 = ConvBlock(config, 0)
        self.conv_1 = ConvBlock(config, 1)
        width = config.sscp_conv_channel_size[1] * self.num_bands[1]
        self.input_proj_linear = Linear(width, config.hidden_size)

    def init_state(self, rows: int) -> SubsamplingState:
        """The state before the first frame of `rows` sounds that run side by side."""
        weight = self.conv_0.conv.weight
        zero = torch.zeros(rows, dtype=torch.float64, device=weight.device)
        nothing = Statistics(0, zero, zero)
        return SubsamplingState(
            ConvState(weight.new_zeros(rows, 1, 0, self.num_mels), nothing),
            ConvState(
                weight.new_zeros(rows, self.conv_0.conv.out_channels, 0, self.num_bands[0]),
                nothing,
            ),
        )

    def num_done(self, num_frames: int) -> int:
        """Encoder frames that the first so many spectrogram frames complete."""
        return self.conv_1.num_done(self.conv_0.num_done(num_frames))

    def forward(self, mel: Tensor, state: SubsamplingState) -> tuple[Tensor, SubsamplingState]:
        """mel (B, T, input_feat_size) -> every encoder frame (B, n, D) that it completes."""
        x, conv_0 = self.conv_0(mel[:, None].to(state.conv_0.held), state.conv_0)
        x, conv_1 = self.conv_1(x, state.conv_1)
        return self.project(x), SubsamplingState(conv_0, conv_1)

    def finish(self, state: SubsamplingState) -> Tensor:
        """The encoder frames (B, n, D) that only the end of the sound completes."""
        x, _ = self.conv_0(self.conv_0.silence(state.conv_0.held), state.conv_0)
        x, _ = self.conv_1(torch.cat([x, self.conv_1.silence(x)], dim=2), state.conv_1)
        return self.project(x)

    def project(self, x: Tensor) -> Tensor:
        """(B, C, n, F) -> (B, n, D): all channels of a band lie together."""
        return self.input_proj_linear(x.permute(0, 2, 3, 1).flatten(2))
