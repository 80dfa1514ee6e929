"""KV cache: keys and values of every layer that owns some, with the position of every slot.

Full layers keep every position; sliding layers keep a ring of window + chunk - 1 slots, which is
the least that lets the first query of a chunk find its window after the chunk's last key is
written. Position p lives in slot p mod capacity, and each kind of layer keeps one table of the
absolute position in every slot (-1 = empty). The mask is a function of those positions, so nothing
is ever unrolled, trimmed or kept in temporal order: rewinding marks slots empty, and rows of
different lengths sit side by side without padding.

    cache = KVCache(config, context=4096)
    hidden = model(ids, positions, cache)      # calls place() once, then write() in every layer
    cache.rewind(0, end=100)                   # forget positions 100 and up; raises if it cannot

B rows, T tokens of a step, S slots, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from gemelo.config import LAYER_TYPES, LayerType, ModelConfig, kv_slots
from gemelo.config.options import KVFormat
from gemelo.errors import ContextLengthError, GemeloError, InputError
from gemelo.models.layers import KV

Shape = tuple[int, int, int, int]  # (B, S, K, d)
_GROWTH = 256  # slots; full layers grow by doubling, from here


class RewindError(GemeloError):
    """The ring no longer holds the window before the place asked for; encode from the start."""


class Addresses(NamedTuple):
    """Where a layer's keys and values lie; scales are 0 where there are none."""

    k: int
    v: int
    k_scales: int
    v_scales: int
    row_stride: int  # in numbers of k and v

    @classmethod
    def of(cls, k: Sequence[Tensor], v: Sequence[Tensor]) -> Addresses:
        """Of the numbers of keys and of values, each with their scales if they have some."""
        k_address, k_scales = [*(x.data_ptr() for x in k), 0][:2]
        v_address, v_scales = [*(x.data_ptr() for x in v), 0][:2]
        return cls(k_address, v_address, k_scales, v_scales, k[0].stride(0))


class Memory(NamedTuple):
    """Where all keys and values lie, and what lies there: it stays as long as this is held."""

    layers: list[Addresses]
    tensors: list[Tensor]


class SlotPositions(NamedTuple):
    """The positions in the slots of one kind of layer, (B, capacity), and how many are in use."""

    positions: Tensor
    used: int

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """Address, row stride in positions, capacity, used; good as long as the table is held."""
        table = self.positions
        return table.data_ptr(), table.stride(0), table.shape[1], self.used


def check_context(config: ModelConfig, context: int) -> None:
    """Raise ContextLengthError unless the model was trained for `context` tokens."""
    if not isinstance(context, Integral):
        raise InputError(f"context = {context!r:.80}; expected a whole number of tokens")
    if not 0 < context <= config.max_position_embeddings:
        raise ContextLengthError(
            f"a context of {context} tokens is outside 1 to {config.max_position_embeddings}, "
            "which is what the model was trained for"
        )


def check_kv_format(kv_format: str) -> None:
    """Raise InputError for a format that keys and values are not kept in."""
    if kv_format not in get_args(KVFormat):
        formats = ", ".join(get_args(KVFormat))
        raise InputError(f"kv_format {kv_format!r} is not one of {formats}")


class KVCache:
    """Keys and values for `rows` sequences of up to `context` tokens, in every owning layer."""

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        rows: int = 1,
        chunk: int = 512,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kv_format: KVFormat = "plain",
    ) -> None:
        """chunk is the most tokens one step may write, dtype the model's own.

        kv_format "plain" keeps that dtype, "bf16" bfloat16, "int8" 8 bits and a scale a head.
        """
        check_kv_format(kv_format)
        check_context(config, context)
        self.config, self.context, self.rows, self.chunk = config, context, rows, chunk
        self.dtype, self.kv_format = dtype, kv_format
        empty = torch.empty(rows, 0, dtype=torch.long, device=device)
        self.positions = dict.fromkeys(LAYER_TYPES, empty)
        self.stored = {"plain": dtype, "bf16": torch.bfloat16, "int8": torch.int8}[kv_format]
        shape = (rows, 0, config.num_key_value_heads, config.head_dim)

        def store() -> Slots:
            if kv_format == "int8":
                return Int8Slots(shape, dtype, device)
            return PlainSlots(shape, dtype, device, self.stored)

        self.stores: dict[int, tuple[Slots, Slots]] = {
            layer: (store(), store()) for layer in config.kv_layers
        }
        self._used = dict.fromkeys(LAYER_TYPES, 0)
        self._where: dict[LayerType, SlotIndex] = {}
        self._memory: Memory | None = None  # when it has to be asked for again

    def slots(self, kind: LayerType, length: int) -> int:
        """Capacity of one kind of layer for sequences of `length` tokens."""
        return kv_slots(self.config, kind, min(length, self.context), self.chunk)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values allocated; position tables and Python objects left out."""
        return sum(k.nbytes + v.nbytes for k, v in self.stores.values())

    def place(self, positions: Tensor) -> dict[str, Tensor]:
        """Reserve slots for a step's tokens; called once by the model before its layers write.

        positions (B, T) are absolute, -1 for padding. Returns for each kind of layer the positions
        (B, S) of the keys its `write` will return. Mutates the position tables.
        """
        self.make_room(positions.shape[1], int(positions.max()) + 1)
        for kind in LAYER_TYPES:
            self._where[kind] = where = SlotIndex(positions, self.positions[kind].shape[1])
            where.put(self.positions[kind], positions)
        return {kind: self.positions[kind][:, : self._used[kind]] for kind in LAYER_TYPES}

    def write(self, layer: int, new: KV) -> KV:
        """Store k and v (B, K, T, d) of a layer in the slots of the step; all that it sees."""
        kind = self.config.layer_types[layer]
        k, v = self.stores[layer]
        k.put(self._where[kind], new.k)
        v.put(self._where[kind], new.v)
        return KV(k.view(self._used[kind]), v.view(self._used[kind]))

    def memory(self) -> Memory:
        """Of every owning layer, numbers of dtype `stored`. Whoever hands the addresses on holds
        this meanwhile: another thread may let the cache grow, and then nobody else does."""
        memory = self._memory
        if memory is None:
            stores = [(k.tensors(), v.tensors()) for k, v in self.stores.values()]
            layers = [Addresses.of(k, v) for k, v in stores]
            memory = self._memory = Memory(layers, [x for k, v in stores for x in (*k, *v)])
        return memory

    def make_room(self, tokens: int, length: int) -> None:
        """For a step of so many tokens a row that ends at `length`: what `place` does before it
        writes the tables, for whoever writes them itself."""
        if tokens > self.chunk:
            raise InputError(f"a step of {tokens} tokens; the cache takes {self.chunk}")
        self.reserve(length)

    def tables(self) -> list[SlotPositions]:
        """Of every kind of layer, until the cache grows."""
        return [SlotPositions(table, self._used[kind]) for kind, table in self.positions.items()]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens a row, doubling what has to grow."""
        if length > self.context:
            raise ContextLengthError(
                f"{length} tokens do not fit the context of {self.context}; shorten the prompt or "
                f"raise the context (the model takes {self.config.max_position_embeddings})"
            )
        for kind, table in self.positions.items():
            capacity = table.shape[1]
            needed = self.slots(kind, length)
            if needed > capacity:
                self._grow(kind, self.slots(kind, max(needed, 2 * capacity, _GROWTH)))
            self._used[kind] = max(self._used[kind], needed)

    def _grow(self, kind: LayerType, capacity: int) -> None:
        """A ring that has not wrapped yet lies in order, so growing keeps every slot's place.

        The table comes last: until then an interrupt leaves slots that nobody uses.
        """
        table, self._memory = self.positions[kind], None
        for layer, stores in self.stores.items():
            if self.config.layer_types[layer] == kind:
                for store in stores:
                    store.grow(capacity)
        grown = table.new_full((self.rows, capacity), -1)
        grown[:, : table.shape[1]] = table
        self.positions[kind] = grown

    @torch.inference_mode()
    def rewind(self, row: int, end: int) -> None:
        """Forget positions `end` and up in one row, so that the next token may be written there.

        Raises `RewindError`, changing nothing, when a ring has overwritten part of the window
        before `end`: it reaches chunk - 1 tokens back from the furthest position ever written.
        """
        for kind, table in self.positions.items():
            window = self.config.window(kind)
            first = 0 if window is None else max(0, end - window + 1)
            num_held = int(((table[row] >= first) & (table[row] < end)).sum())
            if num_held < end - first:
                raise RewindError(
                    f"position {end} is too far back: the ring of window {window} and chunk "
                    f"{self.chunk} holds {num_held} of the {end - first} keys before it"
                )
        for table in self.positions.values():
            table[row].masked_fill_(table[row] >= end, -1)
        self._shrink()

    @torch.inference_mode()
    def clear(self, row: int = 0) -> None:
        """Forget a row."""
        for table in self.positions.values():
            table[row].fill_(-1)
        self._shrink()

    def _shrink(self) -> None:
        """Attend no further than the last slot that holds something: as if the rest never was."""
        for kind, table in self.positions.items():
            filled = (table >= 0).any(0).nonzero()
            self._used[kind] = int(filled[-1]) + 1 if len(filled) else 0

    def empty(self, rows: int = 1) -> KVCache:
        """A cache like this one that holds nothing."""
        device = self.positions[LAYER_TYPES[0]].device
        return KVCache(
            self.config, self.context, rows, self.chunk, self.dtype, device, self.kv_format
        )

    @torch.inference_mode()
    def repeat(self, rows: int) -> KVCache:
        """A cache of `rows` copies of row 0: encode a prompt once, continue it many times."""
        copy = self.empty(rows)
        for kind, table in self.positions.items():
            copy._grow(kind, table.shape[1])
            copy.positions[kind][:] = table[:1]
        for layer, (k, v) in self.stores.items():
            copy.stores[layer][0].copy_row(k)
            copy.stores[layer][1].copy_row(v)
        copy._used = dict(self._used)
        return copy


class SlotIndex:
    """Which slots a step's tokens go to: slot = position mod capacity, padding nowhere."""

    def __init__(self, positions: Tensor, capacity: int) -> None:
        rows, tokens = positions.shape
        row = torch.arange(rows, device=positions.device)[:, None].expand(rows, tokens)
        token = torch.arange(tokens, device=positions.device)[None].expand(rows, tokens)
        real = positions >= 0
        self.row, self.token, self.slot = row[real], token[real], positions[real] % capacity

    def put(self, table: Tensor, values: Tensor) -> None:
        """table (B, S, ...) takes the real tokens of values (B, T, ...)."""
        table[self.row, self.slot] = values[self.row, self.token]


class Slots(Protocol):
    """Keys or values of one layer, in B rows of S slots."""

    @property
    def nbytes(self) -> int: ...
    def put(self, where: SlotIndex, new: Tensor) -> None: ...
    def view(self, used: int) -> Tensor: ...
    def grow(self, capacity: int) -> None: ...
    def copy_row(self, other: Any) -> None: ...
    def tensors(self) -> list[Tensor]: ...  # of numbers, of scales if there are some


class PlainSlots:
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

    def copy_row(self, other: PlainSlots) -> None:
        """Every row becomes row 0 of `other`."""
        self.x[:] = other.x[:1]

    def tensors(self) -> list[Tensor]:
        """Its one tensor, (B, S, K, d)."""
        return [self.x]


class Int8Slots:
    """Slots as signed bytes (B, S, K, d), with a float16 scale a head and position (B, S, K, 1):
    about half of bfloat16."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> None:
        """dtype is what `view` decodes to, the model's own."""
        self.dtype = dtype
        self.levels = PlainSlots(shape, torch.int8, device)
        self.scales = PlainSlots((*shape[:3], 1), torch.float16, device)

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

    def copy_row(self, other: Int8Slots) -> None:
        """Every row becomes row 0 of `other`."""
        self.levels.copy_row(other.levels)
        self.scales.copy_row(other.scales)

    def tensors(self) -> list[Tensor]:
        """Levels (B, S, K, d) and scales (B, S, K, 1)."""
        return [self.levels.x, self.scales.x]
