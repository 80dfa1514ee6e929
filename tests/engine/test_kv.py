"""The cache: what it holds, what it costs, how far it rewinds."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import get_args

import pytest
import torch
from torch import Tensor

from gemelo.config import FULL, LAYER_TYPES, SLIDING, Gemma3Config, kv_bytes
from gemelo.engine import kv as kv_module
from gemelo.engine.kv import KVCache, KVFormat, PlainSlots, RewindError
from gemelo.engine.step import prefill
from gemelo.engine.tokens import Tokens
from gemelo.errors import ContextLengthError, InputError
from gemelo.models.layers import KV, attend
from gemelo.models.masks import attention_mask
from tests.conftest import TINY, tiny_model

CONFIG = TINY["one-kv-head"]
TABLE_3 = Gemma3Config(  # Gemma 3 1B
    vocab_size=262144,
    hidden_size=1152,
    intermediate_size=6912,
    num_attention_heads=4,
    num_key_value_heads=1,
    sliding_window=512,
    max_position_embeddings=32768,
)


def heads(tokens: int, seed: int) -> Tensor:
    return torch.randn(1, 1, tokens, 16, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("seed", range(40))
def test_ring_is_full_attention_under_random_writes_and_rewinds(seed: int) -> None:
    """Every history of writes and rewinds gives what attention over the plain sequence gives."""
    rng = random.Random(seed)
    chunk = rng.randint(1, 9)
    cache = KVCache(CONFIG, context=200, chunk=chunk, dtype=torch.float64)
    k, v = heads(0, 0), heads(0, 0)
    for step in range(60):
        length = k.shape[2]
        if length and rng.random() < 0.3:
            end = rng.randint(max(0, length - chunk), length - 1)
            try:
                cache.rewind(0, end)
            except RewindError:
                continue  # past the slack, after an earlier rewind: allowed to refuse, not to lie
            k, v = k[:, :, :end], v[:, :, :end]
            continue
        new = min(rng.randint(1, chunk), 200 - length)
        if new == 0:
            break
        fresh = KV(heads(new, 1000 + step), heads(new, 2000 + step))
        k, v = torch.cat([k, fresh.k], 2), torch.cat([v, fresh.v], 2)
        places = torch.arange(length, length + new)[None]
        held = cache.place(places)
        for kind in LAYER_TYPES:
            window = CONFIG.window(kind)
            layer = CONFIG.layers_of(kind)[0]
            q = heads(new, 3000 + step)
            ours = attend(
                q, cache.write(layer, fresh), attention_mask(places, held[kind], window), 0.25
            )
            everything = torch.arange(length + new)[None]
            wanted = attend(q, KV(k, v), attention_mask(places, everything, window), 0.25)
            assert float((ours - wanted).abs().max()) < 1e-12


def test_a_rewind_reaches_chunk_minus_one_back_and_no_further() -> None:
    cache = KVCache(CONFIG, context=100, chunk=4)
    for at in range(0, 40, 4):
        cache.place(torch.arange(at, at + 4)[None])
    with pytest.raises(RewindError, match="position 35"):
        cache.rewind(0, 35)
    cache.rewind(0, 36)
    assert int(cache.positions[FULL].max()) == 35
    with pytest.raises(RewindError):
        cache.rewind(0, 38)  # forward is no rewind


def test_a_refused_rewind_changes_nothing() -> None:
    cache = KVCache(CONFIG, context=100, chunk=2)
    for at in range(0, 40, 2):
        cache.place(torch.arange(at, at + 2)[None])
    before = {kind: table.clone() for kind, table in cache.positions.items()}
    with pytest.raises(RewindError):
        cache.rewind(0, 10)
    assert all(torch.equal(before[kind], cache.positions[kind]) for kind in LAYER_TYPES)


@pytest.mark.parametrize("context", [100, 1024, 4096, 32768])
def test_memory_is_what_the_formula_says(context: int) -> None:
    """2 K d b (global C + local min(C, W + chunk - 1)) bytes, allocated."""
    cache = KVCache(TABLE_3, context, chunk=512, dtype=torch.bfloat16)
    cache.reserve(context)
    assert cache.nbytes == kv_bytes(TABLE_3, context, 512, 2)
    per_slot = 2 * 1 * 256 * 2
    assert cache.nbytes == per_slot * (4 * context + 22 * min(context, 512 + 511))


def test_published_five_to_one_saving() -> None:
    """Gemma 3 1B at 32K in bfloat16: 139 MiB with the window alone, 150 with chunks of 512."""
    assert kv_bytes(TABLE_3, 32768, 1, 2) == 145_752_064
    assert kv_bytes(TABLE_3, 32768, 512, 2) == 157_263_872


def test_it_grows_with_use_and_keeps_what_it_held() -> None:
    model = tiny_model(CONFIG)
    cache = KVCache(CONFIG, context=256, chunk=256)
    small = 0
    with torch.inference_mode():
        ids = torch.randint(3, 512, (1, 250), generator=torch.Generator().manual_seed(0))
        places = torch.arange(250)[None]
        model(ids[:, :10], places[:, :10], cache)
        small = cache.nbytes
        wide = KVCache(TABLE_3, context=4096, chunk=16)
        wide.reserve(10)
        first = wide.nbytes
        wide.reserve(1000)
        tail = model(ids[:, 10:], places[:, 10:], cache)
        assert float((tail - model(ids, places)[:, 10:]).abs().max()) < 1e-4
    assert 0 < small <= cache.nbytes
    assert first < wide.nbytes < kv_bytes(TABLE_3, 4096, 16, 4)


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_addresses_follow_what_grows(kv_format: KVFormat) -> None:
    """Sliding layers stop growing long before full ones; nothing that moved is left behind."""
    cache = KVCache(TABLE_3, context=2000, chunk=300, kv_format=kv_format)
    seen = set()
    for at in range(0, 1800, 300):
        cache.make_room(300, at + 300)
        memory = cache.memory()
        assert memory is cache.memory()
        found = memory.layers
        for (k, v), where in zip(cache.stores.values(), found, strict=True):
            keys, values = k.tensors(), v.tensors()
            assert [where.k, where.k_scales][: len(keys)] == [x.data_ptr() for x in keys]
            assert [where.v, where.v_scales][: len(values)] == [x.data_ptr() for x in values]
            assert where.row_stride == keys[0].stride(0)
        seen.add(tuple(found))
    assert len(seen) > 2


def test_int8_is_half_of_bfloat16_and_close() -> None:
    plain = KVCache(TABLE_3, 4096, dtype=torch.bfloat16)
    small = KVCache(TABLE_3, 4096, dtype=torch.bfloat16, kv_format="int8")
    plain.reserve(4096)
    small.reserve(4096)
    assert small.nbytes / plain.nbytes == pytest.approx(0.5 * (1 + 2 / 256))
    model = tiny_model(CONFIG)
    ids = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))
    places = torch.arange(40)[None]
    with torch.inference_mode():
        exact = model.logits(model(ids, places))
        rounded = model.logits(model(ids, places, KVCache(CONFIG, 64, kv_format="int8")))
    error = float((exact - rounded).abs().max()) / float(exact.abs().max())
    assert 0 < error < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bf16_is_kept_in_half_of_float32_and_read_in_the_models_dtype(dtype: torch.dtype) -> None:
    plain = KVCache(CONFIG, 64, dtype=torch.float32)
    small = KVCache(CONFIG, 64, dtype=dtype, kv_format="bf16")
    fresh = KV(heads(9, 1).to(dtype), heads(9, 2).to(dtype))
    for cache in (plain, small):
        cache.place(torch.arange(9)[None])
    layer = CONFIG.layers_of(FULL)[0]
    held = small.write(layer, fresh)
    assert small.nbytes * 2 == plain.nbytes
    for ours, given in zip(held, fresh, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, given.bfloat16().to(dtype))
        assert not torch.equal(ours, given)


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_rows_are_copies_that_go_their_own_ways(kv_format: KVFormat) -> None:
    model = tiny_model(CONFIG)
    ids = torch.randint(3, 512, (1, 21), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one = KVCache(CONFIG, 64, kv_format=kv_format)
        model(ids, torch.arange(21)[None], one)
        three = one.repeat(3)
        assert three.nbytes == 3 * one.nbytes
        step = torch.tensor([[5], [6], [7]])
        together = model(step, torch.full((3, 1), 21), three)
        for row in range(3):
            other = KVCache(CONFIG, 64, kv_format=kv_format)
            alone = model(torch.cat([ids, step[row : row + 1]], 1), torch.arange(22)[None], other)
            assert float((together[row, 0] - alone[0, -1]).abs().max()) < 1e-4


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match="kv_format 'fp8' is not one of plain, bf16, int8"):
        KVCache(CONFIG, 64, kv_format="fp8")  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError, match="1 to 256"):
        KVCache(CONFIG, context=257)
    cache = KVCache(CONFIG, context=8, chunk=4)
    with pytest.raises(InputError, match="a step of 5 tokens"):
        cache.place(torch.arange(5)[None])
    with pytest.raises(ContextLengthError, match="9 tokens do not fit the context of 8"):
        cache.place(torch.arange(5, 9)[None])


def test_sliding_layers_keep_window_plus_chunk_minus_one() -> None:
    cache = KVCache(CONFIG, context=100, chunk=4)
    cache.reserve(100)
    assert cache.positions[SLIDING].shape[1] == 5 + 4 - 1
    assert cache.positions[FULL].shape[1] == 100


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
@pytest.mark.parametrize("at", range(1, 12))
def test_an_interrupt_while_it_grows(
    kv_format: KVFormat, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anywhere between two stores: what was held is there, and the next step grows the rest."""
    config = TINY["blocks-of-32"]
    cache = KVCache(config, 256, chunk=128, kv_format=kv_format)
    model, ids = tiny_model(config), list(range(2, 92))
    prefill(model, cache, Tokens(ids[:40]))
    calls, grow = [0], PlainSlots.grow

    def interrupted(store: PlainSlots, capacity: int) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        grow(store, capacity)

    monkeypatch.setattr(kv_module, "_GROWTH", 8)
    monkeypatch.setattr(PlainSlots, "grow", interrupted)
    with suppress(KeyboardInterrupt):
        prefill(model, cache, Tokens(ids), start=40)
    monkeypatch.setattr(PlainSlots, "grow", grow)
    cache.rewind(0, 40)
    fresh = KVCache(config, 256, chunk=128, kv_format=kv_format)
    expected = prefill(model, fresh, Tokens(ids))
    found = prefill(model, cache, Tokens(ids), start=40)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
