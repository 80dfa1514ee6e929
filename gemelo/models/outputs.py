"""Model outputs: logits, hidden states and attention probabilities of one forward.

What transformers returns with `output_hidden_states` and `output_attentions`, of the same shapes
less the batch, and equal to it (`tests/models/test_outputs.py`). The forward itself knows nothing
of it: it is run on a copy of the decoder that shares every weight, in which each layer is wrapped
by one that keeps what goes in and comes out, and attention is the eager one, which has its
probabilities to give. Nothing is set on the model that others use.

    outputs = forward(decoder, ids, positions, output_hidden_states=True, output_attentions=True)

S streams (AltUp), T tokens, D width, H query heads, L layers, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gemelo.models.decoder import Decoder
from gemelo.models.layers import KV, StepInputs, eager_attend

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class CausalLMOutput:
    """What one forward gives; what was not asked for is None.

    - logits (T, V) float32: scores of the next token after every token.
    - last_hidden_state (T, D): after the final norm, what the head is multiplied with.
    - hidden_states: L + 1 tensors, what goes into the first layer and what comes out of each. Gemma
      3: (T, D), of which the last is after the final norm. Gemma 3n: (S, T, D), its four streams,
      the last before they are merged and normalised. So has transformers.
    - attentions: L tensors (H, T, T), row t the probabilities by which token t looks at each.
    """

    logits: Tensor = field(repr=False)
    last_hidden_state: Tensor = field(repr=False)
    hidden_states: tuple[Tensor, ...] | None = field(default=None, repr=False)
    attentions: tuple[Tensor, ...] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        shapes = [
            f"logits {tuple(self.logits.shape)}",
            f"last_hidden_state {tuple(self.last_hidden_state.shape)}",
        ]
        for name in ("hidden_states", "attentions"):
            tensors = getattr(self, name)
            if tensors is not None:
                shapes.append(f"{name} {len(tensors)} x {tuple(tensors[0].shape)}")
        return f"CausalLMOutput({', '.join(shapes)})"


@torch.no_grad()
def forward(
    decoder: Decoder,
    ids: Tensor,
    positions: Tensor,
    inputs: StepInputs | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> CausalLMOutput:
    """Run ids, positions (1, T) through a decoder's modules, all at once and without a cache."""
    states: list[Tensor] = []
    attentions: list[Tensor] = []
    if output_attentions:
        decoder = with_eager_attention(decoder, attentions)
    if output_hidden_states:
        decoder = with_recorded_layers(decoder, states)
    last = decoder(ids, positions, inputs=inputs)
    if states and decoder.config.altup_num_inputs == 1:
        states[-1] = last
    return CausalLMOutput(
        decoder.logits(last[0]),
        last[0],
        tuple(state.squeeze(-3) for state in states) if output_hidden_states else None,
        tuple(rows[0] for rows in attentions) if output_attentions else None,
    )


def with_recorded_layers(decoder: Decoder, states: list[Tensor]) -> Decoder:
    """The same decoder, whose layers append what goes into the first and comes out of each."""
    layers = nn.ModuleList(_Recorded(layer, states) for layer in decoder.layers)
    return _with_children(decoder, layers=layers)


def with_eager_attention(decoder: Decoder, attentions: list[Tensor]) -> Decoder:
    """The same decoder, whose attention is the eager one and appends its probabilities."""

    def attend(q: Tensor, kv: KV, mask: Tensor, scale: float) -> Tensor:
        y, probabilities = eager_attend(q, kv, mask, scale)
        attentions.append(probabilities)
        return y

    layers = nn.ModuleList()
    for layer in decoder.layers:
        attention: Any = copy.copy(layer.self_attn)
        attention.attention_interface = attend
        layers.append(_with_children(layer, self_attn=attention))
    return _with_children(decoder, layers=layers)


class _Recorded(nn.Module):
    """A layer, and the list that its hidden states are kept in."""

    def __init__(self, layer: nn.Module, states: list[Tensor]) -> None:
        super().__init__()
        self.layer, self.states = layer, states

    def forward(self, x: Tensor, *args: Any) -> Any:
        """What the layer gives; some give their keys beside the hidden states."""
        if not self.states:
            self.states.append(x)
        result = self.layer(x, *args)
        self.states.append(result if isinstance(result, Tensor) else result[0])
        return result


def _with_children(module: AnyModule, **children: nn.Module) -> AnyModule:
    """A copy of a module that shares all parameters, with other children."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, **children}  # a shallow copy shares the table
    return copied
