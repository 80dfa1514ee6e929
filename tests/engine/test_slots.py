"""Slots: which position lies where, how far it rewinds, and that modules see the same places."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gemelo.config import FULL, LAYER_TYPES, SLIDING, LayerType
from gemelo.engine import slots as slots_module
from gemelo.engine.kv import KVCache
from gemelo.engine.modules.cache import ModuleCache, tensor_cache
from gemelo.engine.slots import Integers, RewindError, Slots, check_context
from gemelo.errors import ContextLengthError, InputError
from tests.conftest import TINY

CONFIG = TINY["one-kv-head"]  # a window of 5


def write(slots: Slots, positions: Sequence[Sequence[int]]) -> None:
    """Place a step's tokens, growing what has to grow."""
    numbers = np.array(positions, np.int64)
    length = int(numbers.max()) + 1
    slots.check_room(numbers.shape[1], length)
    for kind, capacity in slots.growth(length).items():
        slots.grow(kind, capacity)
    slots.use(length)
    slots.place(numbers)


def read(chunk: int, tokens: int = 40, context: int = 100) -> Slots:
    """Slots of one row after so many tokens, chunk by chunk."""
    slots = Slots(CONFIG, context, 1, chunk)
    for at in range(0, tokens, chunk):
        write(slots, [range(at, at + chunk)])
    return slots


class Plain:
    """The oracle: the positions that a row holds, as a set that forgets what a ring overwrites."""

    def __init__(self, ring: int | None) -> None:
        self.ring, self.held = ring, set[int]()

    def write(self, position: int) -> None:
        if self.ring is not None:
            self.held = {p for p in self.held if (p - position) % self.ring}
        self.held.add(position)

    def rewind(self, end: int) -> None:
        self.held = {p for p in self.held if p < end}


@pytest.mark.parametrize("seed", range(25))
def test_tables_hold_what_a_ring_would_hold(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths, padding, rewinds and growth, in any order."""
    monkeypatch.setattr(slots_module, "_GROWTH", 4)
    rng = random.Random(seed)
    rows, chunk = rng.randint(1, 3), rng.randint(1, 9)
    slots = Slots(CONFIG, 200, rows, chunk)
    rings: dict[LayerType, int | None] = {SLIDING: 5 + chunk - 1, FULL: None}
    plain = {kind: [Plain(rings[kind]) for _ in range(rows)] for kind in LAYER_TYPES}
    ends = [0] * rows
    for _ in range(60):
        row = rng.randrange(rows)
        if ends[row] and rng.random() < 0.3:
            end = rng.randint(max(0, ends[row] - chunk), ends[row] - 1)
            try:
                slots.rewind(row, end)
            except RewindError:
                continue
            ends[row] = end
            for kind in LAYER_TYPES:
                plain[kind][row].rewind(end)
        else:
            tokens = min(rng.randint(1, chunk), 200 - max(ends))
            if not tokens:
                break
            positions = []
            for other in range(rows):
                real = rng.randint(1 if other == row else 0, tokens)
                places = range(ends[other], ends[other] + real)
                positions.append([*places, *[-1] * (tokens - real)])
                ends[other] += real
                for kind in LAYER_TYPES:
                    for place in places:
                        plain[kind][other].write(place)
            write(slots, positions)
        for kind in LAYER_TYPES:
            check_table(slots, kind, [oracle.held for oracle in plain[kind]])


def check_table(slots: Slots, kind: LayerType, held: Sequence[set[int]]) -> None:
    """Every row has its positions, each in its own slot, among the first `used`."""
    table, used = slots.table(kind)
    for row, expected in zip(table, held, strict=True):
        found = np.flatnonzero(row >= 0)
        assert set(row[found].tolist()) == expected
        assert np.array_equal(row[found] % len(row), found)
        assert not len(found) or found[-1] < used
    assert used <= table.shape[1]
    assert kind == FULL or table.shape[1] <= 5 + slots.chunk - 1


def test_a_rewind_reaches_chunk_minus_one_back_and_no_further() -> None:
    slots = read(chunk=4)
    with pytest.raises(RewindError, match="position 35"):
        slots.rewind(0, 35)
    slots.rewind(0, 36)
    assert int(slots.tables[FULL].max()) == 35
    with pytest.raises(RewindError):
        slots.rewind(0, 38)  # forward is no rewind


def test_a_refused_rewind_changes_nothing() -> None:
    slots = read(chunk=2)
    before = {kind: table.copy() for kind, table in slots.tables.items()}
    used = dict(slots.used)
    with pytest.raises(RewindError):
        slots.rewind(0, 10)
    assert all(np.array_equal(before[kind], slots.tables[kind]) for kind in LAYER_TYPES)
    assert slots.used == used


def test_a_row_is_forgotten_alone() -> None:
    slots = Slots(CONFIG, 100, 2, 8)
    write(slots, [range(8), [*range(5), -1, -1, -1]])
    slots.clear(0)
    for kind in LAYER_TYPES:
        assert (slots.tables[kind][0] == -1).all()
        assert slots.tables[kind][1, :5].tolist() == [0, 1, 2, 3, 4]
        assert slots.used[kind] == 5  # nobody looks past what the other row holds
    slots.clear(1)
    assert slots.used == dict.fromkeys(LAYER_TYPES, 0)


def test_sliding_layers_keep_window_plus_chunk_minus_one() -> None:
    slots = Slots(CONFIG, 100, 1, 4)
    assert slots.growth(100) == {SLIDING: 5 + 4 - 1, FULL: 100}
    assert slots.growth(3) == {SLIDING: 5 + 4 - 1, FULL: 100}  # at least 256, of those there are
    assert slots.capacity(SLIDING, 3) == slots.capacity(FULL, 3) == 3


def test_full_layers_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "_GROWTH", 16)
    slots, sizes = Slots(CONFIG, 200, 1, 4), []
    for at in range(0, 200, 4):
        write(slots, [range(at, at + 4)])
        sizes.append(slots.tables[FULL].shape[1])
    assert list(dict.fromkeys(sizes)) == [16, 32, 64, 128, 200]


def test_numbers_of_a_table_are_those_of_its_memory() -> None:
    slots = read(chunk=4, tokens=12)
    for kind in LAYER_TYPES:
        table = slots.table(kind)
        address, stride, capacity, used = table.numbers
        assert address == table.positions.ctypes.data and table.positions.flags.c_contiguous
        assert 8 * stride == table.positions.strides[0] and capacity == table.positions.shape[1]
        assert used == slots.used[kind] == min(12, 8 if kind == SLIDING else 12)


def test_every_row_becomes_the_first_of_another() -> None:
    one, three = read(chunk=4), Slots(CONFIG, 100, 3, 4)
    for kind, table in one.tables.items():
        three.grow(kind, table.shape[1])
    three.copy_row(one)
    for kind in LAYER_TYPES:
        assert (three.tables[kind] == one.tables[kind]).all() and three.rows == 3
    assert three.used == one.used and three.used is not one.used
    three.clear(2)
    assert one.used[FULL] == 40 and (one.tables[FULL][0, :40] >= 0).all()


def test_what_does_not_fit_is_said() -> None:
    for context in (0, -1, 257):
        with pytest.raises(ContextLengthError, match="1 to 256"):
            check_context(CONFIG, context)
    for wrong in (8.0, "8", None):
        with pytest.raises(InputError, match="expected a whole number of tokens"):
            check_context(CONFIG, wrong)  # type: ignore[arg-type]
    slots = Slots(CONFIG, context=8, rows=1, chunk=4)
    with pytest.raises(InputError, match="a step of 5 tokens; the cache takes 4"):
        slots.check_room(5, 5)
    with pytest.raises(ContextLengthError, match="9 tokens do not fit the context of 8"):
        slots.check_room(4, 9)


# ---- as modules see them -------------------------------------------------------------------------


def test_modules_are_given_the_same_places() -> None:
    """Tensors of positions, and where each token is written, for rows with padding and a ring that
    has wrapped; as the program has them."""
    ours = KVCache(CONFIG, 100, 2, 4)
    cache = tensor_cache(CONFIG, 100, 2, 4)
    modules = ModuleCache(cache)
    for at in range(0, 20, 4):
        positions = np.array([range(at, at + 4), [at // 2, at // 2 + 1, -1, -1]], np.int64)
        before = {kind: places(ours, kind, positions) for kind in LAYER_TYPES}
        seen = modules.place(torch.from_numpy(positions))
        for kind in LAYER_TYPES:
            table = ours.slots.table(kind)
            assert seen[kind].dtype == torch.int64
            assert np.array_equal(seen[kind].numpy(), table.positions[:, : table.used])
            where, expected = modules._where[kind], before[kind]
            row, token = np.nonzero(expected >= 0)
            assert where.row.tolist() == row.tolist() and where.token.tolist() == token.tolist()
            assert where.slot.tolist() == expected[row, token].tolist()


def places(cache: KVCache, kind: LayerType, positions: Integers) -> Integers:
    """The slots of a step's tokens, which are then placed there."""
    if kind == LAYER_TYPES[0]:
        cache.make_room(positions.shape[1], int(positions.max()) + 1)
        cache.slots.place(positions)
    return cache.slots.mapping(kind, positions)


def test_a_tensor_of_positions_is_a_copy() -> None:
    """What a layer has in hand does not change when the next step is placed."""
    modules = ModuleCache(tensor_cache(CONFIG, 100, 1, 4))
    first = modules.place(torch.arange(4)[None])[SLIDING]
    kept = first.clone()
    for at in range(4, 20, 4):
        modules.place(torch.arange(at, at + 4)[None])
    assert torch.equal(first, kept)
