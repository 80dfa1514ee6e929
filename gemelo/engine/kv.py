"""KV cache: keys and values of every layer that owns some, in slots whose positions are known.

A cache holds one sequence: many callers have a cache each, and none is padded to another's length.
It belongs to a decoder, which makes it (`Decoder.cache`): the native program and the NumPy
reference keep arrays of the host in one of three formats, modules keep tensors of their device.
Where a token goes and what can be taken back is the same for all (`slots`).

    cache = decoder.cache(context=4096)
    scores = step.prefill(decoder, cache, tokens)
    cache.rewind(end=100)                      # forget positions 100 and up; raises if it cannot

T tokens of a step, S slots, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from gemelo.config import LAYER_TYPES, LayerType, ModelConfig
from gemelo.config.options import KVFormat
from gemelo.engine.slots import Integers, Slots, Table
from gemelo.engine.snapshots import Snapshot, Store, as_slice
from gemelo.errors import InputError
from gemelo.kernels.quants import FORMATS, Floats, pack

Shape = tuple[int, int, int]  # (S, K, d)
Pair = tuple[Store, Store]  # keys and values of a layer


class Addresses(NamedTuple):
    """Where a layer's keys and values lie; scales are 0 where there are none."""

    k: int
    v: int
    k_scales: int
    v_scales: int


@dataclass
class Memory:
    """Where all keys and values lie, and what lies there: it stays as long as this is held.

    `native` is what the native backend has made of it; it goes when the cache grows.
    """

    layers: list[Addresses]
    arrays: list[NDArray[Any]]
    native: Any = None


def check_kv_format(kv_format: str) -> None:
    """Raise InputError for a format that keys and values are not kept in."""
    if kv_format not in get_args(KVFormat):
        formats = ", ".join(get_args(KVFormat))
        raise InputError(f"kv_format {kv_format!r} is not one of {formats}")


class KVCache:
    """Keys and values for one sequence of up to `context` tokens, in every layer that owns some."""

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        chunk: int = 512,
        kv_format: KVFormat = "plain",
        store: Callable[[Shape], Store] | None = None,
    ) -> None:
        """chunk is the most tokens that one step may write, and says how large rings become.

        kv_format "plain" keeps the decoder's own numbers (float32 on the host), "bf16" bfloat16,
        "int8" 8 bits and a scale a head. store makes the place of one layer's keys or values; None
        makes arrays of the host.
        """
        check_kv_format(kv_format)
        self.config, self.kv_format, self.store = config, kv_format, store
        self.slots = Slots(config, context, chunk)
        shape = self._shape = (0, config.num_key_value_heads, config.head_dim)
        self._make_store = STORES[kv_format] if store is None else store
        self.stores: dict[int, tuple[Any, Any]] = {
            layer: (self._make_store(shape), self._make_store(shape)) for layer in config.kv_layers
        }
        self._memory: Memory | None = None  # when it has to be asked for again

    @property
    def context(self) -> int:
        """The most tokens of the sequence."""
        return self.slots.context

    @property
    def chunk(self) -> int:
        """The most tokens that a step may write."""
        return self.slots.chunk

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values allocated; position tables and Python objects left out."""
        return sum(k.nbytes + v.nbytes for k, v in self.stores.values())

    def make_room(self, tokens: int, length: int) -> None:
        """For a step of so many tokens that ends at `length`, doubling what has to grow.

        Raises InputError or ContextLengthError where there can be none.
        """
        self.slots.check_room(tokens, length)
        for kind, capacity in self.slots.growth(length).items():
            self._grow(kind, capacity)

    def _grow(self, kind: LayerType, capacity: int) -> None:
        """The table comes last: until then an interrupt leaves slots that nobody uses."""
        self._memory = None
        for layer in self._owners(kind):
            for store in self.stores[layer]:
                store.grow(capacity)
        self.slots.grow(kind, capacity)

    def tables(self) -> list[Table]:
        """Of every kind of layer, until the cache grows."""
        return [self.slots.table(kind) for kind in LAYER_TYPES]

    def memory(self) -> Memory:
        """Where arrays of the host lie. Whoever hands the addresses on holds this meanwhile:
        another thread may let the cache grow, and then nobody else does."""
        memory = self._memory
        if memory is None:
            stores = list(self.stores.values())
            memory = self._memory = Memory(
                [_addresses(k, v) for k, v in stores],
                [array for k, v in stores for array in (*k.arrays, *v.arrays)],
            )
        return memory

    def rewind(self, end: int) -> None:
        """Forget positions `end` and up; see `Slots.rewind`."""
        self.slots.rewind(end)

    def clear(self) -> None:
        """Forget all positions."""
        self.slots.clear()

    def empty(self) -> KVCache:
        """A cache like this one that holds nothing."""
        return KVCache(self.config, self.context, self.chunk, self.kv_format, self.store)

    def copy(self) -> KVCache:
        """A cache that holds the same, to go on another way: read a prompt once, continue it many
        times."""
        copy = self.empty()
        for kind, table in self.slots.tables.items():
            copy._grow(kind, len(table))
            used = slice(self.slots.used[kind])
            copy._put(kind, self.stores, used, used)
        copy.slots.copy_from(self.slots)
        return copy

    def copy_prefix(self, end: int, snapshot: Snapshot | None = None) -> KVCache:
        """A cache that holds positions below `end` of this one, in the same slots; between steps
        only. A snapshot before `end` stands for what rings have overwritten.

        Raises `RewindError` where full layers do not hold all of them, or rings do not hold the
        window and there is no snapshot.
        """
        if snapshot is None:
            self.slots.check_held(end)
        copy = self.empty()
        copy.make_room(0, end)
        for kind, table in self.slots.tables.items():
            if snapshot is None or kind not in snapshot.positions:
                held = np.flatnonzero((table >= 0) & (table < end))
                copy._take(kind, table[held], self.stores, held)
        if snapshot is not None:
            copy.restore(snapshot)
        copy.slots.use(end)
        return copy

    def snapshot(self, end: int) -> Snapshot:
        """What sliding layers hold of the window before `end`; raises `RewindError` if a ring has
        overwritten part of it."""
        self.slots.check_held(end)
        positions, stores = {}, {}
        for kind in LAYER_TYPES:
            if self.config.window(kind) is not None:
                positions[kind] = np.arange(self.slots.first_seen(kind, end), end, dtype=np.int64)
                of = as_slice(self.slots.mapping(kind, positions[kind]))
                shape = (len(positions[kind]), *self._shape[1:])
                for layer in self._owners(kind):
                    stores[layer] = self._make_store(shape), self._make_store(shape)
                    for own, other in zip(stores[layer], self.stores[layer], strict=True):
                        own.copy_slots(slice(None), other, of)
        return Snapshot(end, positions, stores)

    def restore(self, snapshot: Snapshot) -> None:
        """Hold what was held when it was taken, and nothing after; raises `RewindError`, changing
        nothing, where full layers do not hold all of it any more. An interrupt leaves rings that
        hold nothing, which the next rewind tells."""
        kinds = list(snapshot.positions)
        self.slots.check_held(snapshot.end, [kind for kind in LAYER_TYPES if kind not in kinds])
        for kind in kinds:
            self.slots.tables[kind][:] = -1
        for kind, positions in snapshot.positions.items():
            self._take(kind, positions, snapshot.stores, slice(None))
        self.slots.mark_empty(snapshot.end)
        self.slots.use(snapshot.end)  # as many slots as if there never had been more

    def _take(
        self, kind: LayerType, positions: Integers, stores: Mapping[int, Pair], of: Integers | slice
    ) -> None:
        """Hold positions of one type of layer as they lie in slots `of` of others' stores."""
        to = self.slots.mapping(kind, positions)
        self._put(kind, stores, as_slice(to), of if isinstance(of, slice) else as_slice(of))
        self.slots.tables[kind][to] = positions

    def _put(
        self, kind: LayerType, stores: Mapping[int, Pair], to: Integers | slice,
        of: Integers | slice,
    ) -> None:  # fmt: skip
        for layer in self._owners(kind):
            for own, other in zip(self.stores[layer], stores[layer], strict=True):
                own.copy_slots(to, other, of)

    def _owners(self, kind: LayerType) -> list[int]:
        """The layers of one type that own keys."""
        return [layer for layer in self.stores if self.config.layer_types[layer] == kind]


class FloatStore:
    """Slots (S, K, d) as float32, or as bfloat16: the upper halves of float32."""

    def __init__(self, shape: Shape, format: str = "f32") -> None:
        self.format = FORMATS[format]
        # Zeroed, not empty: a NaN in a masked slot would still poison the weighted sum.
        self.x: NDArray[Any] = np.zeros(shape, np.float32 if format == "f32" else np.uint16)

    @property
    def nbytes(self) -> int:
        """Bytes of the slots, used or not."""
        return self.x.nbytes

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """Its one array, (S, K, d)."""
        return [self.x]

    def put(self, slots: Integers, new: Floats) -> None:
        """new (T, K, d), each token to its slot."""
        stored = pack(new, self.format).blocks.view(self.x.dtype)
        self.x[slots] = stored.reshape(new.shape)

    def view(self, used: int) -> Floats:
        """The first `used` slots, (S, K, d) in float32."""
        x = self.x[:used]
        wide: Floats = x if x.dtype == np.float32 else (x.astype(np.uint32) << 16).view(np.float32)
        return wide

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots; those that are filled stay."""
        self.x = _grown(self.x, capacity)

    def copy_slots(self, to: Integers | slice, other: FloatStore, of: Integers | slice) -> None:
        """Hold in slots `to` what `other` holds in `of`."""
        self.x[to] = other.x[of]


class Int8Store:
    """Slots as signed bytes (S, K, d), with a float16 scale a head and position (S, K, 1): about
    half of bfloat16."""

    def __init__(self, shape: Shape) -> None:
        self.levels = np.zeros(shape, np.int8)
        self.scales = np.zeros((*shape[:2], 1), np.float16)

    @property
    def nbytes(self) -> int:
        """Bytes of levels and scales."""
        return self.levels.nbytes + self.scales.nbytes

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """Levels (S, K, d) and scales (S, K, 1)."""
        return [self.levels, self.scales]

    def put(self, slots: Integers, new: Floats) -> None:
        """new (T, K, d), rounded to 127 levels of its head's largest magnitude."""
        scale = np.maximum(np.abs(new).max(-1, keepdims=True) / np.float32(127), np.float32(1e-7))
        stored = scale.astype(np.float16)
        self.scales[slots] = stored
        levels = np.rint(new / stored.astype(np.float32))
        self.levels[slots] = np.clip(levels, -127, 127).astype(np.int8)

    def view(self, used: int) -> Floats:
        """The first `used` slots, (S, K, d) in float32."""
        return self.levels[:used].astype(np.float32) * self.scales[:used].astype(np.float32)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots; those that are filled stay."""
        self.levels = _grown(self.levels, capacity)
        self.scales = _grown(self.scales, capacity)

    def copy_slots(self, to: Integers | slice, other: Int8Store, of: Integers | slice) -> None:
        """Hold in slots `to` what `other` holds in `of`."""
        self.levels[to] = other.levels[of]
        self.scales[to] = other.scales[of]


STORES: dict[KVFormat, Callable[[Shape], FloatStore | Int8Store]] = {
    "plain": FloatStore,
    "bf16": lambda shape: FloatStore(shape, "bf16"),
    "int8": Int8Store,
}


def _grown(old: NDArray[Any], capacity: int) -> NDArray[Any]:
    """An array (S, ...) with room for `capacity` slots; itself, if it was grown before an
    interrupt."""
    if len(old) >= capacity:
        return old
    grown = np.zeros((capacity, *old.shape[1:]), old.dtype)
    grown[: len(old)] = old
    return grown


def _addresses(k: FloatStore | Int8Store, v: FloatStore | Int8Store) -> Addresses:
    """Of the numbers of keys and of values, each with their scales if they have some."""

    def of(store: FloatStore | Int8Store) -> tuple[int, int]:
        found = [array.__array_interface__["data"][0] for array in store.arrays]
        return (found + [0])[0], (found + [0])[1]

    (k_at, k_scales), (v_at, v_scales) = of(k), of(v)
    return Addresses(k_at, v_at, k_scales, v_scales)
