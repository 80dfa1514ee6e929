"""The blocks of MobileNet-V5: edge residual, inverted bottleneck, multi-query attention.

They are MobileNet-V4's (arXiv 2404.10518, sections 3 and 4) with three changes: RMS norm over the
channels in place of batch norm, GELU in its tanh form, and a learnt scale on what a block adds. A
picture lies with its channels last from end to end, so that a 1 x 1 convolution is a matrix
product, a norm reads what lies together, and the heads of multi-query attention are simply more
rows. Written for inference: what a block has made for itself it overwrites.

    y = InvertedBottleneck(Bottleneck(channels=640, start=5, expand=4), 640)(x)

N pictures, H rows and W columns of pixels, C channels, F channels inside a block, P = H W pixels,
S pixels that keys are made of, q heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemelo.config.mobilenet import Bottleneck, Edge, MultiQuery, Spec
from gemelo.models.layers import Module

EPS = 1e-6


def block_of(spec: Spec, channels: int) -> nn.Module:
    """The block that a specification means, for an input of `channels`."""
    if isinstance(spec, Edge):
        return EdgeResidual(spec, channels)
    if isinstance(spec, Bottleneck):
        return InvertedBottleneck(spec, channels)
    return MultiQueryBlock(spec)


class EdgeResidual(Module):
    """Expand by a whole convolution, come back by a 1 x 1 one (EfficientNet-EdgeTPU)."""

    def __init__(self, spec: Edge, channels: int) -> None:
        super().__init__()
        inner = channels * spec.expand
        self.skips = spec.stride == 1 and channels == spec.channels
        self.conv_exp = Convolution(channels, inner, spec.kernel, spec.stride)
        self.bn1 = ChannelNorm(inner)
        self.conv_pwl = Pointwise(inner, spec.channels)
        self.bn2 = ChannelNorm(spec.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H / stride, W / stride, channels)."""
        y = self.bn1.gelu(self.conv_exp(x))  # (N, H / stride, W / stride, F)
        y = rms_norm(self.conv_pwl(y))
        return torch.addcmul(x, y, self.bn2.weight) if self.skips else y.mul_(self.bn2.weight)


class InvertedBottleneck(Module):
    """Depthwise, expand, depthwise, project: either depthwise convolution may be absent."""

    def __init__(self, spec: Bottleneck, channels: int) -> None:
        super().__init__()
        inner = channels * spec.expand
        self.skips = spec.stride == 1 and channels == spec.channels
        self.dw_start = ConvNorm(Depthwise(channels, spec.start)) if spec.start else None
        self.pw_exp = ConvNorm(Pointwise(channels, inner))
        self.dw_mid = ConvNorm(Depthwise(inner, spec.mid, spec.stride)) if spec.mid else None
        self.pw_proj = ConvNorm(Pointwise(inner, spec.channels))
        self.layer_scale = LayerScale(spec.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H / stride, W / stride, channels)."""
        y = x if self.dw_start is None else self.dw_start(x)
        if self.dw_mid is None:
            y = self.pw_exp.gelu(y)  # (N, H, W, F)
        else:
            y = self.pw_exp.gelu(self.dw_mid.conv.padded(y))  # padded early: zeros stay zeros
            y = self.dw_mid.bn.gelu(self.dw_mid.conv.valid(y))
        y = rms_norm(self.pw_proj.conv(y))
        weight = self.pw_proj.bn.weight * self.layer_scale.gamma
        return torch.addcmul(x, y, weight) if self.skips else y.mul_(weight)


class MultiQueryBlock(Module):
    """Attention from every pixel to all, on a residual (Mobile MQA)."""

    def __init__(self, spec: MultiQuery) -> None:
        super().__init__()
        self.norm = ChannelNorm(spec.channels)
        self.attn = MultiQueryAttention(spec)
        self.layer_scale = LayerScale(spec.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        return torch.addcmul(x, self.attn(self.norm(x)), self.layer_scale.gamma)


class MultiQueryAttention(Module):
    """Many heads of queries, one of keys and values (arXiv 1911.02150), without positions."""

    def __init__(self, spec: MultiQuery) -> None:
        super().__init__()
        self.width = spec.width
        self.query = Projection(spec.channels, spec.heads * spec.width)
        self.key = Reduction(spec)
        self.value = Reduction(spec)
        self.output = Projection(spec.heads * spec.width, spec.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        q: Tensor = self.query.proj(x)  # (N, H, W, q d)
        rows = q.view(len(x), 1, -1, self.width)  # (N, 1, P q, d): one head with every head's rows
        k, v = self.key(x).unsqueeze(1), self.value(x).unsqueeze(1)  # (N, 1, S, d)
        y = F.scaled_dot_product_attention(rows, k, v)
        return self.output.proj(y.reshape(q.shape))


class Projection(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = Pointwise(in_channels, out_channels)


class Reduction(Module):
    """Pixels to keys or values, first taken together depthwise where the stride is not 1."""

    def __init__(self, spec: MultiQuery) -> None:
        super().__init__()
        self.proj = Pointwise(spec.channels, spec.width)
        self.coarser = spec.stride > 1
        if self.coarser:
            self.down_conv = Depthwise(spec.channels, 3, spec.stride)
            self.norm = ChannelNorm(spec.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, S, d), S = H W / stride^2."""
        x = self.norm(self.down_conv(x)) if self.coarser else x
        keys: Tensor = self.proj(x)
        return keys.flatten(1, 2)


class ConvNorm(Module):
    """A convolution and the norm of its output."""

    def __init__(self, conv: Convolution) -> None:
        super().__init__()
        self.conv = conv
        self.bn = ChannelNorm(conv.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(self.conv(x)).mul_(self.bn.weight)

    def gelu(self, x: Tensor) -> Tensor:
        """The same, activated."""
        return self.bn.gelu(self.conv(x))


class LayerScale(nn.Module):
    """What a block adds is scaled channel by channel (arXiv 2103.17239)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels), requires_grad=False)


class ChannelNorm(Module):
    """x / rms(x) * w over the channels of a pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * inverse_rms(x)).mul_(self.weight)

    def gelu(self, x: Tensor) -> Tensor:
        """gelu(x / rms(x) * w); x is overwritten."""
        return scaled_gelu(rms_norm(x), self.weight)


class Convolution(Module):
    """A convolution that pads as TensorFlow does: no more than it takes, the odd row at the end."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels // groups, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_channels), requires_grad=False) if bias else None
        self.stride = stride
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in) -> (N, ceil(H / stride), ceil(W / stride), out)."""
        (top, bottom), (left, right) = self.zeros(x)
        if top == bottom and left == right:
            return self.valid(x, (top, left))
        return self.valid(self.padded(x))

    def padded(self, x: Tensor) -> Tensor:
        """x between the zeros that its sides need."""
        (top, bottom), (left, right) = self.zeros(x)
        return F.pad(x, (0, 0, left, right, top, bottom))

    def valid(self, x: Tensor, zeros: tuple[int, int] = (0, 0)) -> Tensor:
        """The convolution with as many zeros as are given around the rows and the columns."""
        first = x.permute(0, 3, 1, 2)  # channels first in name: in memory they stay the last
        y = F.conv2d(first, self.weight, self.bias, self.stride, zeros, 1, self.groups)
        return y.permute(0, 2, 3, 1)

    def zeros(self, x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows above and below, columns left and right."""
        kernel = self.weight.shape[-1]
        height, width = x.shape[1:3]
        return same_padding(height, kernel, self.stride), same_padding(width, kernel, self.stride)


class Depthwise(Convolution):
    """A kernel for every channel, which sees that channel alone."""

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel, stride, groups=channels)


class Pointwise(Convolution):
    """A 1 x 1 convolution: the same matrix for every pixel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in) -> (N, H, W, out)."""
        return F.linear(x, self.weight.flatten(1))


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after `size` pixels, such that ceil(size / stride) come out."""
    outputs = -(-size // stride)
    zeros = max((outputs - 1) * stride + kernel - size, 0)
    return zeros // 2, zeros - zeros // 2


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x) over the channels; x is overwritten."""
    return x.mul_(inverse_rms(x))


def inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the channels, (..., 1), in the dtype of x.

    A vector's norm is the one sum of squares that PyTorch takes of bfloat16 without a copy.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse: Tensor = (norm.float().square() / x.shape[-1] + EPS).rsqrt()
    return inverse.to(x.dtype)


def scaled_gelu(x: Tensor, weight: Tensor) -> Tensor:
    """gelu(x * weight) in its tanh form, x (N, H, W, F), weight (F,).

    On a CPU oneDNN does both in one pass as a depthwise 1 x 1 convolution with an activation, three
    times as fast as PyTorch's own tanh GELU.
    """
    if not has_fused_gelu(x):
        return F.gelu(x * weight, approximate="tanh")
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x.permute(0, 3, 1, 2),
        weight.view(-1, 1, 1, 1),
        None,
        [0, 0],
        [1, 1],
        [1, 1],
        len(weight),
        "gelu",
        [],
        "tanh",
    )
    return y.permute(0, 2, 3, 1)


def has_fused_gelu(x: Tensor) -> bool:
    """Whether oneDNN runs convolutions with an activation for x, on this machine."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if x.device.type != "cpu" or not has_onednn:
        return False
    if x.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return x.dtype == torch.float32
