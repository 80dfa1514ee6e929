"""Torch tensors as weights, and weights as torch tensors: the same bytes both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gemelo.checkpoints.load import Checkpoint
from gemelo.checkpoints.modules import tower_modules
from gemelo.checkpoints.source import DECODER
from gemelo.kernels.packed import FORMATS, Packed, matrix_shape, own_dims
from gemelo.weights.safetensors import TensorToWrite

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FORMAT_OF = {dtype: FORMATS[name] for name, dtype in DTYPES.items()}


def packed(tensor: Tensor) -> Packed:
    """A tensor of floats as it is, of any shape."""
    whole = tensor.detach().contiguous()
    raw = whole.reshape(matrix_shape(tuple(tensor.shape))).view(torch.uint8)
    return Packed(raw.numpy(), FORMAT_OF[tensor.dtype], own_dims(tuple(tensor.shape)))


def held(weight: Packed) -> Tensor:
    """A weight of floats as a tensor of its own type; of a quantised one its blocks."""
    raw = torch.from_numpy(weight.blocks)
    if weight.format.block > 1:
        return raw
    return raw.view(DTYPES[weight.format.name]).reshape(weight.shape)


def entries(tensors: Mapping[str, Tensor]) -> list[TensorToWrite]:
    """What the writers take, every tensor in its own type."""
    return [
        (name, tuple(tensor.shape), FORMAT_OF[tensor.dtype], lambda tensor=tensor: packed(tensor))  # type: ignore[misc]
        for name, tensor in tensors.items()
    ]


def state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All weights of a loaded model by canonical name, the decoder's quantised ones as blocks."""
    decoder = {DECODER + name: held(weight) for name, weight in checkpoint.weights.items()}
    return decoder | tower_modules(checkpoint.source, checkpoint.format).state_dict()
