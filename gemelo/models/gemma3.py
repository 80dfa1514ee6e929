"""The Gemma 3 text decoder: 270M, 1B, 4B, 12B, 27B.

Five layers of six see a sliding window, the sixth sees everything; each kind has its own rotary
base. Queries and keys are normalised instead of soft-capped, and every block is normalised before
and after (Gemma 3 report, arXiv 2503.19786). Parameter names are Hugging Face's.

The forward takes positions, not a cursor: with a cache it runs any chunk of a sequence, without one
it runs the whole, and rows of different lengths are padded with position -1.

    hidden = Gemma3(config)(ids, positions)      # (B, T) -> (B, T, D)
    scores = model.logits(hidden[:, -1])         # (B, D) -> (B, V)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemelo.config import FULL, LAYER_TYPES, SLIDING, LayerType, ModelConfig
from gemelo.models.layers import MLP, Attention, Cache, Embedding, Linear, RMSNorm, Rope, rotary
from gemelo.models.masks import visible


class Block(nn.Module):
    """One decoder layer: attention and feed-forward, each normalised on both sides."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor, cache: Cache | None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        a = self.self_attn(self.input_layernorm(x), rope, mask, cache)
        x = x + self.post_attention_layernorm(a)
        m = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(m)  # type: ignore[no-any-return]


class Gemma3(nn.Module):
    """Token ids in, hidden states out; `logits` is the tied head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, ids: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """ids, positions (B, T) -> normalised hidden states (B, T, D). Position -1 is padding."""
        x = self.embed(ids)
        keys = dict.fromkeys(LAYER_TYPES, positions) if cache is None else cache.place(positions)
        ropes = {kind: self.rope(kind, positions) for kind in LAYER_TYPES}
        masks = {k: visible(positions, keys[k], self.config.window(k)) for k in LAYER_TYPES}
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            x = layer(x, ropes[kind], masks[kind], cache)
        return self.norm(x)  # type: ignore[no-any-return]

    def embed(self, ids: Tensor) -> Tensor:
        """Rows times sqrt(D), the root rounded to the activation dtype as in training."""
        x: Tensor = self.embed_tokens(ids)
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)

    def rope(self, kind: LayerType, positions: Tensor) -> Rope:
        """Sliding layers turn fast and unscaled; full layers turn slowly, scaled from 4B up."""
        theta, factor = {
            SLIDING: (self.config.rope_local_base_freq, 1.0),
            FULL: (self.config.rope_theta, self.config.rope_scaling_factor),
        }[kind]
        return rotary(positions, theta, factor, self.config.head_dim, self.embed_tokens.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> next-token scores (..., V) in float32."""
        tied = self.config.tie_word_embeddings
        scores: Tensor = self.embed_tokens.project(hidden) if tied else self.lm_head(hidden)
        cap = self.config.final_logit_softcapping
        scores = scores.float()
        return scores if cap is None else cap * torch.tanh(scores / cap)
