"""Residency of a nested model: which of the whole's weights it keeps in memory, and which can go.

What a nested model does not run of a whole one (the last neurons, the skipped layers) is in memory
only if it was ever touched. `release_tail` lets it go again, and it comes back from the file when
it is touched; nothing is copied or unloaded, since a sub-model is a view of the whole's weights.

    release_tail(decoder, Submodel.named("E2B", decoder.config))
    resident_bytes(view, "disk")
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from gemelo.config import ModelConfig, Submodel
from gemelo.config.options import TablePlacement
from gemelo.engine.memory.pages import release
from gemelo.kernels.linear import QuantLinear, module_bytes
from gemelo.models.altup import NestedMLP
from gemelo.models.decoder import Decoder
from gemelo.models.gemma3n import Block
from gemelo.models.layers import Linear


def release_tail(decoder: Decoder, submodel: Submodel) -> int:
    """Let go the pages of the whole `decoder` that `submodel` does not run; returns their bytes.

    They are the neurons beyond its widths and the layers it skips, as far as they fill pages and
    are mapped; anything else stays. The whole still runs, and reads them again as it does.
    """
    widths = dict(zip(submodel.kept_layers(decoder.config), submodel.ffn_widths, strict=True))
    let_go = 0
    for layer, block in enumerate(decoder.layers):
        assert isinstance(block, Block)
        unused = tails(block.mlp, widths[layer]) if layer in widths else weights(block)
        let_go += sum(map(release, unused))
    return let_go


def resident_bytes(decoder: Decoder, where: TablePlacement) -> int:
    """Bytes of weights that running `decoder` keeps in memory, the table lying at `where`.

    Of a view, only what it runs counts. Caches and activations come on top.
    """
    total = sum(module_bytes(module) for module in decoder.modules())
    for block, width in zip(decoder.layers, decoder.config.ffn_widths, strict=True):
        assert isinstance(block, Block)
        total -= sum(tail.nbytes for tail in tails(block.mlp, width))
    return total - (module_bytes(decoder.embed_tokens_per_layer) if where == "disk" else 0)


def view_bytes(view: Decoder, whole: ModelConfig) -> int:
    """Bytes of the weights that a view of a whole uses, as `slice` would write them: of its
    feed-forwards the first neurons, and of the per-layer embeddings those of its layers."""
    by_layer = (view.embed_tokens_per_layer, view.per_layer_model_projection)
    shared_bytes = sum(map(module_bytes, by_layer))
    total = sum(map(module_bytes, view.modules())) - shared_bytes
    for block, width in zip(view.layers, view.config.ffn_widths, strict=True):
        assert isinstance(block, Block)
        mlp, whole_width = block.mlp, stored(block.mlp.gate_proj).shape[0]
        mlp_bytes = sum(map(module_bytes, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)))
        total -= mlp_bytes * (whole_width - width) // whole_width
    return total + shared_bytes * view.config.num_hidden_layers // whole.num_hidden_layers


def tails(mlp: NestedMLP, width: int) -> Iterator[Tensor]:
    """The stored numbers of neurons from `width` on: rows of gate and up, columns of down.

    Matrices held otherwise, which are copies in memory, have none.
    """
    for linear in (mlp.gate_proj, mlp.up_proj):
        if isinstance(linear, Linear | QuantLinear):
            yield stored(linear)[width:]
    if isinstance(mlp.down_proj, QuantLinear):
        weight = mlp.down_proj.weight
        yield weight.blocks[:, weight.format.row_bytes(width) :]
    elif isinstance(mlp.down_proj, Linear):
        yield mlp.down_proj.weight.detach()[:, width:]


def stored(linear: Linear | QuantLinear) -> Tensor:
    """A matrix as it lies in memory, a line for every output."""
    if isinstance(linear, QuantLinear):
        return linear.weight.blocks
    return linear.weight.detach()


def weights(module: nn.Module) -> Iterator[Tensor]:
    """All that a module and those in it hold."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield tensor.detach()
