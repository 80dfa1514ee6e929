"""What moves out of a file's pages when a model is loaded, and whether there is room for it.

The matrices that every step reads are copied once into `kernels.panels`, and the file's pages are
let go as they are copied, so that memory holds each number once. The modules keep their mapped
blocks, which nobody touches while the program (`engine.graphs`) runs; whoever does brings those
pages back. Where memory is short, or a memory policy is to let weights go and take them back, they
stay mapped.

    panels = repacked(decoder)
    decoder.fused = Graph.of(decoder, panels)
"""

from __future__ import annotations

from torch import nn

from gemelo.engine.graphs import Decoder, packed
from gemelo.engine.pages import available_bytes, release
from gemelo.kernels.formats import Packed
from gemelo.kernels.linear import QuantLinear
from gemelo.kernels.panels import Panels, can_interleave
from gemelo.models.gemma3n import Block, Gemma3n
from gemelo.models.layers import Linear

SPARE_BYTES = 512 << 20  # that stay free for the cache and everything else
_OVER = 1.05  # panels' six-bit scales are bytes


def repacked(decoder: Decoder) -> Panels | None:
    """The matrices of a decoder that has a program, moved; None if memory has no room for them.

    Matrices of which rows are chosen stay in rows.
    """
    chosen = set(map(_address, _in_rows(decoder)))
    weights = {_address(weight): weight for weight in map(packed, _matrices(decoder))}
    if available_bytes() < _OVER * sum(w.nbytes for w in weights.values()) + SPARE_BYTES:
        return None
    interleaved = {
        at: weight for at, weight in weights.items() if at not in chosen and can_interleave(weight)
    }
    rows = [weight for at, weight in weights.items() if at not in interleaved]
    return Panels(list(interleaved.values()), rows, release)


def _in_rows(decoder: Decoder) -> list[Packed]:
    """Gemma 3n reads the layers that a sub-model runs, and the neurons that a token wakes."""
    if not isinstance(decoder, Gemma3n):
        return []
    blocks = [block for block in decoder.layers if isinstance(block, Block)]
    sparse = [block.mlp.up_proj for block in blocks if block.mlp.cutoff is not None]
    return [packed(module) for module in (decoder.per_layer_model_projection, *sparse)]


def _matrices(decoder: Decoder) -> list[nn.Module]:
    """The modules whose matrices a step reads whole, and the embedding that is the head too."""
    linear = [m for m in decoder.modules() if isinstance(m, QuantLinear) or type(m) is Linear]
    return [decoder.embed_tokens, *linear]


def _address(weight: Packed) -> int:
    return weight.blocks.data_ptr()
