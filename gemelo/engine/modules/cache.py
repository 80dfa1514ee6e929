"""KV cache of modules: keys and values as tensors of their device, in slots that the host knows.

What modules ask of a cache (`models.layers.Cache`), on a `KVCache` whose stores are tensors. Where
tokens go is the same as for the native program; only the numbers lie elsewhere.

    cache = tensor_cache(config, context=4096, dtype=torch.bfloat16, device="cuda")
    hidden = module(ids, positions, ModuleCache(cache))          # of one row

T tokens of a piece, S slots, K key/value heads, d head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from gemelo.config import LAYER_TYPES, LayerType, ModelConfig
from gemelo.config.options import KVFormat
from gemelo.engine.kv import KVCache, Shape
from gemelo.engine.slots import Integers
from gemelo.models.layers import KV


def tensor_cache(
    config: ModelConfig,
    context: int,
    chunk: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    kv_format: KVFormat = "plain",
) -> KVCache:
    """A cache of tensors. dtype is the model's own; "plain" keeps that, "bf16" bfloat16, "int8" 8
    bits and a scale a head."""
    store = partial(store_of, kv_format, dtype, device)
    return KVCache(config, context, chunk, kv_format, store)


class ModuleCache:
    """A cache as a module sees it, of one row: tokens are placed once, then written by layer."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._slots: dict[LayerType, Tensor] = {}  # of the tokens, (T,)

    def place(self, positions: Tensor) -> dict[str, Tensor]:
        """Reserve slots for a piece's tokens; called once by the model before its layers write.

        positions (1, T) are absolute. Returns for each kind of layer the positions (1, S) of the
        keys its `write` will return.
        """
        cache, [host] = self.cache, positions.cpu().numpy()
        end = int(host[-1]) + 1
        cache.make_room(len(host), end)
        cache.slots.use(end)
        cache.slots.place(host)
        for kind in LAYER_TYPES:
            slots = torch.from_numpy(cache.slots.mapping(kind, host))
            self._slots[kind] = slots.to(positions.device)
        return {
            kind: torch.from_numpy(table.positions[None, : table.used].copy()).to(positions.device)
            for kind, table in zip(LAYER_TYPES, cache.tables(), strict=True)
        }

    def write(self, layer: int, new: KV) -> KV:
        """Store k and v (1, K, T, d) of a layer in the slots of the piece; all that it sees."""
        kind = self.cache.config.layer_types[layer]
        used = self.cache.slots.used[kind]
        k, v = self.cache.stores[layer]
        k.put(self._slots[kind], new.k)
        v.put(self._slots[kind], new.v)
        return KV(k.view(used), v.view(used))


class TensorStore(Protocol):
    """Keys or values of one layer as tensors, in S slots."""

    @property
    def nbytes(self) -> int: ...
    def put(self, slots: Tensor, new: Tensor) -> None: ...
    def view(self, used: int) -> Tensor: ...
    def grow(self, capacity: int) -> None: ...
    def copy_slots(self, to: Integers | slice, other: Any, of: Integers | slice) -> None: ...


class FloatTensors:
    """Slots as they are, (S, K, d); in the model's own dtype a view of them costs nothing."""

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

    def put(self, slots: Tensor, new: Tensor) -> None:
        """new (1, K, T, d), each token to its slot."""
        self.x[slots] = new[0].transpose(0, 1).to(self.x.dtype)

    def view(self, used: int) -> Tensor:
        """The first `used` slots in the model's dtype, (1, K, S, d)."""
        return self.x[:used].transpose(0, 1)[None].to(self.dtype)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots; those that are filled stay."""
        old = self.x
        if len(old) >= capacity:  # grown before an interrupt
            return
        grown = old.new_zeros(capacity, *old.shape[1:])
        grown[: len(old)] = old
        self.x = grown

    @torch.inference_mode()  # in which a step has made them
    def copy_slots(self, to: Integers | slice, other: FloatTensors, of: Integers | slice) -> None:
        """Hold in slots `to` what `other` holds in `of`."""
        self.x[_index(to)] = other.x[_index(of)]


class Int8Tensors:
    """Slots as signed bytes (S, K, d), with a float16 scale a head and position (S, K, 1): about
    half of bfloat16."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> None:
        """dtype is what `view` decodes to, the model's own."""
        self.dtype = dtype
        self.levels = FloatTensors(shape, torch.int8, device)
        self.scales = FloatTensors((*shape[:2], 1), torch.float16, device)

    @property
    def nbytes(self) -> int:
        """Bytes of levels and scales."""
        return self.levels.nbytes + self.scales.nbytes

    def put(self, slots: Tensor, new: Tensor) -> None:
        """new (1, K, T, d), rounded to 127 levels of its head's largest magnitude."""
        scale = (new.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7).half()
        self.scales.put(slots, scale)
        self.levels.put(slots, (new.float() / scale.float()).round().clamp(-127, 127).char())

    def view(self, used: int) -> Tensor:
        """The first `used` slots, decoded to the model's dtype, (1, K, S, d)."""
        return self.levels.view(used).to(self.dtype) * self.scales.view(used).to(self.dtype)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots; those that are filled stay."""
        self.levels.grow(capacity)
        self.scales.grow(capacity)

    def copy_slots(self, to: Integers | slice, other: Int8Tensors, of: Integers | slice) -> None:
        """Hold in slots `to` what `other` holds in `of`."""
        self.levels.copy_slots(to, other.levels, of)
        self.scales.copy_slots(to, other.scales, of)


def store_of(
    kv_format: KVFormat, dtype: torch.dtype, device: torch.device | str, shape: Shape
) -> TensorStore:
    """A store of a format, empty."""
    if kv_format == "int8":
        return Int8Tensors(shape, dtype, device)
    stored = torch.bfloat16 if kv_format == "bf16" else dtype
    return FloatTensors(shape, dtype, device, stored)


def _index(slots: Integers | slice) -> Tensor | slice:
    """Slots as tensors of any device are indexed by them."""
    return slots if isinstance(slots, slice) else torch.from_numpy(slots)
