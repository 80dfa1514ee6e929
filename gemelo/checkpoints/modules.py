"""Modules of a checkpoint: a decoder or towers in PyTorch, over the weights that were loaded.

The network is built on the meta device, which costs nothing, and every weight is assigned: plain
floats of the activations' dtype as tensors over the same memory, all else as layers that multiply
with blocks (`models.quantised`), so that nothing is copied on the CPU. Who runs a decoder as
modules: CUDA, training, `Model.forward`, and the tests that compare it with the native program.

    decoder = decoder_module(checkpoint.config, checkpoint.weights, device="cuda")
    towers = tower_modules(checkpoint.source, checkpoint.format)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from gemelo.checkpoints.formats import is_tiny
from gemelo.checkpoints.source import DECODER, PER_LAYER_EMBEDDING, Source
from gemelo.config import ModelConfig
from gemelo.config.options import WeightFormat
from gemelo.errors import GemeloError
from gemelo.kernels import native
from gemelo.kernels.quants import Packed, unpack
from gemelo.models.decoder import Decoder
from gemelo.models.layers import Embedding, Linear
from gemelo.models.multimodal import Towers, decoder_of, towers_of
from gemelo.models.quantised import FLOATS, QuantEmbedding, QuantLinear, tensor_of
from gemelo.models.siglip import Affine
from gemelo.weights.tensors import Weights

_TABLE = PER_LAYER_EMBEDDING.removeprefix(DECODER)


def decoder_module(
    config: ModelConfig,
    weights: Weights,
    device: torch.device | str = "cpu",
    table_device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Decoder:
    """A decoder as modules; the per-layer table, of which only rows ever travel, may stay on the
    CPU. dtype is the activations'; None is bfloat16 where all matrices are that, else float32."""
    _share_threads()
    dtype = activation_dtype(weights) if dtype is None else dtype
    with torch.device("meta"):
        module = decoder_of(config)
    for name, weight in weights.items():
        target = table_device if name == _TABLE else device
        _assign(module, name, weight, dtype, target)
    return module.eval()


def _assign(
    module: nn.Module, name: str, weight: Packed, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Put one weight in its place; what is not of the activations' dtype brings its own layer."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    is_matrix = isinstance(owner, Linear | Embedding)
    if is_tiny(name):
        tensor = torch.from_numpy(unpack(weight)).to(device, dtype)
    elif is_matrix and FLOATS.get(weight.format.name) != dtype:
        layer: nn.Module
        if isinstance(owner, Embedding):
            layer = QuantEmbedding(weight, dtype, device)
        else:
            layer = QuantLinear(weight, device)
        parent, _, attribute = owner_name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer)
        return
    else:
        tensor = tensor_of(weight).to(device)
    owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


def activation_dtype(weights: Weights) -> torch.dtype:
    """bfloat16 if all the decoder's matrices are that, else float32.

    The per-layer table, which is only gathered from, and the streams' coefficients, which some
    converters widen, have no say. float16 is never computed in: Gemma 3's residual stream passes
    its largest number, 65504.
    """
    matrices = (
        weight
        for name, weight in weights.items()
        if len(weight.shape) == 2 and name != _TABLE and not is_tiny(name)
    )
    return held_dtype(matrices)


def held_dtype(weights: Iterable[Packed]) -> torch.dtype:
    """bfloat16 where all weights are stored as that, else float32."""
    whole = all(weight.format.name == "bf16" for weight in weights)
    return torch.bfloat16 if whole else torch.float32


# ---- towers --------------------------------------------------------------------------------------


def tower_modules(
    source: Source, format: WeightFormat = "native", device: torch.device | str = "cpu"
) -> Towers:
    """The towers of a source. They compute in bfloat16 or float32 if `format` asks for it, else in
    what all their weights are stored as; in float32 for a mixture."""
    _share_threads()
    names = [name for name in source.shapes if not name.startswith(DECODER)]
    if format in ("bf16", "f32"):
        dtype = FLOATS[format]
    else:
        dtype = held_dtype(source.tensor(name) for name in names)
    with torch.device("meta"):
        towers = towers_of(source.config)
    for name in names:
        try:
            _assign_to_tower(towers, name, source.tensor(name), dtype, device)
        except GemeloError as error:
            raise type(error)(f"{source.path}: {name}: {error}") from None
    return towers.eval()


def _assign_to_tower(
    towers: nn.Module, name: str, weight: Packed, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Put a tower's weight in its place, as the file has it wherever `dtype` can use it so."""
    owner_name, _, leaf = name.rpartition(".")
    owner = towers.get_submodule(owner_name)
    if weight.format.name in FLOATS:
        tensor = tensor_of(weight)
        tensor = tensor if isinstance(owner, Affine) else tensor.to(dtype)
    else:
        tensor = torch.from_numpy(unpack(weight)).to(dtype)
    owner.register_parameter(leaf, nn.Parameter(tensor.to(device), requires_grad=False))


def _share_threads() -> None:
    """torch takes as many threads as the native kernels."""
    if native.extension is not None:
        torch.set_num_threads(native.extension.threads())
