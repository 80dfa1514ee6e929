"""What moves out of a file's pages when a model is loaded, and whether there is room for it.

The matrices that every step reads are copied once into `kernels.repacked`, and the file's pages are
let go as they are copied, so that memory holds each number once. The modules keep their mapped
blocks, which nobody touches while the program (`native_program`) runs; whoever does brings those
pages back. Where memory is short, or a memory policy is to let weights go and take them back, they
stay mapped.

    panels = repacked(decoder)
    decoder.native_program = NativeProgram.of(decoder, panels)
"""

from __future__ import annotations

from torch import nn

from gemelo.engine.memory.pages import available_bytes, release
from gemelo.engine.native_program import Decoder, packed
from gemelo.kernels.linear import QuantLinear
from gemelo.kernels.quants import Packed
from gemelo.kernels.repacked import Panels, can_interleave
from gemelo.models.altup import NestedMLP
from gemelo.models.gemma3n import Block
from gemelo.models.layers import Linear

SPARE_BYTES = 512 << 20  # that stay free for the cache and everything else
_OVER = 1.05  # panels' six-bit scales are bytes


def repacked(decoder: Decoder) -> Panels | None:
    """The matrices of a decoder that has a program, moved; None if memory has no room for them."""
    weights = {_address(weight): weight for weight in map(packed, _matrices(decoder))}
    if available_bytes() < _OVER * sum(w.nbytes for w in weights.values()) + SPARE_BYTES:
        return None
    chosen, sparse = _in_rows(decoder), _in_strips(decoder)
    panels: list[Packed] = []
    rows: list[Packed] = []
    strips: list[Packed] = []
    for at, weight in weights.items():
        if at in chosen or not can_interleave(weight):
            rows.append(weight)
        else:
            (strips if at in sparse else panels).append(weight)
    return Panels(panels, rows, strips, release)


def _in_rows(decoder: Decoder) -> set[int]:
    """Gemma 3n reads the layers that a sub-model runs, and the neurons that a token wakes."""
    if not decoder.config.hidden_size_per_layer_input:
        return set()
    chosen = (decoder.per_layer_model_projection, *(mlp.up_proj for mlp in _sparse(decoder)))
    return {_address(packed(module)) for module in chosen}


def _in_strips(decoder: Decoder) -> set[int]:
    """What those neurons say, a column each."""
    return {_address(packed(mlp.down_proj)) for mlp in _sparse(decoder)}


def _sparse(decoder: Decoder) -> list[NestedMLP]:
    blocks = [block for block in decoder.layers if isinstance(block, Block)]
    return [block.mlp for block in blocks if block.mlp.std_multiplier is not None]


def _matrices(decoder: Decoder) -> list[nn.Module]:
    """The modules whose matrices a step reads whole, and the embedding that is the head too."""
    linear = [m for m in decoder.modules() if isinstance(m, QuantLinear) or type(m) is Linear]
    return [decoder.embed_tokens, *linear]


def _address(weight: Packed) -> int:
    return weight.blocks.data_ptr()
