"""Kullback-Leibler divergence: how far a model's next-token distributions lie from another's.

A share of the largest score lets a wrong weight through wherever scores are small. The divergence
weighs every score by what it is worth, and grows with the square of an error. A bound on it is held
against a norm weight five percent off (`off`), the smallest mistake that a test has to see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.kernels.quants import Floats
from gemelo.models.decoder import Decoder
from gemelo.models.layers import KV, Attention, attend

FEW = 16  # up to so many tokens attention is a plain float sum


def divergence(found: Floats | Tensor, expected: Floats | Tensor) -> float:
    """KL(expected || found) of scores (..., V) at the position where it is largest, in nats."""
    p, q = (torch.from_numpy(np.asarray(x)).double().log_softmax(-1) for x in (expected, found))
    return float((p.exp() * (p - q)).sum(-1).max())


@contextmanager
def off(decoder: ModuleDecoder | Decoder, layer: int = 0, factor: float = 1.05) -> Iterator[None]:
    """With the weight of one norm of one layer scaled."""
    module = decoder.module if isinstance(decoder, ModuleDecoder) else decoder
    weight = module.layers[layer].input_layernorm.weight
    right = weight.clone()
    weight.mul_(factor)
    try:
        yield
    finally:
        weight.copy_(right)


@contextmanager
def bfloat16_attention() -> Iterator[None]:
    """With queries, keys, values and weights of many tokens rounded to bfloat16, as tiles are."""
    with mock.patch.object(Attention, "attention_interface", staticmethod(_attend(attend))):
        yield


def _attend(plain: object) -> object:
    def attend(q: Tensor, kv: KV, mask: Tensor, scale: float) -> Tensor:
        if q.shape[0] * q.shape[2] <= FEW:
            return plain(q, kv, mask, scale)  # type: ignore[operator,no-any-return]
        k, v = (rounded(x).repeat_interleave(q.shape[1] // x.shape[1], 1) for x in kv)
        scores = (rounded(q) @ k.transpose(-1, -2) * scale).masked_fill(~mask, -1e30)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        y = rounded(weights) @ v / weights.sum(-1, keepdim=True)
        return y.transpose(1, 2).flatten(2)

    return attend


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()
