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

from torch import Tensor, nn

from gemelo.config import Gemma3Config, Submodel
from gemelo.errors import InputError
from gemelo.models.decoder import Decoder
from gemelo.models.layers import (
    MLP,
    Attention,
    AttentionContext,
    Cache,
    Embedding,
    Linear,
    Module,
    RMSNorm,
    StepInputs,
    last,
)


class Block(Module):
    """One decoder layer: attention and feed-forward, each normalised on both sides."""

    def __init__(self, config: Gemma3Config, layer: int) -> None:
        super().__init__()
        width, eps, offset = config.hidden_size, config.rms_norm_eps, config.norm_offset
        self.self_attn = Attention(config, layer, v_norm=nn.Identity())
        self.mlp = MLP(config, layer)
        self.input_layernorm = RMSNorm(width, eps, offset)
        self.post_attention_layernorm = RMSNorm(width, eps, offset)
        self.pre_feedforward_layernorm = RMSNorm(width, eps, offset)
        self.post_feedforward_layernorm = RMSNorm(width, eps, offset)

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
        return x + self.post_feedforward_layernorm(m)


class Gemma3(Decoder):
    """Token ids in, hidden states out; `logits` is the tied head."""

    config: Gemma3Config

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)
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
        """ids, positions (B, T) -> normalised hidden states (B, T, D): see `Decoder.forward`."""
        x, attend_until = (self.embed(ids), None) if inputs is None else inputs
        ctx = AttentionContext.of(self.config, positions, cache, x.dtype, attend_until)
        for layer in self.layers[:-1]:
            x = layer(x, ctx)
        return self.norm(self.layers[-1](x, ctx, logits_to_keep))

    def view(self, submodel: Submodel) -> Decoder:
        """Nothing is nested in a Gemma 3."""
        raise InputError(f"{self.config.model_type} has no sub-models; Gemma 3n has")
