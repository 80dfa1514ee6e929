"""The cache: what it holds on the host and as tensors, what it costs, how it grows."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from gemelo.config import FULL, LAYER_TYPES, SLIDING, Gemma3Config, LayerType, kv_bytes
from gemelo.config.options import KVFormat
from gemelo.engine import kv as kv_module
from gemelo.engine import slots as slots_module
from gemelo.engine import step
from gemelo.engine.decoder import Decoder, StepPiece
from gemelo.engine.kv import STORES, KVCache, check_kv_format
from gemelo.engine.modules.cache import (
    FloatTensors,
    ModuleCache,
    store_of,
    tensor_cache,
)
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.slots import Integers, RewindError
from gemelo.engine.tokens import Tokens
from gemelo.errors import ContextLengthError, InputError
from gemelo.kernels.quants import Floats
from gemelo.kernels.reference_layers import attention, visible
from gemelo.models.layers import KV, attend
from gemelo.models.masks import attention_mask
from tests.conftest import TINY, tiny_model
from tests.kernels.matrices import normal
from tests.quantised import GEMMA3, native_of

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
FORMATS = get_args(KVFormat)
IDS = torch.randint(3, 512, (256,), generator=torch.Generator().manual_seed(0)).tolist()


def heads(tokens: int, seed: int) -> Tensor:
    return torch.randn(1, 1, tokens, 16, generator=torch.Generator().manual_seed(seed)).double()


def reserve(cache: KVCache, length: int) -> None:
    """Room for so many tokens, without one being written."""
    cache.make_room(1, length)


@pytest.fixture(params=["kernels", "numpy", "modules"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """The kernels, the program in NumPy (heads of 16 are nothing for kernels), and modules."""
    model = tiny_model(GEMMA3 if request.param == "kernels" else CONFIG)
    return ModuleDecoder(model) if request.param == "modules" else native_of(model)


# ---- rings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_ring_is_full_attention_under_random_writes_and_rewinds(seed: int) -> None:
    """Every history of writes and rewinds gives what attention over the plain sequence gives, with
    tensors of modules and with arrays of the host."""
    rng = random.Random(seed)
    chunk = rng.randint(1, 9)
    cache = tensor_cache(CONFIG, context=200, chunk=chunk, dtype=torch.float64)
    ours, host = ModuleCache(cache), KVCache(CONFIG, context=200, chunk=chunk)
    k, v = heads(0, 0), heads(0, 0)
    for at in range(60):
        length = k.shape[2]
        if length and rng.random() < 0.3:
            end = rng.randint(max(0, length - chunk), length - 1)
            try:
                cache.rewind(end)
            except RewindError:
                with pytest.raises(RewindError):
                    host.rewind(end)
                continue  # past the slack, after an earlier rewind: allowed to refuse, not to lie
            host.rewind(end)
            k, v = k[:, :, :end], v[:, :, :end]
            continue
        new = min(rng.randint(1, chunk), 200 - length)
        if new == 0:
            break
        fresh = KV(heads(new, 1000 + at), heads(new, 2000 + at))
        k, v = torch.cat([k, fresh.k], 2), torch.cat([v, fresh.v], 2)
        places = torch.arange(length, length + new)[None]
        held = ours.place(places)
        host.make_room(new, length + new)
        host.slots.use(length + new)
        for kind in LAYER_TYPES:
            window = CONFIG.window(kind)
            layer = CONFIG.layers_of(kind)[0]
            q = heads(new, 3000 + at)
            found = attend(
                q, ours.write(layer, fresh), attention_mask(places, held[kind], window), 0.25
            )
            everything = torch.arange(length + new)[None]
            wanted = attend(q, KV(k, v), attention_mask(places, everything, window), 0.25)
            assert float((found - wanted).abs().max()) < 1e-12
            seen = attended(host, kind, places[0].numpy(), fresh, q)
            assert np.abs(seen - wanted.numpy()).max() < 1e-5
        host.slots.place(places[0].numpy())


def attended(cache: KVCache, kind: LayerType, positions: Integers, new: KV, q: Tensor) -> Floats:
    """What queries (1, 1, T, d) see of a cache of the host to which a step's keys and values are
    put, (1, T, d): before the slots of that type are placed, as in a program."""
    layer = CONFIG.layers_of(kind)[0]
    slots = cache.slots.mapping(kind, positions)
    table = cache.slots.tables[kind].copy()
    table[slots] = positions
    used = cache.slots.used[kind]
    stored = []
    for store, numbers in zip(cache.stores[layer], new, strict=True):
        store.put(slots, as_tokens(numbers))
        stored.append(store.view(used))
    seen = visible(positions, positions, table[:used], CONFIG.window(kind) or 0)
    return attention(as_tokens(q), *stored, seen, 0.25).reshape(1, len(positions), -1)


def as_tokens(x: Tensor) -> Floats:
    """(1, K, T, d) -> (T, K, d) float32."""
    found: Floats = x[0].transpose(0, 1).numpy().astype(np.float32)
    return found


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [100, 1024, 4096, 32768])
def test_memory_is_what_the_formula_says(context: int) -> None:
    """2 K d b (global C + local min(C, W + chunk - 1)) bytes, allocated."""
    per_slot = 2 * 1 * 256 * 2
    for cache in (
        KVCache(TABLE_3, context, chunk=512, kv_format="bf16"),
        tensor_cache(TABLE_3, context, chunk=512, dtype=torch.bfloat16),
    ):
        reserve(cache, context)
        assert cache.nbytes == kv_bytes(TABLE_3, context, 512, 2)
        assert cache.nbytes == per_slot * (4 * context + 22 * min(context, 512 + 511))


def test_published_five_to_one_saving() -> None:
    """Gemma 3 1B at 32K in bfloat16: 139 MiB with the window alone, 150 with chunks of 512."""
    assert kv_bytes(TABLE_3, 32768, 1, 2) == 145_752_064
    assert kv_bytes(TABLE_3, 32768, 512, 2) == 157_263_872


def test_it_grows_with_use_and_keeps_what_it_held(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "_GROWTH", 16)
    ids = IDS[:250]
    cache = decoder.cache(256, 256)
    step.write(decoder, cache, Tokens(ids[:10]), 0)
    small = cache.nbytes
    tail = step.verify(decoder, cache, ids[10:], 10)
    expected = step.score(decoder, decoder.cache(256, 256), ids)
    assert np.abs(tail - expected[10:]).max() < 1e-4
    assert 0 < small < cache.nbytes


@pytest.mark.parametrize("make", [KVCache, tensor_cache])
def test_it_takes_what_is_used_and_not_the_context(make: Callable[..., KVCache]) -> None:
    wide = make(TABLE_3, context=4096, chunk=16)
    reserve(wide, 10)
    first = wide.nbytes
    reserve(wide, 1000)
    assert 0 < first < wide.nbytes < kv_bytes(TABLE_3, 4096, 16, 4)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_addresses_follow_what_grows(kv_format: KVFormat) -> None:
    """Sliding layers stop growing long before full ones; nothing that moved is left behind."""
    cache = KVCache(TABLE_3, context=2000, chunk=300, kv_format=kv_format)
    seen = set()
    for at in range(0, 1800, 300):
        cache.make_room(300, at + 300)
        memory = cache.memory()
        assert memory is cache.memory()
        found = memory.layers
        held = {array.ctypes.data for array in memory.arrays}
        for (k, v), where in zip(cache.stores.values(), found, strict=True):
            keys, values = k.arrays, v.arrays
            assert [where.k, where.k_scales][: len(keys)] == [x.ctypes.data for x in keys]
            assert [where.v, where.v_scales][: len(values)] == [x.ctypes.data for x in values]
            assert held.issuperset(x.ctypes.data for x in (*keys, *values))
            assert all(x.flags.c_contiguous for x in (*keys, *values))
        seen.add(tuple(found))
    assert len(seen) > 2


@pytest.mark.parametrize("make", [KVCache, tensor_cache])
def test_int8_is_half_of_bfloat16(make: Callable[..., KVCache]) -> None:
    plain, small = (make(TABLE_3, 4096, kv_format=kv_format) for kv_format in ("bf16", "int8"))
    for cache in (plain, small):
        reserve(cache, 4096)
    assert small.nbytes / plain.nbytes == pytest.approx(0.5 * (1 + 2 / 256))


@pytest.mark.parametrize("kv_format", ["bf16", "int8"])
def test_rounded_formats_are_close(decoder: Decoder, kv_format: KVFormat) -> None:
    exact = step.score(decoder, decoder.cache(64, kv_format="plain"), IDS[:40])
    rounded = step.score(decoder, decoder.cache(64, kv_format=kv_format), IDS[:40])
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 0 < error < 0.05


# ---- stores --------------------------------------------------------------------------------------


def slots_of(tokens: int) -> Integers:
    """Where tokens go, in no order."""
    return np.random.default_rng(0).permutation(tokens)


def twin_of(kv_format: KVFormat, shape: tuple[int, int, int]) -> Any:
    return store_of(kv_format, torch.float32, "cpu", shape)


def numbers(store: Any) -> list[Any]:
    """What a store of the host, or one of tensors, has in memory, as arrays of the host."""
    held = [store.x] if hasattr(store, "x") else [store.levels, store.scales]
    tensors = [x.x if isinstance(x, FloatTensors) else x for x in held]
    return [x.view(torch.uint8).numpy() if isinstance(x, Tensor) else x for x in tensors]


@pytest.mark.parametrize("kv_format", FORMATS)
def test_a_store_of_the_host_is_the_tensors_bit_for_bit(kv_format: KVFormat) -> None:
    shape = (12, 3, 16)
    store, twin = STORES[kv_format](shape), twin_of(kv_format, shape)
    slots = slots_of(12)[:9]
    new = normal(9, 48, seed=1).reshape(9, 3, 16) * np.float32(3)
    new[5] = 0
    store.put(slots, new)
    twin.put(torch.from_numpy(slots), torch.from_numpy(new).transpose(0, 1)[None])
    assert store.nbytes == twin.nbytes == sum(array.nbytes for array in store.arrays)
    for ours, theirs in zip(numbers(store), numbers(twin), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    for used in (0, 7, 12):
        seen = store.view(used)
        assert seen.dtype == np.float32 and seen.shape == (used, 3, 16)
        assert np.array_equal(seen, twin.view(used)[0].transpose(0, 1).numpy())


def test_what_a_store_keeps_of_a_number() -> None:
    """Float32 as it is, bfloat16 to nearest even, int8 on 127 levels of each head's largest."""
    slots, new = slots_of(9), normal(9, 32, seed=2).reshape(9, 2, 16)
    found = {}
    for kv_format in FORMATS:
        store = STORES[kv_format]((9, 2, 16))
        store.put(slots, new)
        found[kv_format] = store.view(9)[slots]
    assert np.array_equal(found["plain"], new)
    assert np.array_equal(found["bf16"], torch.from_numpy(new).bfloat16().float().numpy())
    assert not np.array_equal(found["bf16"], new)
    largest = np.abs(new).max(-1, keepdims=True)
    off = np.abs(found["int8"] - new)
    assert 0 < off.max() and (off <= 0.5 * largest / 127 + largest * 2.0**-11).all()
    assert np.abs(found["int8"]).max(-1) == pytest.approx(largest[..., 0], rel=2.0**-11)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_a_store_grows_and_keeps_its_slots(kv_format: KVFormat) -> None:
    store = STORES[kv_format]((9, 2, 16))
    store.put(slots_of(9), normal(9, 32, seed=3).reshape(9, 2, 16))
    before = store.view(9).copy()
    store.grow(20)
    assert np.array_equal(store.view(9), before)
    assert not store.view(20)[9:].any()  # zeros: a NaN there would poison sums
    grown = store.arrays
    store.grow(20)  # once more, after an interrupt
    assert all(a is b for a, b in zip(store.arrays, grown, strict=True))
    assert [array.shape[:2] for array in grown] == [(20, 2)] * len(grown)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_a_copy_of_a_store_goes_its_own_way(kv_format: KVFormat) -> None:
    one, other = STORES[kv_format]((9, 2, 16)), STORES[kv_format]((9, 2, 16))
    one.put(np.arange(9), normal(9, 32, seed=4).reshape(9, 2, 16))
    other.copy_slots(slice(None), one, slice(None))  # type: ignore[arg-type]
    assert np.array_equal(other.view(9), one.view(9))
    one.put(np.arange(9), np.ones((9, 2, 16), np.float32))
    assert not np.array_equal(other.view(9), one.view(9))


@pytest.mark.parametrize("kv_format", FORMATS)
def test_nan_stays_nan(kv_format: KVFormat) -> None:
    store = STORES[kv_format]((2, 1, 16))
    new = np.ones((2, 1, 16), np.float32)
    new[1, 0, 3] = np.nan
    with np.errstate(invalid="ignore"):
        store.put(np.arange(2), new)
    assert np.isfinite(store.view(1)).all() and np.isnan(store.view(2)[1, 0, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bf16_is_kept_in_half_of_float32_and_read_in_the_models_dtype(dtype: torch.dtype) -> None:
    plain = tensor_cache(CONFIG, 64, dtype=torch.float32)
    small = tensor_cache(CONFIG, 64, dtype=dtype, kv_format="bf16")
    fresh = KV(heads(9, 1).to(dtype), heads(9, 2).to(dtype))
    views = [ModuleCache(cache) for cache in (plain, small)]
    for view in views:
        view.place(torch.arange(9)[None])
    layer = CONFIG.layers_of(FULL)[0]
    held = views[1].write(layer, fresh)
    assert small.nbytes * 2 == plain.nbytes
    for ours, given in zip(held, fresh, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours[:, :, :9], given.bfloat16().to(dtype))
        assert not torch.equal(ours[:, :, :9], given)


# ---- copies, limits, interrupts ------------------------------------------------------------------


@pytest.mark.parametrize("kv_format", FORMATS)
def test_copies_go_their_own_ways(decoder: Decoder, kv_format: KVFormat) -> None:
    prompt = IDS[:21]
    one = decoder.cache(64, kv_format=kv_format)
    step.write(decoder, one, Tokens(prompt), 0)
    copies = [one.copy() for _ in range(3)]
    assert [copy.nbytes for copy in copies] == [one.nbytes] * 3
    pieces = [StepPiece(c, [id], 21) for c, id in zip(copies, (5, 6, 7), strict=True)]
    for piece, together in zip(pieces, step.forward(decoder, pieces), strict=True):
        other = decoder.cache(64, kv_format=kv_format)
        step.write(decoder, other, Tokens(prompt), 0)
        alone = step.decode(decoder, other, piece.ids[0], 21)
        assert np.array_equal(together[0], alone)
    assert one.slots.tables[FULL].max() == 20  # and the first has not changed


def test_an_empty_cache_is_like_its_model(decoder: Decoder) -> None:
    cache = decoder.cache(64, 16, "int8")
    step.write(decoder, cache, Tokens(IDS[:9]), 0)
    fresh = cache.empty()
    assert (fresh.context, fresh.chunk, fresh.kv_format) == (64, 16, "int8")
    assert fresh.nbytes == 0 < cache.nbytes
    step.decode(decoder, fresh, 5, 0)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match="kv_format 'fp8' is not one of plain, bf16, int8"):
        KVCache(CONFIG, 64, kv_format="fp8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kv_format 'fp8' is not one of"):
        check_kv_format("fp8")
    with pytest.raises(ContextLengthError, match="1 to 256"):
        KVCache(CONFIG, context=257)
    cache = KVCache(CONFIG, context=8, chunk=4)
    with pytest.raises(InputError, match="a step of 5 tokens"):
        cache.make_room(5, 5)
    with pytest.raises(ContextLengthError, match="9 tokens do not fit the context of 8"):
        cache.make_room(4, 9)
    assert cache.nbytes == 0
    modules = ModuleCache(tensor_cache(CONFIG, context=8, chunk=4))
    with pytest.raises(InputError, match="a step of 5 tokens"):
        modules.place(torch.arange(5)[None])


def test_a_step_that_does_not_fit_leaves_the_cache(decoder: Decoder) -> None:
    cache = decoder.cache(16, 8)
    step.write(decoder, cache, Tokens(IDS[:8]), 0)
    before = {kind: table.copy() for kind, table in cache.slots.tables.items()}
    with pytest.raises(ContextLengthError, match="17 tokens do not fit the context of 16"):
        step.write(decoder, cache, Tokens(IDS[:8]), 9)
    assert all(np.array_equal(before[kind], cache.slots.tables[kind]) for kind in (SLIDING, FULL))


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("at", range(1, 12))
def test_an_interrupt_while_it_grows(
    decoder: Decoder, kv_format: KVFormat, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anywhere between two arrays: what was held is there, and the next step grows the rest."""
    monkeypatch.setattr(slots_module, "_GROWTH", 8)
    cache = decoder.cache(256, 128, kv_format)
    ids = IDS[:90]
    step.prefill(decoder, cache, Tokens(ids[:40]))
    calls = iter(range(1, 1000))

    def interrupted(work: Callable[..., Any]) -> Callable[..., Any]:
        def grow(*args: object) -> Any:
            if next(calls) == at:
                raise KeyboardInterrupt
            return work(*args)

        return grow

    with monkeypatch.context() as patch:
        patch.setattr(kv_module, "_grown", interrupted(kv_module._grown))
        patch.setattr(FloatTensors, "grow", interrupted(FloatTensors.grow))
        with suppress(KeyboardInterrupt):
            step.prefill(decoder, cache, Tokens(ids), start=40)
        assert next(calls) > at
    cache.rewind(40)
    fresh = decoder.cache(256, 128, kv_format)
    step.prefill(decoder, fresh, Tokens(ids[:40]))
    expected = step.prefill(decoder, fresh, Tokens(ids), start=40)
    found = step.prefill(decoder, cache, Tokens(ids), start=40)
    assert np.array_equal(found, expected)
