"""KV cache of modules: keys and values as tensors of their device, in slots that the host knows.

What modules ask of a cache (`models.layers.Cache`), on a `KVCache` whose stores are tensors. Where
tokens go is the same as for the native program; only the numbers lie elsewhere.

    cache = tensor_cache(config, context=4096, dtype=torch.bfloat16, device="cuda")
    hidden = module(ids, positions, ModuleCache(cache))

B rows, T tokens of a step, S slots, K key/value heads, d head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from gemelo.config import LAYER_TYPES, LayerType, ModelConfig
from gemelo.config.options import KVFormat
from gemelo.engine.kv import KVCache, Shape
from gemelo.models.layers import KV


def tensor_cache(
    config: ModelConfig,
    context: int,
    rows: int = 1,
    chunk: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    kv_format: KVFormat = "plain",
) -> KVCache:
    """A cache of tensors. dtype is the model's own; "plain" keeps that, "bf16" bfloat16, "int8" 8
    bits and a scale a head."""
    store = partial(store_of, kv_format, dtype, device)
    return KVCache(config, context, rows, chunk, kv_format, store)


class ModuleCache:
    """A cache as a step of a module sees it: tokens are placed once, then written by layer."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._where: dict[LayerType, SlotIndex] = {}

    def place(self, positions: Tensor) -> dict[str, Tensor]:
        """Reserve slots for a step's tokens; called once by the model before its layers write.

        positions (B, T) are absolute, -1 for padding. Returns for each kind of layer the positions
        (B, S) of the keys its `write` will return.
        """
        cache, host = self.cache, positions.cpu().numpy()
        cache.make_room(host.shape[1], int(host.max()) + 1)
        for kind in LAYER_TYPES:
            slots = torch.from_numpy(cache.slots.mapping(kind, host))
            self._where[kind] = SlotIndex(slots.to(positions.device))
        cache.slots.place(host)
        return {
            kind: torch.from_numpy(table.positions[:, : table.used].copy()).to(positions.device)
            for kind, table in zip(LAYER_TYPES, cache.tables(), strict=True)
        }

    def write(self, layer: int, new: KV) -> KV:
        """Store k and v (B, K, T, d) of a layer in the slots of the step; all that it sees."""
        kind = self.cache.config.layer_types[layer]
        used = self.cache.slots.used[kind]
        k, v = self.cache.stores[layer]
        k.put(self._where[kind], new.k)
        v.put(self._where[kind], new.v)
        return KV(k.view(used), v.view(used))


class SlotIndex:
    """Which slots a step's tokens go to, (B, T); -1, padding, nowhere."""

    def __init__(self, slots: Tensor) -> None:
        self.row, self.token = (slots >= 0).nonzero(as_tuple=True)
        self.slot = slots[self.row, self.token]

    def put(self, table: Tensor, values: Tensor) -> None:
        """table (B, S, ...) takes the real tokens of values (B, T, ...)."""
        table[self.row, self.slot] = values[self.row, self.token]


class TensorStore(Protocol):
    """Keys or values of one layer as tensors, in B rows of S slots."""

    @property
    def nbytes(self) -> int: ...
    def put(self, where: SlotIndex, new: Tensor) -> None: ...
    def view(self, used: int) -> Tensor: ...
    def grow(self, capacity: int) -> None: ...
    def copy_row(self, other: Any) -> None: ...


class FloatTensors:
    """Slots as they are, (B, S, K, d); in the model's own dtype a view of them costs nothing."""

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device | str,
        stored: torch.dtype | None = None,
    ) -> None:
        """stored is the dtype that is kept, if not the model's."""
        self.dtype = dtype
        # Zeroed, not empty: a NaN in a masked slot would still poison the weighted sum.
        self.x = torch.zeros(shape, dtype=stored or dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of the slots, used or not."""
        return self.x.nbytes

    def put(self, where: SlotIndex, new: Tensor) -> None:
        """new (B, K, T, d)."""
        where.put(self.x, new.transpose(1, 2).to(self.x.dtype))

    def view(self, used: int) -> Tensor:
        """The first `used` slots in the model's dtype, (B, K, S, d)."""
        return self.x[:, :used].transpose(1, 2).to(self.dtype)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots a row; those that are filled stay."""
        old = self.x
        if old.shape[1] >= capacity:  # grown before an interrupt
            return
        grown = old.new_zeros(old.shape[0], capacity, *old.shape[2:])
        grown[:, : old.shape[1]] = old
        self.x = grown

    def copy_row(self, other: FloatTensors) -> None:
        """Every row becomes row 0 of `other`."""
        self.x[:] = other.x[:1]


class Int8Tensors:
    """Slots as signed bytes (B, S, K, d), with a float16 scale a head and position (B, S, K, 1):
    about half of bfloat16."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> None:
        """dtype is what `view` decodes to, the model's own."""
        self.dtype = dtype
        self.levels = FloatTensors(shape, torch.int8, device)
        self.scales = FloatTensors((*shape[:3], 1), torch.float16, device)

    @property
    def nbytes(self) -> int:
        """Bytes of levels and scales."""
        return self.levels.nbytes + self.scales.nbytes

    def put(self, where: SlotIndex, new: Tensor) -> None:
        """new (B, K, T, d), rounded to 127 levels of its head's largest magnitude."""
        scale = (new.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7).half()
        self.scales.put(where, scale)
        self.levels.put(where, (new.float() / scale.float()).round().clamp(-127, 127).char())

    def view(self, used: int) -> Tensor:
        """The first `used` slots, decoded to the model's dtype, (B, K, S, d)."""
        return self.levels.view(used).to(self.dtype) * self.scales.view(used).to(self.dtype)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots a row; those that are filled stay."""
        self.levels.grow(capacity)
        self.scales.grow(capacity)

    def copy_row(self, other: Int8Tensors) -> None:
        """Every row becomes row 0 of `other`."""
        self.levels.copy_row(other.levels)
        self.scales.copy_row(other.scales)


def store_of(
    kv_format: KVFormat, dtype: torch.dtype, device: torch.device | str, shape: Shape
) -> TensorStore:
    """A store of a format, empty."""
    if kv_format == "int8":
        return Int8Tensors(shape, dtype, device)
    stored = torch.bfloat16 if kv_format == "bf16" else dtype
    return FloatTensors(shape, dtype, device, stored)
