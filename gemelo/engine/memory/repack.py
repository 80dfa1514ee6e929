"""What moves out of a file's pages when a model is loaded, and whether there is room for it.

The matrices that every step reads are copied once into `kernels.repacked`, and the file's pages are
let go as they are copied, so that memory holds each number once. `Weights` keeps the mapped blocks,
which nobody touches while the program runs; whoever does brings those pages back. Where memory is
short, or a memory policy is to let weights go and take them back, they stay mapped. Plain floats
that were made when the model was loaded are in memory already, and stay where they are.

    decoder = NativeDecoder(config, weights, repacked(config, weights))
"""

from __future__ import annotations

from gemelo.config import ModelConfig
from gemelo.engine.memory.pages import available_bytes, release
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING, runs_natively
from gemelo.kernels.quants import Packed
from gemelo.kernels.repacked import Panels, can_interleave
from gemelo.weights.mapped import behind, lies_in
from gemelo.weights.tensors import Weights

SPARE_BYTES = 512 << 20  # that stay free for the cache and everything else
_OVER = 1.05  # panels' six-bit scales are bytes


def repacked(config: ModelConfig, weights: Weights) -> Panels | None:
    """The matrices of a decoder that runs natively, moved; None if memory has no room for them."""
    if not runs_natively(config, weights):
        return None
    mapped = behind(weights.values())
    matrices = {
        name: weight
        for name, weight in _matrices(weights).items()
        if can_interleave(weight) or lies_in(weight, mapped)  # else it is in memory as it would be
    }
    if available_bytes() < _OVER * sum(w.nbytes for w in matrices.values()) + SPARE_BYTES:
        return None
    chosen, sparse = _in_rows(config), _in_strips(config)
    panels: dict[str, Packed] = {}
    rows: dict[str, Packed] = {}
    strips: dict[str, Packed] = {}
    for name, weight in matrices.items():
        if name in chosen or not can_interleave(weight):
            rows[name] = weight
        else:
            (strips if name in sparse else panels)[name] = weight
    try:
        return Panels(panels, rows, strips, release)
    except MemoryError:  # a limit of the process's own
        return None


def _in_rows(config: ModelConfig) -> set[str]:
    """Gemma 3n reads the layers that a sub-model runs, and the neurons that a token wakes."""
    sparse = (f"layers.{layer}.mlp.up_proj.weight" for layer in _sparse(config))
    return {"per_layer_model_projection.weight", *sparse}


def _in_strips(config: ModelConfig) -> set[str]:
    """What those neurons say, a column each."""
    return {f"layers.{layer}.mlp.down_proj.weight" for layer in _sparse(config)}


def _sparse(config: ModelConfig) -> list[int]:
    return [layer for layer in config.layers if config.layer(layer).std_multiplier is not None]


def _matrices(weights: Weights) -> dict[str, Packed]:
    """Matrices that a step reads whole, and the embedding that is the head too. AltUp's
    coefficients are read once, when the program is written."""
    return {
        name: weight
        for name, weight in weights.items()
        if len(weight.shape) == 2 and name != PER_LAYER_EMBEDDING and ".altup." not in name
    }
