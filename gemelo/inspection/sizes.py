"""Sub-models side by side (MatFormer, Mix-n-Match): layers, widths, parameters, bytes of each.

What one chooses by, before anything is cut or loaded: how many parameters a sub-model computes
with, what a token reads of it, and what stays in memory. Effective parameters are Gemma 3n's own
count: neither the embedding nor the per-layer embeddings are in it, of which a token reads one row.
(The published figures count keys and values that no layer uses, about 0.03 billion, too.)

    for size in sizes(source.config, stored(source)):
        print(size.name, size.effective_parameters, size.resident_bytes)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemelo.config import ModelConfig, Submodel
from gemelo.config.submodel import HALF, name_of, names_in
from gemelo.inspection.summary import sparsity
from gemelo.inspection.weights import Weight, Weights, part

EMBEDDING, PER_LAYER_EMBEDDING, HEAD = "embed_tokens", "embed_tokens_per_layer", "lm_head"


@dataclass(frozen=True)
class Size:
    """One sub-model: `name` is what `--submodel` takes, `read_bytes` what a decoded token reads of
    the weights, `resident_bytes` what stays in memory with the per-layer embeddings on disk."""

    name: str
    submodel: Submodel
    num_whole_layers: int
    effective_parameters: int
    parameters: int
    read_bytes: int
    resident_bytes: int

    @property
    def widths(self) -> str:
        """Feed-forward widths, each with its number of layers: "8192 x 29, 16384 x 6"."""
        counts = Counter(self.submodel.ffn_widths)
        return ", ".join(f"{width} x {count}" for width, count in sorted(counts.items()))

    def to_json(self) -> dict[str, Any]:
        """One object, in bytes and numbers."""
        return {
            "name": self.name,
            "num_layers": len(self.submodel.ffn_widths),
            "skipped_layers": list(self.submodel.skipped_layers),
            "ffn_widths": list(self.submodel.ffn_widths),
            "effective_parameters": self.effective_parameters,
            "parameters": self.parameters,
            "read_bytes": self.read_bytes,
            "resident_bytes": self.resident_bytes,
        }


def sizes(config: ModelConfig, weights: Weights) -> list[Size]:
    """The sub-models of a model that have names, itself first; none of a model that has one size.

    weights are the decoder's (`weights.held` or `weights.stored`).
    """
    if not config.is_matformer:
        return []
    own = name_of(config)
    names = dict.fromkeys((own, *names_in(config), HALF))
    return [size_of(name, Submodel.named(name, config), config, weights) for name in names]


def smaller_than(config: ModelConfig, weights: Weights) -> Size | None:
    """The sub-model that people mean by the small one: E2B, else half of the whole; None for a
    model that has one size."""
    if not config.is_matformer:
        return None
    small = Submodel.by_size(config)[0]
    return size_of(small.name, small, config, weights)


def size_of(name: str, submodel: Submodel, config: ModelConfig, weights: Weights) -> Size:
    """What one sub-model of a model comes to."""
    own, small = submodel.config(config), part(weights, config, submodel)
    tables = (EMBEDDING, PER_LAYER_EMBEDDING, HEAD)
    resident = [weight.bytes for at, weight in small.items() if at != PER_LAYER_EMBEDDING]
    return Size(
        name,
        submodel,
        config.num_hidden_layers,
        sum(weight.parameters for at, weight in small.items() if at not in tables),
        sum(weight.parameters for weight in small.values()),
        read_bytes(own, small),
        sum(resident),
    )


def read_bytes(config: ModelConfig, weights: Mapping[str, Weight]) -> int:
    """Bytes of weights that decoding one token reads: one row of an embedding, a tied one whole
    since it is the head too, and of a sparse feed-forward the neurons that pass its gate."""
    rows = {PER_LAYER_EMBEDDING} | ({EMBEDDING} if HEAD in weights else set())
    total = 0.0
    for name, weight in weights.items():
        if name in rows:
            total += weight.bytes / weight.shape[0]
        elif name.startswith("layers.") and name.endswith(("mlp.up_proj", "mlp.down_proj")):
            total += weight.bytes * (1 - sparsity(config, int(name.split(".")[1])))
        else:
            total += weight.bytes
    return int(total)
