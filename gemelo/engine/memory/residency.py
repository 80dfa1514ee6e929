"""Residency of a nested model: which of the whole's weights it keeps in memory, and which can go.

What a nested model does not run of a whole one (the last neurons, the skipped layers) is in memory
only if it was ever touched. `release_tail` lets it go again, and it comes back from the file when
it is touched; nothing is copied or unloaded, since a sub-model is a view of the whole's weights.

    release_tail(decoder, Submodel.named("E2B", decoder.config))
    used_bytes(decoder, submodel)
"""

from __future__ import annotations

from collections.abc import Iterator

from gemelo.config import Submodel
from gemelo.engine.decoder import Decoder
from gemelo.engine.memory.pages import release
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING
from gemelo.kernels.quants import Bytes

_PROJECTION = "per_layer_model_projection.weight"


def release_tail(decoder: Decoder, submodel: Submodel) -> int:
    """Let go the pages of a decoder's weights that a sub-model of it does not run; their bytes.

    They are the neurons beyond its widths and the layers it skips, as far as they fill pages and
    are mapped; anything else stays. The whole still runs, and reads them again as it does.
    """
    return sum(map(release, unused(decoder, submodel)))


def unused(decoder: Decoder, submodel: Submodel) -> Iterator[Bytes]:
    """The stored bytes that a sub-model does not run: rows of gate and up, columns of down, and
    all of a layer that it skips."""
    widths = {
        decoder.layer_indices[layer]: width
        for layer, width in zip(
            submodel.kept_layers(decoder.config), submodel.ffn_widths, strict=True
        )
    }
    for name, weight in decoder.weights.items():
        layer = layer_of(name)
        if layer is None:
            continue
        if layer not in widths:
            yield weight.blocks
        elif name.endswith(("mlp.gate_proj.weight", "mlp.up_proj.weight")):
            yield weight.blocks[widths[layer] :]
        elif name.endswith("mlp.down_proj.weight"):
            yield weight.blocks[:, weight.format.row_bytes(widths[layer]) :]


def used_bytes(decoder: Decoder, submodel: Submodel) -> int:
    """Bytes of the weights that a sub-model uses, as `slice` would write them: of its feed-forwards
    the first neurons, and of the per-layer embeddings those of its layers."""
    weights = decoder.weights
    gone = sum(blocks.nbytes for blocks in unused(decoder, submodel))
    by_layer = sum(weights[name].nbytes for name in (PER_LAYER_EMBEDDING, _PROJECTION))
    layers = len({layer_of(name) for name in weights} - {None})
    kept = len(submodel.kept_layers(decoder.config))
    return weights.nbytes - gone - by_layer * (layers - kept) // layers


def resident_bytes(decoder: Decoder, submodel: Submodel, on_disk: bool) -> int:
    """Bytes of weights that running a sub-model keeps in memory, the per-layer table apart if it is
    on disk. Caches and activations come on top."""
    gone = sum(blocks.nbytes for blocks in unused(decoder, submodel))
    table = decoder.weights[PER_LAYER_EMBEDDING].nbytes if on_disk else 0
    return decoder.weights.nbytes - gone - table


def layer_of(name: str) -> int | None:
    """The layer that a weight belongs to, by its name; None for those of none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None
