"""Weights by name: shape, format and bytes, of a model that is loaded or of a file's header.

Both are the same kind of list, so that what is said of a model and of the sub-models in it is said
by the same functions. Names are the decoder's own without a `.weight` at the end. No weight is
read: a sub-model's bytes follow from the whole's, of which it has leading parts.

    weights = held(checkpoint.weights)              # or stored(open_source(path))
    small = part(weights, config, Submodel.named("E2B", config))

Shapes are (out, in); an embedding's is (V, D).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemelo.checkpoints.slice import cut
from gemelo.checkpoints.source import DECODER, Source
from gemelo.config import ModelConfig, Submodel
from gemelo.config.parameters import decoder_shapes
from gemelo.kernels.quants import Packed


@dataclass(frozen=True)
class Weight:
    """One weight: its shape, the format it is held in, its bytes."""

    shape: tuple[int, ...]
    format: str
    parameters: int
    bytes: int


Weights = Mapping[str, Weight]


@dataclass(frozen=True)
class Group:
    """Weights by name, and their sums."""

    weights: Weights

    @property
    def parameters(self) -> int:
        """Numbers in all of them."""
        return sum(weight.parameters for weight in self.weights.values())

    @property
    def bytes(self) -> int:
        """Bytes of all of them, as they are held."""
        return sum(weight.bytes for weight in self.weights.values())

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of the matrices, the commonest first; norms only where there is nothing else."""
        matrices = [w.format for w in self.weights.values() if len(w.shape) > 1]
        counts = Counter(matrices or [w.format for w in self.weights.values()])
        return tuple(name for name, _ in counts.most_common())

    def to_json(self) -> dict[str, Any]:
        """Sums, then every weight by name."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "formats": list(self.formats),
            "weights": {name: dataclasses.asdict(w) for name, w in self.weights.items()},
        }


def held(tensors: Mapping[str, Packed]) -> dict[str, Weight]:
    """Every tensor by its name, as it is held. Reads none."""
    return {_short(name): _described(tensor) for name, tensor in tensors.items()}


def stored(source: Source) -> dict[str, Weight]:
    """Every weight of an open file's decoder, as the file has it."""
    names = [name for name in source.shapes if name.startswith(DECODER)]
    return held({name: source.tensor(name) for name in names})


def part(weights: Weights, config: ModelConfig, submodel: Submodel) -> dict[str, Weight]:
    """Those of a sub-model of the model that the weights are of, as `slice` would cut them."""
    named = {f"{DECODER}{name}.weight": weight for name, weight in weights.items()}
    shapes = {name: weight.shape for name, weight in named.items()}
    small = cut(Source(Path(), config, shapes, _unread), submodel)
    kept = submodel.kept_layers(config)
    parts: dict[str, Weight] = {}
    for name, shape in small.shapes.items():
        parts[_short(name)] = _share(named[_in_whole(name, kept)], shape)
    return parts


def running(
    tensors: Mapping[str, Packed], config: ModelConfig, layer_indices: Sequence[int]
) -> dict[str, Weight]:
    """Those of what a decoder runs, which may be a model nested in the one that tensors are of:
    config is its own, layer_indices are the whole's layers that it runs."""
    whole, kept = held(tensors), tuple(layer_indices)
    return {
        _short(name): _share(whole[_short(_in_whole(DECODER + name, kept))], shape)
        for name, shape in decoder_shapes(config).items()
    }


def _share(whole: Weight, shape: tuple[int, ...]) -> Weight:
    """A leading part of a weight, of that shape."""
    count = math.prod(shape)
    return Weight(shape, whole.format, count, whole.bytes * count // max(1, whole.parameters))


def _described(weight: Packed) -> Weight:
    shape = weight.shape
    return Weight(shape, weight.format.name, math.prod(shape), weight.nbytes)


def _short(name: str) -> str:
    return name.removeprefix(DECODER).removesuffix(".weight")


def _in_whole(name: str, kept: tuple[int, ...]) -> str:
    """A sub-model's canonical name in the whole, whose layers have other numbers."""
    prefix = f"{DECODER}layers."
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{kept[int(number)]}.{rest}"


def _unread(name: str) -> Packed:
    raise AssertionError(f"{name}: shapes alone were asked for")
