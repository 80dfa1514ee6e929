"""Model summary: every layer's type, shapes, format, parameters and bytes.

The numbers come from the modules that run, after loading, so that they are true for whatever format
the weights are held in; the cost model of `config` is their check and not their source. Bytes are
those of the weights as they are held, whether mapped from the file or in memory.

Of a sub-model the numbers are the whole's, less what it leaves out.

    summary = summarise(checkpoint)
    summary.parameters, summary.layers[0].weights["self_attn.q_proj"].shape

Shapes are (out, in); the embedding's is (V, D).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from torch import nn

from gemelo.checkpoints.load import Checkpoint
from gemelo.config import LayerType, ModelConfig, Submodel, kv_bytes
from gemelo.engine.engine import Engine
from gemelo.inspection.weights import Group, Weights, held, part

CONTEXTS = (1024, 8192, 32768, 131072)  # tokens at which the KV cache is reckoned
_APART = ("embed_tokens", "embed_tokens_per_layer", "lm_head")  # parts that are not of the core


@dataclass(frozen=True)
class Layer(Group):
    """One decoder layer; window is None where it attends to everything, kv_layer the layer whose
    keys and values it attends over: itself, or a lower one. whole_width is the feed-forward's in
    the model that a sub-model is of; sparsity the share of its neurons that are off at a token."""

    index: int
    type: LayerType
    window: int | None
    kv_layer: int
    ffn_width: int
    whole_width: int
    sparsity: float

    def to_json(self) -> dict[str, Any]:
        """What the layer is, then as a group."""
        facts = {
            "index": self.index,
            "type": self.type,
            "window": self.window,
            "kv_layer": self.kv_layer,
            "ffn_width": self.ffn_width,
            "activation_sparsity": self.sparsity,
        }
        return facts | super().to_json()


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
    config: ModelConfig  # of what is summed up: the sub-model's, if it is one
    submodel: Submodel | None = None
    details: tuple[str, ...] = ()  # what is usual in the files it is from, and changes nothing

    @property
    def parameters(self) -> int:
        """Of the decoder; a tied head counts once."""
        return sum(group.parameters for group in self._decoder())

    @property
    def bytes(self) -> int:
        """Of the decoder's weights as they are held."""
        return sum(group.bytes for group in self._decoder())

    @property
    def core(self) -> Group:
        """All of the decoder but the embedding, the per-layer embeddings and a head of its own."""
        groups = [layer.weights for layer in self.layers]
        groups += [group.weights for name, group in self.parts.items() if name not in _APART]
        return Group({f"{at}.{name}": w for at, g in enumerate(groups) for name, w in g.items()})

    def _decoder(self) -> Iterable[Group]:
        return (*self.layers, *self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """One object; layers in order, other groups by name."""
        return {
            "model": self.path,
            "model_type": self.model_type,
            "format": self.format,
            "submodel": self.submodel.name if self.submodel else None,
            "core_parameters": self.core.parameters,
            "core_bytes": self.core.bytes,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "chat_template": self.chat_template,
            "context": self.context,
            "kv_bytes": {str(tokens): count for tokens, count in self.kv_bytes.items()},
            "layers": [layer.to_json() for layer in self.layers],
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "towers": {name: tower.to_json() for name, tower in self.towers.items()},
            "details": list(self.details),
        }


def summarise(checkpoint: Checkpoint, submodel: Submodel | None = None) -> Summary:
    """The summary of a loaded model, or of a sub-model of it. Reads no weight."""
    config, decoder = checkpoint.config, checkpoint.decoder
    weights, widths = held(decoder), config.ffn_widths
    if submodel is not None:
        weights = part(weights, config, submodel)
        widths = tuple(widths[layer] for layer in submodel.kept_layers(config))
        config = submodel.config(config)
    return Summary(
        path=str(checkpoint.path),
        model_type=config.model_type,
        format=checkpoint.format,
        layers=_layers(config, widths, weights),
        parts=_parts(weights),
        towers=_children(checkpoint.tree, decoder),
        chat_template=checkpoint.tokenizer.chat_template is not None,
        context=config.max_position_embeddings,
        kv_bytes=_kv_bytes(checkpoint, config),
        config=config,
        submodel=submodel,
        details=checkpoint.details,
    )


def sparsity(config: ModelConfig, layer: int) -> float:
    """The share of a feed-forward's neurons that a gate turns off at every token: 0 where none."""
    deviations = config.std_multiplier(layer)
    return 0.0 if deviations is None else round(NormalDist().cdf(deviations), 4)


def _layers(config: ModelConfig, widths: Iterable[int], weights: Weights) -> tuple[Layer, ...]:
    """The layers of a config with their weights; widths are the whole's."""
    inside: list[dict[str, Any]] = [{} for _ in config.layers]
    for name, weight in weights.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            inside[int(number)][rest] = weight
    return tuple(
        Layer(
            inside[index],
            index,
            layer.type,
            layer.window,
            config.kv_donor(index),
            config.ffn_widths[index],
            whole_width,
            sparsity(config, index),
        )
        for index, (layer, whole_width) in enumerate(zip(config.layer_configs, widths, strict=True))
    )


def _parts(weights: Weights) -> dict[str, Group]:
    """What is around the layers, by the name of the module that holds it."""
    parts: dict[str, dict[str, Any]] = {}
    for name, weight in weights.items():
        holder, _, rest = name.partition(".")
        if holder != "layers":
            parts.setdefault(holder, {})[rest] = weight
    return {holder: Group(group) for holder, group in parts.items()}


def _children(module: nn.Module, apart: nn.Module) -> dict[str, Group]:
    """The weights of every child of a module but one, by the child's name."""
    return {
        name: Group(held(child)) for name, child in module.named_children() if child is not apart
    }


def _kv_bytes(checkpoint: Checkpoint, config: ModelConfig) -> dict[int, int]:
    """What the cache of one session will take, by context, as the engine's defaults make it."""
    engine = Engine(checkpoint.decoder, checkpoint.tokenizer)
    item = engine.cache().stored.itemsize
    lengths = {min(tokens, engine.context) for tokens in (*CONTEXTS, engine.context)}
    return {tokens: kv_bytes(config, tokens, engine.chunk, item) for tokens in sorted(lengths)}
