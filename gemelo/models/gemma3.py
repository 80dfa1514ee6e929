"""The Gemma 3 text decoder: 270M, 1B, 4B, 12B, 27B.

Five layers of six see a sliding window, the sixth sees everything; each kind has its own rotary
base. Queries and keys are normalised instead of soft-capped, and every block is normalised before
and after (Gemma 3 report, arXiv 2503.19786). Parameter names are Hugging Face's.

The forward takes positions, not a cursor: with a cache it runs any chunk of a sequence, without one
it runs the whole, and rows of different lengths are padded with position -1. After the last keys
are written, only the tokens that somebody asked for go on.

    hidden = Gemma3(config)(ids, positions)      # (B, T) -> (B, T, D)
    scores = model.logits(hidden[:, -1])         # (B, D) -> (B, V)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gemelo.config import Gemma3Config
from gemelo.models.layers import (
    MLP,
    Attention,
    AttentionContext,
    Cache,
    Embedding,
    Linear,
    NativeForward,
    RMSNorm,
    StepInputs,
    last,
    rounded,
    softcap,
)

NORM_OFFSET = 1.0  # weights are stored around zero and mean 1 + w


class Block(nn.Module):
    """One decoder layer: attention and feed-forward, each normalised on both sides."""

    def __init__(self, config: Gemma3Config, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer, NORM_OFFSET, v_norm=nn.Identity())
        self.mlp = MLP(config, layer)
        self.input_layernorm = RMSNorm(width, eps, NORM_OFFSET)
        self.post_attention_layernorm = RMSNorm(width, eps, NORM_OFFSET)
        self.pre_feedforward_layernorm = RMSNorm(width, eps, NORM_OFFSET)
        self.post_feedforward_layernorm = RMSNorm(width, eps, NORM_OFFSET)

    def forward(
        self, x: Tensor, ctx: AttentionContext, logits_to_keep: int | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D), or its last `logits_to_keep` tokens alone."""
        h = self.input_layernorm(x)
        kv = self.self_attn.keys(h, ctx)
        if logits_to_keep is not None:
            x, h, ctx = last(x, logits_to_keep), last(h, logits_to_keep), ctx.last(logits_to_keep)
        x = x + self.post_attention_layernorm(self.self_attn(h, ctx, kv))
        m = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(m)  # type: ignore[no-any-return]


class Gemma3(nn.Module):
    """Token ids in, hidden states out; `logits` is the tied head."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        self.config = config
        self.native_program: NativeForward | None = None
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, NORM_OFFSET)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        logits_to_keep: int | None = None,
        inputs: StepInputs | None = None,
    ) -> Tensor:
        """ids, positions (B, T) -> normalised hidden states (B, T, D).

        `logits_to_keep` gives those of the last tokens alone; 0 writes the cache and computes
        nothing else. Position -1 is padding. A picture's tokens, whose embeddings
        `inputs` holds, have to be in one step.
        """
        x, attend_until = (self.embed(ids), None) if inputs is None else inputs
        ctx = AttentionContext.of(self.config, positions, cache, x.dtype, attend_until)
        for layer in self.layers[:-1]:
            x = layer(x, ctx)
        return self.norm(self.layers[-1](x, ctx, logits_to_keep))  # type: ignore[no-any-return]

    def prefetch(self, ids: Sequence[int]) -> None:
        """Nothing: all that a step looks up for ids is in memory anyway, as the head."""

    def embed(self, ids: Tensor) -> Tensor:
        """Rows times sqrt(D), the root rounded to the activation dtype as in training."""
        x: Tensor = self.embed_tokens(ids)
        return x * rounded(self.config.hidden_size**0.5, x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> next-token scores (..., V) in float32."""
        tied = self.config.tie_word_embeddings
        scores: Tensor = self.embed_tokens.project(hidden) if tied else self.lm_head(hidden)
        return softcap(scores.float(), self.config.final_logit_softcapping)
