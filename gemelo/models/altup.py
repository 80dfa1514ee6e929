"""AltUp, LAuReL and the sparse MatFormer feed-forward: what Gemma 3n adds to a decoder layer.

AltUp (arXiv 2301.13310) keeps the residual as several streams but runs the block on one: before it,
every stream is predicted as a mixture of all; after it, every stream is corrected by what the block
changed. LAuReL (arXiv 2411.07501) is a low-rank residual beside the attention. The first ten
feed-forwards keep only the neurons whose gate lies far above the mean (Spark Transformer, arXiv
2506.06644).

    predicted = altup.predict(streams)
    streams = altup.correct(predicted, block(predicted[0]))

S streams, B rows, T tokens, D width, F feed-forward width, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemelo.config import Gemma3nConfig
from gemelo.models.layers import Linear, Module, RMSNorm, rounded


class AltUp(Module):
    """Predict and correct `altup_num_inputs` streams around a block that runs on the first."""

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__()
        streams, width = config.altup_num_inputs, config.hidden_size
        self.router_scale = 1 / width
        self.prediction_coefs = Linear(streams, streams * streams)
        self.correction_coefs = Linear(streams, streams)
        self.modality_router = Linear(width, streams)
        self.router_norm = RMSNorm(width, config.rms_norm_eps, config.norm_offset)
        self.correct_output_scale = nn.Parameter(torch.empty(width), requires_grad=False)

    def predict(self, streams: Tensor) -> Tensor:
        """Every stream plus a mixture of all: (S, B, T, D) -> (S, B, T, D)."""
        count = streams.shape[0]
        mix = self.prediction_coefs(self.modalities(streams[0]))  # (B, T, S * S)
        mix = mix.view(*mix.shape[:2], count, count)  # (B, T, out, in)
        return streams + torch.einsum("btoi,ibtd->obtd", mix, streams)

    def correct(self, predicted: Tensor, activated: Tensor) -> Tensor:
        """Move every predicted stream (S, B, T, D) by its share of what the block found."""
        innovation = activated - predicted[0]
        share = self.correction_coefs(self.modalities(activated)) + 1  # (B, T, S)
        return predicted + innovation * share.permute(2, 0, 1).unsqueeze(-1)

    def modalities(self, x: Tensor) -> Tensor:
        """What kind of token this is, in [-1, 1]: (B, T, D) -> (B, T, S)."""
        routed = self.modality_router(self.router_norm(x) * self.router_scale)
        return routed.float().tanh().to(x.dtype)


class Laurel(Module):
    """x + norm(right(left(x))): a residual that may also turn, in R dimensions."""

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__()
        self.linear_left = Linear(config.hidden_size, config.laurel_rank)
        self.linear_right = Linear(config.laurel_rank, config.hidden_size)
        self.post_laurel_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))


class NestedMLP(Module):
    """The gated feed-forward whose first neurons are a smaller one, sparse in the first layers."""

    def __init__(self, config: Gemma3nConfig, layer: int) -> None:
        super().__init__()
        width, ffn = config.hidden_size, config.layer(layer).intermediate_size
        self.std_multiplier = config.layer(layer).std_multiplier
        self.gate_proj = Linear(width, ffn)
        self.up_proj = Linear(width, ffn)
        self.down_proj = Linear(ffn, width)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """x (B, T, D) -> (B, T, D), through the first `width` neurons."""
        gate = self.gate_proj(x, rows=width)  # (B, T, F)
        if self.std_multiplier is not None:
            gate = gaussian_topk(gate, self.std_multiplier)
        h = F.gelu(gate, approximate="tanh") * self.up_proj(x, rows=width)
        return self.down_proj(h, columns=width)


def gaussian_topk(gate: Tensor, std_multiplier: float) -> Tensor:
    """How far gates lie above mean + std_multiplier * std of their token, and zero below.

    The standard deviation is the population's; the multiplier is rounded to the activation dtype.
    Both
    are sums over F neurons, which a product with ones takes ten times faster than a reduction.
    """
    ones = gate.new_ones(gate.shape[-1], 1)
    mean = (gate @ ones) / gate.shape[-1]  # (B, T, 1)
    std = (((gate - mean).square() @ ones) / gate.shape[-1]).sqrt()
    return F.relu(gate - (mean + std * rounded(std_multiplier, gate)))


def rescaled(x: Tensor, like: Tensor) -> Tensor:
    """x with the root mean square of `like`, token by token: how a stream is made from another."""
    target = like.square().mean(-1, keepdim=True).sqrt()
    own = x.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()
    return x * target / own
