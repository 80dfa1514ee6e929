"""SigLIP So400m/14, the vision tower of Gemma 3, and the projector into the decoder's width.

A plain pre-norm transformer over a grid of patches (arXiv 2303.15343), without a class token and
without the pooling head. The projector averages 4 x 4 patches, so that any image is 256
features. Every linear map here has a bias, unlike the decoder's.

    features = Projector(config)(Siglip(config.vision)(pixels))    # (N, 3, 896, 896) -> (N, 256, D)

N images, P patches, E vision width, D decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemelo.config import Gemma3Config, VisionConfig
from gemelo.models.layers import Module, RMSNorm


class Affine(Module):
    """y = x W^T + b. A weight stored in another dtype is widened as it is used, and stays mapped:
    4096 patches go through it at once, beside which that is nothing."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out) in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Embeddings(Module):
    """Patches as tokens, each with a learned position."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, patch, stride=patch)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, side, side) in [-1, 1] -> (N, P, E), row by row."""
        patches: Tensor = self.patch_embedding(pixels)  # (N, E, side / patch, side / patch)
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight


class SelfAttention(Module):
    """Every patch sees every patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = Affine(width, width)
        self.k_proj = Affine(width, width)
        self.v_proj = Affine(width, width)
        self.out_proj = Affine(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, E) -> (N, P, E)."""
        q, k, v = (self.heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v)  # (N, H, P, E / H)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class FeedForward(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Affine(config.hidden_size, config.intermediate_size)
        self.fc2 = Affine(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class EncoderLayer(Module):
    """Attention and feed-forward, each normalised before."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Siglip(Module):
    """Pixels to patch features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, side, side) in [-1, 1] -> (N, P, E)."""
        features: Tensor = self.post_layernorm(self.encoder(self.embeddings(pixels)))
        return features


class Projector(Module):
    """Average-pool the grid, normalise, and map into the decoder's width."""

    def __init__(self, config: Gemma3Config, vision: VisionConfig) -> None:
        super().__init__()
        self.side = vision.image_size // vision.patch_size
        self.pool = self.side // int(config.mm_tokens_per_image**0.5)
        self.mm_input_projection_weight = nn.Parameter(
            torch.empty(vision.hidden_size, config.hidden_size), requires_grad=False
        )
        self.mm_soft_emb_norm = RMSNorm(vision.hidden_size, vision.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, E) -> (N, mm_tokens_per_image, D)."""
        grid = torch.unflatten(x.transpose(1, 2), 2, (self.side, self.side))
        pooled = F.avg_pool2d(grid, self.pool).flatten(2).transpose(1, 2)
        return self.mm_soft_emb_norm(pooled) @ self.mm_input_projection_weight
