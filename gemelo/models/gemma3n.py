"""The Gemma 3n text decoder: E4B, and every model nested in it.

Four streams instead of one residual (AltUp), a low-rank detour (LAuReL), a vector a token for every
layer that is looked up rather than computed (per-layer embeddings), and fifteen upper layers that
borrow their keys and values from two lower ones. So prompt tokens whose scores nobody asks for stop
at the last layer that owns keys: half the depth.

A nested model is this one with fewer layers and narrower feed-forwards. `view` makes one that
shares every weight; each of its blocks runs the first neurons of the whole.

    hidden = Gemma3n(config)(ids, positions, cache, logits_to_keep=1)     # (B, 1, D)

S streams, B rows, T tokens, D width, L layers, P width of a per-layer embedding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemelo.config import Gemma3nConfig, Submodel
from gemelo.models.altup import AltUp, Laurel, NestedMLP, rescaled
from gemelo.models.decoder import Decoder
from gemelo.models.layers import (
    KV,
    Attention,
    AttentionContext,
    Cache,
    Embedding,
    Linear,
    Module,
    RMSNorm,
    StepInputs,
    last,
    rms_norm,
    rounded,
)


class PlainNorm(Module):
    """RMSNorm without a weight, which values get in place of nothing."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps).to(x.dtype)


class Block(nn.Module):
    """One decoder layer, on the first stream; the others are predicted, corrected and informed."""

    def __init__(self, config: Gemma3nConfig, layer: int) -> None:
        super().__init__()
        width, eps, offset = config.hidden_size, config.rms_norm_eps, config.norm_offset
        self.self_attn = Attention(config, layer, v_norm=PlainNorm(eps))
        self.mlp = NestedMLP(config, layer)
        self.altup = AltUp(config)
        self.laurel = Laurel(config)
        self.per_layer_input_gate = Linear(width, config.hidden_size_per_layer_input)
        self.per_layer_projection = Linear(config.hidden_size_per_layer_input, width)
        self.input_layernorm = RMSNorm(width, eps, offset)
        self.post_attention_layernorm = RMSNorm(width, eps, offset)
        self.pre_feedforward_layernorm = RMSNorm(width, eps, offset)
        self.post_feedforward_layernorm = RMSNorm(width, eps, offset)
        self.post_per_layer_input_norm = RMSNorm(width, eps, offset)

    def forward(
        self,
        streams: Tensor,
        per_layer_input: Tensor,
        ctx: AttentionContext,
        donor: KV | None,
        width: int,
        logits_to_keep: int | None = None,
    ) -> tuple[Tensor, KV]:
        """streams (S, B, T, D), per_layer_input (B, T, P) -> streams, and the keys attended over.

        donor holds another layer's keys; with `logits_to_keep` only the last tokens go on, once
        keys are made.
        """
        predicted = self.altup.predict(streams)
        x = self.input_layernorm(predicted[0])
        kv = self.self_attn.keys(x, ctx) if donor is None else donor
        if logits_to_keep is not None:
            predicted, x, ctx = (
                last(predicted, logits_to_keep),
                last(x, logits_to_keep),
                ctx.last(logits_to_keep),
            )
            per_layer_input = last(per_layer_input, logits_to_keep)
        attended = self.post_attention_layernorm(self.self_attn(x, ctx, kv))
        g = ((predicted[0] + attended) + self.laurel(x)) / 2**0.5
        m = self.mlp(self.pre_feedforward_layernorm(g), width)
        streams = self.altup.correct(predicted, g + self.post_feedforward_layernorm(m))
        streams[1:] += self.gated_per_layer_input(streams[0], per_layer_input)
        return streams, kv

    def gated_per_layer_input(self, x: Tensor, per_layer_input: Tensor) -> Tensor:
        """What the token's own embedding for this layer adds to the silent streams: (B, T, D)."""
        gate = self.per_layer_input_gate(x * self.altup.correct_output_scale)  # (B, T, P)
        gated = F.gelu(gate, approximate="tanh") * per_layer_input
        return self.post_per_layer_input_norm(self.per_layer_projection(gated))


class Gemma3n(Decoder):
    """Token ids in, hidden states out; `logits` is the tied head. `layer_indices` are those of its
    blocks in the whole model, which tell their columns of the per-layer embeddings."""

    config: Gemma3nConfig

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__(config)
        width, others = config.hidden_size, config.altup_num_inputs - 1
        columns = config.num_hidden_layers * config.hidden_size_per_layer_input
        self.embed_tokens = Embedding(config.vocab_size, width)
        self.embed_tokens_per_layer = Embedding(config.vocab_size_per_layer_input, columns)
        self.per_layer_model_projection = Linear(width, columns)
        self.per_layer_projection_norm = RMSNorm(
            config.hidden_size_per_layer_input, config.rms_norm_eps, config.norm_offset
        )
        self.altup_projections = nn.ModuleList(Linear(width, width) for _ in range(others))
        self.altup_unembed_projections = nn.ModuleList(Linear(width, width) for _ in range(others))
        self.layers = nn.ModuleList(Block(config, layer) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def view(self, submodel: Submodel) -> Gemma3n:
        """The nested model that a sub-model is: same storage, nothing copied."""
        layers = submodel.kept_layers(self.config)
        nested = copy.copy(self)
        # A shallow copy shares the table of children; the nested model needs one of its own.
        nested._modules = dict(self._modules)
        nested.layers = nn.ModuleList(self.layers[layer] for layer in layers)
        nested.config = submodel.config(self.config)
        nested.layer_indices = tuple(self.layer_indices[layer] for layer in layers)
        return nested

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        logits_to_keep: int | None = None,
        inputs: StepInputs | None = None,
    ) -> Tensor:
        """ids, positions (B, T) -> normalised hidden states (B, T, D): see `Decoder.forward`.

        Once the last keys are written only the last `logits_to_keep` tokens go on.
        """
        x, attend_until = (self.embed(ids), None) if inputs is None else inputs
        ctx = AttentionContext.of(self.config, positions, cache, x.dtype, attend_until)
        per_layer_inputs = self.project_per_layer_inputs(ids, x)  # (B, T, L, P)
        streams = self.expand(x)
        owned: dict[int, KV] = {}
        last_owner = len(self.config.kv_layers) - 1
        for index, (block, facts) in enumerate(
            zip(self.layers, self.config.layer_configs, strict=True)
        ):
            donor = None if facts.kv_donor is None else owned[facts.kv_donor]
            cut = logits_to_keep if index == last_owner else None
            streams, owned[index] = block(
                streams, per_layer_inputs[:, :, index], ctx, donor, facts.intermediate_size, cut
            )
            if cut is not None:
                ctx, kept = ctx.last(cut), per_layer_inputs.shape[1] - cut
                per_layer_inputs = per_layer_inputs[:, kept:]
            if cut == 0:
                break
        return self.norm(self.merge(streams))

    def project_per_layer_inputs(self, ids: Tensor, x: Tensor) -> Tensor:
        """Every layer's own embedding of a token, looked up and projected: (B, T, L, P).

        Ids outside the table (images, sounds) take its row 0.
        """
        config = self.config
        ids = torch.where(ids < config.vocab_size_per_layer_input, ids, 0)
        table = self.get_per_layer_inputs(ids) * rounded(config.per_layer_embed_scale, x)
        projected = self.per_layer_model_projection(x)
        projected = projected * rounded(config.per_layer_projection_scale, x)
        known = self.per_layer_projection_norm(self.blocks(projected))
        return (known + table) * rounded(2**-0.5, x)

    def get_per_layer_inputs(self, ids: Tensor) -> Tensor:
        """The table's vectors for ids (B, T), those of this model's layers: (B, T, L, P)."""
        if self.per_layer_table is not None:
            return self.per_layer_table.rows(ids, self.layer_indices)
        return self.blocks(self.embed_tokens_per_layer(ids))

    def blocks(self, columns: Tensor) -> Tensor:
        """Columns of all layers of the whole model -> this model's layers, (B, T, L, P)."""
        width = self.config.hidden_size_per_layer_input
        parts = columns.view(*columns.shape[:2], columns.shape[2] // width, width)
        return (
            parts
            if len(self.layer_indices) == parts.shape[2]
            else parts[:, :, list(self.layer_indices)]
        )

    def expand(self, x: Tensor) -> Tensor:
        """One stream (B, T, D) -> all of them, equally loud: (S, B, T, D)."""
        others = [rescaled(project(x), x) for project in self.altup_projections]
        return torch.stack([x, *others])

    def merge(self, streams: Tensor) -> Tensor:
        """All streams back to one, their mean: (S, B, T, D) -> (B, T, D)."""
        x = streams[0]
        pairs = zip(self.altup_unembed_projections, streams[1:], strict=True)
        return torch.stack([x, *(rescaled(project(s), x) for project, s in pairs)]).mean(0)
