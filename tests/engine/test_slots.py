"""Slots: which position lies where, how far it rewinds, and that modules see the same places."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gemelo.config import FULL, LAYER_TYPES, SLIDING, LayerType
from gemelo.engine import slots as slots_module
from gemelo.engine.modules.cache import ModuleCache, tensor_cache
from gemelo.engine.slots import RewindError, Slots, check_context
from gemelo.errors import ContextLengthError, InputError
from tests.conftest import TINY

CONFIG = TINY["one-kv-head"]  # a window of 5


def write(slots: Slots, positions: Sequence[int]) -> None:
    """Place a step's tokens, growing what has to grow."""
    numbers = np.array(positions, np.int64)
    length = int(numbers.max()) + 1
    slots.check_room(len(numbers), length)
    for kind, capacity in slots.growth(length).items():
        slots.grow(kind, capacity)
    slots.use(length)
    slots.place(numbers)


def read(chunk: int, tokens: int = 40, context: int = 100) -> Slots:
    """Slots after so many tokens, chunk by chunk."""
    slots = Slots(CONFIG, context, chunk)
    for at in range(0, tokens, chunk):
        write(slots, range(at, at + chunk))
    return slots


class Plain:
    """The oracle: the positions that are held, as a set that forgets what a ring overwrites."""

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
    """Steps, rewinds and growth, in any order."""
    monkeypatch.setattr(slots_module, "_GROWTH", 4)
    rng = random.Random(seed)
    chunk, end = rng.randint(1, 9), 0
    slots = Slots(CONFIG, 200, chunk)
    plain = {SLIDING: Plain(5 + chunk - 1), FULL: Plain(None)}
    for _ in range(60):
        if end and rng.random() < 0.3:
            back = rng.randint(max(0, end - chunk), end - 1)
            try:
                slots.rewind(back)
            except RewindError:
                continue
            end = back
            for oracle in plain.values():
                oracle.rewind(end)
        else:
            tokens = min(rng.randint(1, chunk), 200 - end)
            if not tokens:
                break
            write(slots, range(end, end + tokens))
            for oracle in plain.values():
                for place in range(end, end + tokens):
                    oracle.write(place)
            end += tokens
        for kind in LAYER_TYPES:
            check_table(slots, kind, plain[kind].held)


def check_table(slots: Slots, kind: LayerType, held: set[int]) -> None:
    """Its positions, each in its own slot, among the first `used`."""
    table, used = slots.table(kind)
    found = np.flatnonzero(table >= 0)
    assert set(table[found].tolist()) == held
    assert np.array_equal(table[found] % len(table), found)
    assert not len(found) or found[-1] < used
    assert used <= len(table)
    assert kind == FULL or len(table) <= 5 + slots.chunk - 1


def test_a_rewind_reaches_chunk_minus_one_back_and_no_further() -> None:
    slots = read(chunk=4)
    with pytest.raises(RewindError, match="position 35"):
        slots.rewind(35)
    slots.rewind(36)
    assert int(slots.tables[FULL].max()) == 35
    with pytest.raises(RewindError):
        slots.rewind(38)  # forward is no rewind


def test_a_refused_rewind_changes_nothing() -> None:
    slots = read(chunk=2)
    before = {kind: table.copy() for kind, table in slots.tables.items()}
    used = dict(slots.used)
    with pytest.raises(RewindError):
        slots.rewind(10)
    assert all(np.array_equal(before[kind], slots.tables[kind]) for kind in LAYER_TYPES)
    assert slots.used == used


def test_nobody_looks_past_what_is_left() -> None:
    slots = Slots(CONFIG, 100, 8)
    write(slots, range(8))
    slots.rewind(5)
    for kind in LAYER_TYPES:
        assert slots.tables[kind][:8].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
        assert slots.used[kind] == 5
    slots.clear()
    assert all((table == -1).all() for table in slots.tables.values())
    assert slots.used == dict.fromkeys(LAYER_TYPES, 0)


def test_sliding_layers_keep_window_plus_chunk_minus_one() -> None:
    slots = Slots(CONFIG, 100, 4)
    assert slots.growth(100) == {SLIDING: 5 + 4 - 1, FULL: 100}
    assert slots.growth(3) == {SLIDING: 5 + 4 - 1, FULL: 100}  # at least 256, of those there are
    assert slots.capacity(SLIDING, 3) == slots.capacity(FULL, 3) == 3


def test_full_layers_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "_GROWTH", 16)
    slots, sizes = Slots(CONFIG, 200, 4), []
    for at in range(0, 200, 4):
        write(slots, range(at, at + 4))
        sizes.append(len(slots.tables[FULL]))
    assert list(dict.fromkeys(sizes)) == [16, 32, 64, 128, 200]


def test_numbers_of_a_table_are_those_of_its_memory() -> None:
    slots = read(chunk=4, tokens=12)
    for kind in LAYER_TYPES:
        table = slots.table(kind)
        address, capacity, used = table.numbers
        assert address == table.positions.ctypes.data and table.positions.flags.c_contiguous
        assert table.positions.itemsize == 8 and capacity == len(table.positions)
        assert used == slots.used[kind] == min(12, 8 if kind == SLIDING else 12)


def test_a_copy_goes_its_own_way() -> None:
    one, other = read(chunk=4), Slots(CONFIG, 100, 4)
    for kind, table in one.tables.items():
        other.grow(kind, len(table))
    other.copy_from(one)
    for kind in LAYER_TYPES:
        assert np.array_equal(other.tables[kind], one.tables[kind])
    assert other.used == one.used and other.used is not one.used
    other.clear()
    assert one.used[FULL] == 40 and (one.tables[FULL][:40] >= 0).all()


def test_what_does_not_fit_is_said() -> None:
    for context in (0, -1, 257):
        with pytest.raises(ContextLengthError, match="1 to 256"):
            check_context(CONFIG, context)
    for wrong in (8.0, "8", None):
        with pytest.raises(InputError, match="expected a whole number of tokens"):
            check_context(CONFIG, wrong)  # type: ignore[arg-type]
    slots = Slots(CONFIG, context=8, chunk=4)
    with pytest.raises(InputError, match="a step of 5 tokens; the cache takes 4"):
        slots.check_room(5, 5)
    with pytest.raises(ContextLengthError, match="9 tokens do not fit the context of 8"):
        slots.check_room(4, 9)


# ---- as modules see them -------------------------------------------------------------------------


def test_modules_are_given_the_same_places() -> None:
    """Tensors of positions, and where each token is written, of a ring that has wrapped; as the
    program has them."""
    slots, modules = Slots(CONFIG, 100, 4), ModuleCache(tensor_cache(CONFIG, 100, 4))
    for at in range(0, 20, 4):
        positions = np.arange(at, at + 4)
        write(slots, range(at, at + 4))
        seen = modules.place(torch.from_numpy(positions)[None])
        for kind in LAYER_TYPES:
            table = slots.table(kind)
            assert seen[kind].dtype == torch.int64
            assert np.array_equal(seen[kind][0].numpy(), table.positions[: table.used])
            where = modules._slots[kind].tolist()
            assert where == slots.mapping(kind, positions).tolist()


def test_a_tensor_of_positions_is_a_copy() -> None:
    """What a layer has in hand does not change when the next step is placed."""
    modules = ModuleCache(tensor_cache(CONFIG, 100, 4))
    first = modules.place(torch.arange(4)[None])[SLIDING]
    kept = first.clone()
    for at in range(4, 20, 4):
        modules.place(torch.arange(at, at + 4)[None])
    assert torch.equal(first, kept)
