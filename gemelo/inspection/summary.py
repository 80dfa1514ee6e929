"""Model summary: every layer's type, shapes, format, parameters and bytes.

The numbers come from the weights as they were loaded, so that they are true for whatever format
they are held in; the cost model of `config` is their check and not their source. Bytes are those of
the weights as they are held, whether mapped from the file or in memory; of towers, as the file has
them.

Of a sub-model the numbers are the whole's, less what it leaves out.

    summary = summarise(checkpoint)
    summary.parameters, summary.layers[0].weights["self_attn.q_proj"].shape

Shapes are (out, in); the embedding's is (V, D).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

from gemelo.config import LayerType, ModelConfig, Submodel, kv_bytes
from gemelo.config.parameters import decoder_shapes, parameter_shapes
from gemelo.engine.native_decoder import is_float32, runs_natively
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from gemelo.inspection.weights import Group, Weights, held, part
from gemelo.kernels.quants import Packed
from gemelo.weights import tensors

CONTEXTS = (1024, 8192, 32768, 131072)  # tokens at which the KV cache is reckoned
_CHUNK = 512  # tokens that a step of an engine writes at most, if nobody asks for more
_APART = ("embed_tokens", "embed_tokens_per_layer", "lm_head")  # parts that are not of the core


class Loaded(Protocol):
    """What a summary reads of a checkpoint: `weights` are the decoder's by their own names,
    tower_weights those beside it by canonical names."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def format(self) -> str: ...
    @property
    def details(self) -> tuple[str, ...]: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizer: ...
    @property
    def weights(self) -> tensors.Weights: ...
    @property
    def tower_weights(self) -> Mapping[str, Packed]: ...


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


def summarise(checkpoint: Loaded, submodel: Submodel | None = None) -> Summary:
    """The summary of a loaded model, or of a sub-model of it. Reads no weight."""
    config = checkpoint.config
    weights, widths = held(_in_order(checkpoint.weights, config)), config.ffn_widths
    towers = held(_in_order(checkpoint.tower_weights, config))
    if submodel is not None:
        weights = part(weights, config, submodel)
        widths = tuple(widths[layer] for layer in submodel.kept_layers(config))
        config = submodel.config(config)
    return Summary(
        path=str(checkpoint.path),
        model_type=config.model_type,
        format=checkpoint.format,
        layers=_layers(config, widths, weights),
        parts={name: group for name, group in _children(weights).items() if name != "layers"},
        towers=_children(towers),
        chat_template=checkpoint.tokenizer.chat_template is not None,
        context=config.max_position_embeddings,
        kv_bytes=_kv_bytes(config, checkpoint.weights),
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


def _in_order(named: Mapping[str, Packed], config: ModelConfig) -> dict[str, Packed]:
    """Tensors as the networks have them one after the other, whatever order a file has them in."""
    names = (*decoder_shapes(config), *parameter_shapes(config))
    return {name: named[name] for name in names if name in named}


def _children(weights: Weights) -> dict[str, Group]:
    """Weights in groups, by the first word of their names."""
    groups: dict[str, dict[str, Any]] = {}
    for name, weight in weights.items():
        child, _, rest = name.partition(".")
        groups.setdefault(child, {})[rest] = weight
    return {child: Group(group) for child, group in groups.items()}


def _kv_bytes(config: ModelConfig, weights: tensors.Weights) -> dict[int, int]:
    """What the cache of one session will take, by context, as the engine's defaults make it."""
    is_half = runs_natively(config, weights) and not is_float32(weights)
    chunk, context = max(_CHUNK, config.bidirectional_image_tokens), config.max_position_embeddings
    lengths = {min(tokens, context) for tokens in (*CONTEXTS, context)}
    return {
        tokens: kv_bytes(config, tokens, chunk, 2 if is_half else 4) for tokens in sorted(lengths)
    }
