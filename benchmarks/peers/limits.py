"""What this machine can do at most, as far as PyTorch can tell: reading memory, and multiplying.

limits.measured(threads=2)["read_bytes_per_s"]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from gemelo.evals.machine import memory_bandwidth
from gemelo.kernels import native

_SIDE, _ROUNDS = 2048, 6


def measured(threads: int) -> dict[str, float]:
    """Bytes a second read, and operations a second of square products in three types, best of six.

    The products are PyTorch's own, which uses tiles (AMX) or dot products where there are some; a
    peak that better code may pass.
    """
    torch.set_num_threads(threads)
    native.set_threads(threads)
    floats = torch.randn(_SIDE, _SIDE)
    halves, bytes_ = floats.bfloat16(), floats.clamp(-1, 1).mul(100).to(torch.int8)
    return {
        "read_bytes_per_s": memory_bandwidth(),
        "f32_operations_per_s": rate(lambda: torch.mm(floats, floats)),
        "bf16_operations_per_s": rate(lambda: torch.mm(halves, halves)),
        "int8_operations_per_s": rate(lambda: torch._int_mm(bytes_, bytes_)),
    }


def rate(product: Callable[[], object]) -> float:
    """Operations a second of a square product."""
    best_s = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        product()
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * _SIDE**3 / best_s
