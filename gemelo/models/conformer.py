"""Universal Speech Model audio encoder (Conformer) of Gemma 3n: log-mel frames to audio features.

The encoder of arXiv 2303.01037: sub-sampling, then conformer blocks
(arXiv 2005.08100) of feed-forward, attention over the frame itself and the twelve before it,
a causal convolution over five frames, and feed-forward again; at the end every fourth frame is
kept. Nothing looks ahead except the sub-sampling, by 50 ms. So the encoder is written once, for a
stream: a whole clip is a stream with a fresh state, any cutting into pieces gives the same tokens,
and the state is as small after an hour as after six seconds. The reference knows only whole clips
of at most 30 s, in batches padded to the longest, whose padding leaks into the last token or two;
here a clip is always as if it were alone.

    tokens, state = conformer(mel, conformer.init_state())
    tail = conformer.finish(last_mel, state)

B rows, T spectrogram frames, n encoder frames, H heads, d head width, D width, P past frames
attended to, U blocks of W queries.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.models.conformer_subsampling import Subsampling, SubsamplingState
from gemelo.models.layers import Linear, Module, RMSNorm, softcap

NORM_OFFSET = 0.0  # weights multiply as they are
NORM_EPS = 1e-6  # of all norms but the convolution's, whatever rms_norm_eps says
LONGEST_WAVE = 10_000.0  # of the sinusoids that tell distances
PIECE_FRAMES = 3200  # spectrogram frames that go through at once: bounds memory, changes nothing


class Past(NamedTuple):
    """What attention keeps: keys and values of the last P frames, and its distances in words."""

    k: Tensor  # (B, P, H, d)
    v: Tensor  # (B, P, H, d)
    distances: Tensor  # (H, d, P + 1), from P frames ago to now; the same all along


class BlockState(NamedTuple):
    """What a block keeps between two pieces of a sound."""

    past: Past
    gated: Tensor  # (B, kernel - 1, D), the last inputs of the convolution


class ConformerState(NamedTuple):
    """Everything the encoder remembers of a sound. A value: going on from it leaves it as it is."""

    subsampling: SubsamplingState
    blocks: tuple[BlockState, ...]
    num_frames: int  # encoder frames so far

    @property
    def nbytes(self) -> int:
        """What it takes in memory, however long the sound has been."""
        convs = [(conv.held, *conv.statistics[1:]) for conv in self.subsampling]
        blocks = [(*block.past, block.gated) for block in self.blocks]
        return sum(tensor.nbytes for part in (*convs, *blocks) for tensor in part)


class FeedForward(Module):
    """Half a feed-forward step: a conformer block has one before and one after."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.clip = config.gradient_clipping
        self.weight = config.conf_residual_weight
        self.pre_layer_norm = RMSNorm(width, NORM_EPS, NORM_OFFSET)
        self.ffw_layer_1 = Linear(width, 4 * width)
        self.ffw_layer_2 = Linear(4 * width, width)
        self.post_layer_norm = RMSNorm(width, NORM_EPS, NORM_OFFSET)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)."""
        h = F.silu(self.ffw_layer_1(self.pre_layer_norm(clipped(x, self.clip))), inplace=True)
        y = clipped(self.ffw_layer_2(h), self.clip)
        return x + self.weight * self.post_layer_norm(y)


class RelativePosition(Module):
    """What a distance of 0 to P frames means to a query: a learnt map of sinusoids."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.num_past = config.num_past
        self.num_heads = config.conf_num_attention_heads
        self.width = config.hidden_size
        self.pos_proj = Linear(self.width, self.width)

    def forward(self, like: Tensor) -> Tensor:
        """(H, d, P + 1), the farthest first, in the dtype and on the device of `like`."""
        steps = torch.arange(self.width // 2, dtype=torch.float32, device=like.device)
        rate = torch.exp(steps * (-math.log(LONGEST_WAVE) / max(self.width // 2 - 1, 1)))
        past = torch.arange(self.num_past, -1, -1, dtype=torch.float32, device=like.device)
        angles = past[:, None] * rate  # (P + 1, D / 2)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)
        heads = torch.unflatten(self.pos_proj(waves), 1, (self.num_heads, -1))  # (P + 1, H, d)
        return heads.permute(1, 2, 0)


class LocalAttention(nn.Module):
    """Every frame attends to itself and the P before it, by content and by distance."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim = config.conf_num_attention_heads, config.head_dim
        self.num_past = config.num_past
        self.cap = config.conf_attention_logit_cap
        self.relative_position_embedding = RelativePosition(config)
        self.per_dim_scale = nn.Parameter(torch.empty(self.head_dim), requires_grad=False)
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)

    def init_state(self, rows: int, like: Tensor) -> Past:
        """The state before the first frame, in the dtype and on the device of `like`."""
        empty = like.new_zeros(rows, self.num_past, self.num_heads, self.head_dim)
        return Past(empty, empty, self.relative_position_embedding(like))

    def forward(self, x: Tensor, past: Past, mask: Tensor) -> tuple[Tensor, Past]:
        """x (B, n, D) -> (B, n, D), in blocks as `local_causal_mask` cuts its mask."""
        q, k, v = (
            torch.unflatten(project(x), -1, (-1, self.head_dim))  # (B, n, H, d)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = torch.cat([past.k, k], dim=1), torch.cat([past.v, v], dim=1)  # (B, P + n, H, d)
        y = self.attend(q * self.scale(), k, v, past.distances, mask)
        new = slice(k.shape[1] - self.num_past, None)
        return y, Past(k[:, new].clone(), v[:, new].clone(), past.distances)

    def scale(self) -> Tensor:
        """A factor for every channel of a head, 1 / sqrt(d) where `per_dim_scale` is 0: (d,)."""
        return F.softplus(self.per_dim_scale) / (math.sqrt(self.head_dim) * math.log(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
        """q (B, n, H, d), k and v (B, P + n, H, d), mask (U, W, W + P) -> (B, n, D)."""
        length = q.shape[1]
        blocks, block, context = mask.shape
        spare = blocks * block - length
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, spare)) if spare else x for x in (q, k, v))
        q = q.transpose(1, 2).contiguous()  # (B, H, U * W, d)
        k, v = (  # (B, H, U, W + P, d), laid out anew: the products want each block in one place
            x.transpose(1, 2).unfold(2, context, block).transpose(3, 4).contiguous() for x in (k, v)
        )
        by_distance = torch.unflatten(q @ distances, 2, (blocks, block))
        by_content = q.view(*k.shape[:3], block, -1) @ k.transpose(3, 4)  # (B, H, U, W, W + P)
        scores = softcap((by_content + relative_shift(by_distance)).float(), self.cap)
        shares = scores.masked_fill_(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        y = (shares.to(v.dtype) @ v).flatten(2, 3)  # (B, H, U * W, d)
        return y[:, :, :length].transpose(1, 2).flatten(2)


def relative_shift(scores: Tensor) -> Tensor:
    """Scores by distance (..., W, P + 1) -> by key (..., W, W + P); query w's first key is w."""
    block, span = scores.shape[-2:]
    width = block + span - 1
    flat = F.pad(scores, (0, block)).flatten(-2)  # rows of width + 1, read as rows of width
    return flat[..., : block * width].view(*scores.shape[:-1], width)


def local_causal_mask(
    length: int, chunk: int, reach: int, before: int, device: torch.device
) -> Tensor:
    """Which keys a query may see, (U, W, W + P): P back to itself, none before the start.

    `length` queries stand in blocks of `chunk`, or in one; `before` frames came before them.
    """
    block = min(chunk, length)
    keys = torch.arange(block + reach, device=device)
    gap = keys - torch.arange(block, device=device)[:, None]  # (W, W + P)
    starts = torch.arange(before - reach, before - reach + length, block, device=device)
    exists = starts[:, None] + keys >= 0  # (U, W + P)
    return ((gap >= 0) & (gap <= reach)) & exists[:, None, :]


class AttentionStep(nn.Module):
    """Attention with its norms; the residual is added unclipped."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.clip = config.gradient_clipping
        self.pre_attn_norm = RMSNorm(width, NORM_EPS, NORM_OFFSET)
        self.attn = LocalAttention(config)
        self.post = Linear(width, width)
        self.post_norm = RMSNorm(width, NORM_EPS, NORM_OFFSET)

    def forward(self, x: Tensor, past: Past, mask: Tensor) -> tuple[Tensor, Past]:
        """(B, n, D) -> (B, n, D)."""
        y, past = self.attn(self.pre_attn_norm(clipped(x, self.clip)), past, mask)
        return x + self.post_norm(clipped(self.post(y), self.clip)), past


class LightConv(nn.Module):
    """Gate, filter every channel over the last few frames, and map back."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.conf_conv_kernel_size
        self.clip = config.gradient_clipping
        self.pre_layer_norm = RMSNorm(width, config.rms_norm_eps, NORM_OFFSET)
        self.linear_start = Linear(width, 2 * width)
        self.depthwise_conv1d = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self.conv_norm = RMSNorm(width, config.rms_norm_eps, NORM_OFFSET)
        self.linear_end = Linear(width, width)

    def forward(self, x: Tensor, gated: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, n, D) after the convolution's last inputs (B, kernel - 1, D) -> (B, n, D)."""
        z = F.glu(self.linear_start(self.pre_layer_norm(x)))
        z = torch.cat([gated, z], dim=1)
        y = self.conv_norm(clipped(self.filtered(z), self.clip))
        kept = z[:, z.shape[1] - gated.shape[1] :].clone()
        return x + self.linear_end(F.silu(y)), kept

    def filtered(self, z: Tensor) -> Tensor:
        """z (B, kernel - 1 + n, D) -> (B, n, D).

        As an image one row high whose channels lie last, which is how z is stored already, this
        runs ten times as fast as the same convolution over one dimension.
        """
        image = z.transpose(1, 2)[:, :, None]  # (B, D, 1, kernel - 1 + n)
        kernel = self.depthwise_conv1d.weight[:, :, None]
        return F.conv2d(image, kernel, groups=z.shape[2])[:, :, 0].transpose(1, 2)


class Block(nn.Module):
    """One conformer block."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.clip = config.gradient_clipping
        self.ffw_layer_start = FeedForward(config)
        self.attention = AttentionStep(config)
        self.lconv1d = LightConv(config)
        self.ffw_layer_end = FeedForward(config)
        self.norm = RMSNorm(config.hidden_size, NORM_EPS, NORM_OFFSET)

    def init_state(self, rows: int, like: Tensor) -> BlockState:
        """The state before the first frame, in the dtype and on the device of `like`."""
        conv = self.lconv1d.depthwise_conv1d
        gated = like.new_zeros(rows, conv.kernel_size[0] - 1, conv.out_channels)
        return BlockState(self.attention.attn.init_state(rows, like), gated)

    def forward(self, x: Tensor, state: BlockState, mask: Tensor) -> tuple[Tensor, BlockState]:
        """x (B, n, D) -> (B, n, D)."""
        x = self.ffw_layer_start(x)
        x, past = self.attention(x, state.past, mask)
        x, gated = self.lconv1d(x, state.gated)
        x = self.ffw_layer_end(x)
        return self.norm(clipped(x, self.clip)), BlockState(past, gated)


def clipped(x: Tensor, limit: float) -> Tensor:
    """x within +-limit, or within what its dtype holds."""
    limit = min(limit, torch.finfo(x.dtype).max)
    return x.clamp(-limit, limit)


class Conformer(nn.Module):
    """Log-mel frames to audio features, before `MultimodalEmbedder` brings them to the decoder."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.reduction = config.conf_reduction_factor
        self.chunk, self.num_past = config.conf_attention_chunk_size, config.num_past
        self.subsample_conv_projection = Subsampling(config)
        self.conformer = nn.ModuleList(Block(config) for _ in range(config.conf_num_hidden_layers))

    def init_state(self, rows: int = 1) -> ConformerState:
        """The state before the first frame of `rows` sounds that run side by side."""
        like = self.subsample_conv_projection.conv_0.conv.weight  # never quantised
        blocks = (block for block in self.conformer if isinstance(block, Block))
        states = tuple(block.init_state(rows, like) for block in blocks)
        return ConformerState(self.subsample_conv_projection.init_state(rows), states, 0)

    def forward(self, mel: Tensor, state: ConformerState) -> tuple[Tensor, ConformerState]:
        """mel (B, T, input_feat_size) -> every token (B, J, D) that it settles, J perhaps 0.

        Token j of a sound is settled by its spectrogram frame 16 j + 6.
        """
        tokens = []
        for piece in torch.split(mel, PIECE_FRAMES, dim=1):
            x, subsampling = self.subsample_conv_projection(piece, state.subsampling)
            x, state = self.encode_frames(x, state._replace(subsampling=subsampling))
            tokens.append(x)
        return torch.cat(tokens, dim=1), state

    def num_settled(self, num_frames: int) -> int:
        """Tokens that `forward` makes of a sound's first so many spectrogram frames."""
        return -(-self.subsample_conv_projection.num_done(num_frames) // self.reduction)

    def finish(self, mel: Tensor, state: ConformerState) -> Tensor:
        """The last frames (B, T, input_feat_size), T perhaps 0 -> all tokens still to come.

        They and what the end of the sound settles go through the blocks together, up to the last
        token: after the last sample, the weights are read once or not at all.
        """
        early = max(0, mel.shape[1] - PIECE_FRAMES)
        tokens, state = self(mel[:, :early], state)
        x, subsampling = self.subsample_conv_projection(mel[:, early:], state.subsampling)
        x = torch.cat([x, self.subsample_conv_projection.finish(subsampling)], dim=1)
        beyond = (state.num_frames + x.shape[1] - 1) % self.reduction  # past the last kept
        x = x[:, : max(0, x.shape[1] - beyond)]
        return torch.cat([tokens, self.encode_frames(x, state)[0]], dim=1)

    def encode(self, mel: Tensor) -> Tensor:
        """Whole clips of one length, mel (B, T, input_feat_size) -> (B, ceil(T / 16), D)."""
        return self.finish(mel, self.init_state(mel.shape[0]))

    def encode_frames(self, x: Tensor, state: ConformerState) -> tuple[Tensor, ConformerState]:
        """Encoder frames (B, n, D) through all blocks; every fourth of the sound comes out."""
        if not x.shape[1]:
            return x, state
        mask = local_causal_mask(x.shape[1], self.chunk, self.num_past, state.num_frames, x.device)
        blocks = []
        for block, kept in zip(self.conformer, state.blocks, strict=True):
            x, kept = block(x, kept, mask)
            blocks.append(kept)
        tokens = x[:, -state.num_frames % self.reduction :: self.reduction]
        num_frames = state.num_frames + x.shape[1]
        return tokens, ConformerState(state.subsampling, tuple(blocks), num_frames)
