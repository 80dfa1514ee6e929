"""Model summary: every layer's type, shapes, format, parameters and bytes.

The numbers come from the modules that run, after loading, so that they are true for whatever format
the weights are held in; the cost model of `config` is their check and not their source. Bytes are
those of the weights as they are held, whether mapped from the file or in memory.

    summary = summarise(checkpoint)
    summary.parameters, summary.layers[0].weights["self_attn.q_proj"].shape

Shapes are (out, in); the embedding's is (V, D).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gemelo.checkpoints.load import Checkpoint
from gemelo.config import LayerType, kv_bytes
from gemelo.engine.engine import Engine
from gemelo.kernels.linear import QuantEmbedding, QuantLinear, module_bytes

CONTEXTS = (1024, 8192, 32768, 131072)  # tokens at which the KV cache is reckoned
_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Layer(Group):
    """One decoder layer; window is None where it attends to everything."""

    index: int
    type: LayerType
    window: int | None

    def to_json(self) -> dict[str, Any]:
        """What the layer is, then as a group."""
        return {"index": self.index, "type": self.type, "window": self.window} | super().to_json()


@dataclass(frozen=True)
class Summary:
    """A model: its decoder layer by layer, what is around them, and what a context costs."""

    path: str
    model_type: str
    format: str
    layers: tuple[Layer, ...]
    parts: dict[str, Group]  # of the decoder, around its layers; no "lm_head" where it is tied
    towers: dict[str, Group]  # beside the decoder; none for a text model
    chat_template: bool
    context: int
    kv_bytes: Mapping[int, int]  # of one session, by tokens of context

    @property
    def parameters(self) -> int:
        """Of the decoder; a tied head counts once."""
        return sum(group.parameters for group in self._decoder())

    @property
    def bytes(self) -> int:
        """Of the decoder's weights as they are held."""
        return sum(group.bytes for group in self._decoder())

    def _decoder(self) -> Iterable[Group]:
        return (*self.layers, *self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """One object; layers in order, other groups by name."""
        return {
            "model": self.path,
            "model_type": self.model_type,
            "format": self.format,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "chat_template": self.chat_template,
            "context": self.context,
            "kv_bytes": {str(tokens): count for tokens, count in self.kv_bytes.items()},
            "layers": [layer.to_json() for layer in self.layers],
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "towers": {name: tower.to_json() for name, tower in self.towers.items()},
        }


def summarise(checkpoint: Checkpoint) -> Summary:
    """The summary of a loaded model. Reads no weight."""
    config, decoder = checkpoint.config, checkpoint.decoder
    return Summary(
        path=str(checkpoint.path),
        model_type=config.model_type,
        format=checkpoint.format,
        layers=tuple(
            Layer(_weights(block), index, layer.type, layer.window)
            for index, (layer, block) in enumerate(
                zip(config.layer_configs, decoder.layers, strict=True)
            )
        ),
        parts=_children(decoder, decoder.layers),
        towers=_children(checkpoint.tree, decoder),
        chat_template=checkpoint.tokenizer.chat_template is not None,
        context=config.max_position_embeddings,
        kv_bytes=_kv_bytes(checkpoint),
    )


