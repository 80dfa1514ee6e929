"""Snapshots and copies of a prefix: what goes on from them is as if no more had ever been read."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from gemelo.config import SLIDING
from gemelo.config.options import KVFormat
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.kv import KVCache
from gemelo.engine.slots import RewindError
from gemelo.engine.tokens import Tokens
from gemelo.kernels.quants import Floats
from tests.quantised import GEMMA3, GEMMA3N, made, modules_of

IDS = [3 + at * 7 % 490 for at in range(240)]
HELD, CHUNK = 100, 32  # positions; far past every window


@pytest.fixture(scope="module", params=["gemma3", "gemma3n", "modules"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    program = made(GEMMA3N if request.param == "gemma3n" else GEMMA3)
    return modules_of(program) if request.param == "modules" else program


@pytest.fixture(params=get_args(KVFormat))
def kv_format(request: pytest.FixtureRequest) -> KVFormat:
    return request.param  # type: ignore[no-any-return]


def read(decoder: Decoder, kv_format: KVFormat, tokens: int = HELD) -> KVCache:
    cache = decoder.cache(256, CHUNK, kv_format)
    step.write(decoder, cache, Tokens(IDS[:tokens]), 0)
    return cache


def going_on(decoder: Decoder, cache: KVCache, tokens: int = HELD) -> Floats:
    """Scores of other tokens after those that are held: a prompt, and one by one."""
    read = step.prefill(decoder, cache, Tokens([*IDS[:tokens], *IDS[7:47]]), tokens)
    more = [step.decode(decoder, cache, id, tokens + 40 + at) for at, id in enumerate(IDS[:9])]
    return np.stack([read, *more])


def test_what_was_held_is_restored_after_a_ring_has_wrapped(
    decoder: Decoder, kv_format: KVFormat
) -> None:
    cache = read(decoder, kv_format)
    snapshot = cache.snapshot(HELD)
    step.write(decoder, cache, Tokens(IDS[HELD:]), HELD)
    with pytest.raises(RewindError):
        cache.rewind(HELD)
    cache.restore(snapshot)
    assert np.array_equal(going_on(decoder, cache), going_on(decoder, read(decoder, kv_format)))
    cache.restore(snapshot)  # and once more
    assert np.array_equal(going_on(decoder, cache), going_on(decoder, read(decoder, kv_format)))


@pytest.mark.parametrize("tokens", [64, 96, HELD])  # on the grid of a chunk of 32, or all
def test_a_prefix_is_copied_while_its_owner_goes_on(
    decoder: Decoder, kv_format: KVFormat, tokens: int
) -> None:
    cache = read(decoder, kv_format)
    snapshot = read(decoder, kv_format, tokens).snapshot(tokens)
    expected = going_on(decoder, read(decoder, kv_format, tokens), tokens)
    for owner in (cache, alone := cache.copy()):
        step.write(decoder, owner, Tokens(IDS[HELD:200]), HELD)
    copy = cache.copy_prefix(tokens, snapshot)
    assert np.array_equal(going_on(decoder, copy, tokens), expected)
    scores = [step.decode(decoder, owner, 5, 200) for owner in (cache, alone)]
    assert np.array_equal(*scores)


def test_a_prefix_within_reach_needs_no_snapshot(decoder: Decoder, kv_format: KVFormat) -> None:
    copy = read(decoder, kv_format).copy_prefix(90)
    expected = going_on(decoder, read(decoder, kv_format, 90), 90)
    assert np.array_equal(going_on(decoder, copy, 90), expected)


def test_positions_keep_their_slots(decoder: Decoder) -> None:
    """A short prefix of a ring that has room for more lies where it lay."""
    cache = read(decoder, "plain", 40)
    copy = cache.copy_prefix(20)
    for kind, table in copy.slots.tables.items():
        held = np.flatnonzero(table >= 0)
        assert table[held].tolist() == cache.slots.tables[kind][held].tolist()
    assert 0 < copy.nbytes <= cache.nbytes


def test_what_is_not_held_any_more_is_said(decoder: Decoder) -> None:
    cache = read(decoder, "plain", 200)
    for lost in (cache.snapshot, cache.copy_prefix):
        with pytest.raises(RewindError, match="position 100 is too far back"):
            lost(HELD)
    snapshot = cache.snapshot(200)
    cache.rewind(190)
    before = {kind: table.copy() for kind, table in cache.slots.tables.items()}
    with pytest.raises(RewindError, match="position 200 is too far back"):
        cache.restore(snapshot)
    with pytest.raises(RewindError):
        cache.copy_prefix(200, snapshot)
    assert all(np.array_equal(before[kind], cache.slots.tables[kind]) for kind in before)


def test_bytes_are_those_of_the_window(decoder: Decoder) -> None:
    config = decoder.config
    snapshot = read(decoder, "plain").snapshot(HELD)
    window = config.window(SLIDING)
    assert window is not None
    layers = [layer for layer in config.kv_layers if config.layer_types[layer] == SLIDING]
    per_slot = 2 * 4 * config.num_key_value_heads * config.head_dim
    assert snapshot.nbytes == len(layers) * (window - 1) * per_slot
    assert read(decoder, "plain", 3).snapshot(3).nbytes == len(layers) * 3 * per_slot
