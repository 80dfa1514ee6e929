"""What moves out of a file's pages, when, and whether there is room for it.

The matrices that every step reads are copied once into `kernels.repacked`, and the file's pages are
let go as they are copied, so that memory holds each number once. `Weights` keeps the mapped blocks,
which nobody touches while the program runs; whoever does brings those pages back. Where memory is
short, or a memory policy is to let weights go and take them back, they stay mapped. Plain floats
that were made when the model was loaded are in memory already, and stay where they are.

They move when the model is loaded, or, of small models, when it has said its first token
(`NativeDecoder.prepare`): the move takes as long as all the rest of a start, and gains a little at
every token. A large model's move would be a pause in the middle of its answer, and a Gemma 3n's
sub-models, whose programs read the same matrices, would all have to be written anew.

    decoder = NativeDecoder(config, weights, repacked(config, weights))
    decoder = NativeDecoder(config, weights, moved_or_waiting(config, weights))
"""

from __future__ import annotations

from gemelo.config import ModelConfig
from gemelo.engine.memory.pages import available_bytes, release
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING, runs_natively
from gemelo.kernels.quants import Packed
from gemelo.kernels.repacked import Panels, Unmoved, can_interleave
from gemelo.weights.mapped import behind, lies_in
from gemelo.weights.tensors import Weights

SPARE_BYTES = 512 << 20  # that stay free for the cache and everything else
_OVER = 1.05  # panels' six-bit scales are bytes
_WAITING_BYTES = 2 << 30  # the most that moves in the middle of an answer: about a second


def moved_or_waiting(config: ModelConfig, weights: Weights) -> Panels | Unmoved | None:
    """The matrices of a decoder that runs natively: moved, or of a small one about to; None if
    memory has no room for them."""
    found = unmoved(config, weights)
    if found is None:
        return None
    waits = not config.is_matformer and found.nbytes <= _WAITING_BYTES
    return found if waits else found.move()


def repacked(config: ModelConfig, weights: Weights) -> Panels | None:
    """The same, moved at once."""
    found = unmoved(config, weights)
    return None if found is None else found.move()


def unmoved(config: ModelConfig, weights: Weights) -> Unmoved | None:
    """The same, not moved yet; the room for it is taken."""
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
        return Unmoved(panels, rows, strips, release)
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
