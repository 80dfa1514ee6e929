"""Native code writes to a cache, bit for bit, what the cache would write, and reads what it holds.

A program written by hand takes keys, values and queries from tables, keeps the first two and
attends; `KVCache.write` and `layers.attend` do the same in torch.

B rows, T tokens, H heads, K key/value heads, d head width.
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor

from gemelo.config import FULL, SLIDING, LayerType
from gemelo.engine.kv import Int8Slots, KVCache, KVFormat, PlainSlots, Slots
from gemelo.engine.native_program import KINDS, STORED
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import Packed
from gemelo.models.layers import KV, attend
from gemelo.models.masks import attention_mask
from tests.conftest import TINY
from tests.kernels.matrices import TILES
from tests.native import needs_native

pytestmark = needs_native

HEADS, KV_HEADS, WIDTH = 14, 2, 128  # seven heads a key: all numbers that are taken at once
CONFIG = dataclasses.replace(TINY["blocks-of-32"], head_dim=WIDTH, sliding_window=24)
CHUNK, SCALE = 40, 0.09


@pytest.fixture(params=get_args(KVFormat))
def kv_format(request: pytest.FixtureRequest) -> KVFormat:
    return request.param  # type: ignore[no-any-return]


class Tables:
    """Keys, values and queries of every token id, and the program that puts them to a cache."""

    def __init__(self, k: Tensor, v: Tensor, q: Tensor, kind: LayerType, owner: int) -> None:
        self.k, self.v, self.q, self.kind = k, v, q, kind
        self.identity = torch.eye(q.shape[1])
        assert native.module is not None
        self.program = p = native.module.Program()
        buffers = [p.buffer(x.shape[1]) for x in (k, v, q, q)]
        for table, buffer in zip((k, v, q), buffers[:3], strict=True):
            p.embed(matrix(table), 1.0, buffer)
        layer_type = native.module.LayerType[KINDS[kind]]
        p.store_kv(buffers[0], buffers[1], owner, layer_type)
        window = CONFIG.window(kind) or 0
        p.attend(buffers[2], owner, layer_type, HEADS, window, SCALE, buffers[3])
        p.logits(buffers[3], matrix(self.identity), 0.0)

    def native(
        self, ids: Tensor, positions: Tensor, cache: KVCache, reach: Tensor | None = None
    ) -> Tensor:
        """ids, positions (B, T) -> what every token sees, (B, T, H * d); writes the cache."""
        reach = positions if reach is None else reach
        cache.make_room(positions.shape[1], int(positions.max()) + 1)
        out = torch.empty(*ids.shape, self.q.shape[1])
        call = native.extension.Call(
            ids=ids.data_ptr(),
            positions=positions.data_ptr(),
            attend_until=reach.data_ptr(),
            inputs_embeds=0,
            rows=ids.shape[0],
            tokens_a_row=ids.shape[1],
            logits_to_keep=None,
            slots=[table.numbers for table in cache.tables()],
            caches=cache.memory().layers,
            format=native.extension.CacheFormat[STORED[cache.stored]],
            kv_heads=KV_HEADS,
            head_dim=WIDTH,
            per_layer_rows=None,
            scores=out.data_ptr(),
        )
        self.program.run(call)
        return out

    def torch(
        self, ids: Tensor, positions: Tensor, cache: KVCache, reach: Tensor | None = None
    ) -> Tensor:
        seen = cache.place(positions)[self.kind]
        k, v, q = (
            x[ids].unflatten(-1, (-1, WIDTH)).transpose(1, 2) for x in (self.k, self.v, self.q)
        )
        held = cache.write(CONFIG.layers_of(self.kind)[0], KV(k, v))
        mask = attention_mask(positions, seen, CONFIG.window(self.kind), reach)
        return attend(q, held, mask, SCALE)


def matrix(x: Tensor) -> object:
    return cpu.matrix(Packed.of(x.numpy()))


def tables(count: int, kind: LayerType, seed: int = 0) -> Tables:
    """Of `count` ids."""
    generator = torch.Generator().manual_seed(seed)
    k, v, q = (
        torch.randn(count, heads * WIDTH, generator=generator)
        for heads in (KV_HEADS, KV_HEADS, HEADS)
    )
    return Tables(k, v, q, kind, CONFIG.layers_of(kind)[0])


def bits(store: Slots) -> list[Tensor]:
    """What a store has in memory."""
    if isinstance(store, Int8Slots):
        return [store.levels.x, store.scales.x.view(torch.int16)]
    assert isinstance(store, PlainSlots)
    return [store.x.view(torch.int16)]


def same(ours: KVCache, theirs: KVCache) -> bool:
    """Whether two caches of which one layer was written hold the same bits in the same places."""
    placed = all(torch.equal(ours.positions[k], theirs.positions[k]) for k in (SLIDING, FULL))
    return placed and all(
        torch.equal(a, b)
        for layer, pair in ours.stores.items()
        for store, other in zip(pair, theirs.stores[layer], strict=True)
        for a, b in zip(bits(store), bits(other), strict=True)
    )


@torch.inference_mode()
@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_writes_and_reads_are_the_caches(isa: str, kv_format: KVFormat, kind: LayerType) -> None:
    """Two rows, one of them behind; long steps and short ones, until the ring has wrapped."""
    made = tables(150, kind)
    ours, theirs = (KVCache(CONFIG, 256, 2, CHUNK, kv_format=kv_format) for _ in range(2))
    end = 0
    for tokens in (40, 16, 1, 7, 40, 2):
        places = torch.arange(end, end + tokens)
        positions = torch.stack([places, torch.where(places >= 5, places - 5, -1)])
        ids = torch.stack([places, 149 - places])
        got, expected = (
            run(ids, positions, cache) for run, cache in ((made.native, ours), (made.torch, theirs))
        )
        assert same(ours, theirs)
        real = positions >= 0
        # Many tokens go through bfloat16 there.
        tolerance = 0.01 if isa in TILES and ids.numel() > 16 else 1e-5
        error = (got - expected)[real].abs().max() / expected[real].abs().max()
        assert float(error) <= tolerance
        end += tokens
    assert end > ours.positions[SLIDING].shape[1]
    if kind == SLIDING:
        for cache in (ours, theirs):
            cache.rewind(0, end - 3)
        alone = torch.tensor([[end - 3], [-1]])
        ids = torch.tensor([[7], [0]])
        got, expected = made.native(ids, alone, ours)[0], made.torch(ids, alone, theirs)[0]
        assert same(ours, theirs)
        assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("kind", [SLIDING, FULL])
@pytest.mark.parametrize("tokens", [9, 38])
def test_blocks_see_each_other_both_ways(isa: str, kind: LayerType, tokens: int) -> None:
    """A picture within a step, longer than the window or not, in two rows at two places."""
    made = tables(150, kind)
    ours, theirs = (KVCache(CONFIG, 256, 2, CHUNK) for _ in range(2))
    places = torch.arange(30)
    for ids in (places, torch.arange(30, 30 + tokens)):
        positions = torch.stack([ids, torch.where(ids >= 5, ids - 5, -1)])
        reach = positions.clone()
        reach[0, 2:7], reach[1, 6:] = reach[0, 6], reach[1, -1]
        rows = torch.stack([ids, 149 - ids])
        got = made.native(rows, positions, ours, reach)
        expected = made.torch(rows, positions, theirs, reach)
    causal = made.native(rows, positions, ours)
    tolerance = 0.01 if isa in TILES and rows.numel() > 16 else 1e-5
    size = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= tolerance * size
    ahead = reach > positions
    assert float((got - causal)[ahead].abs().amax(-1).min()) > 0.03 * size
    assert torch.equal(got[~ahead], causal[~ahead])


@torch.inference_mode()
def test_formats_differ_by_their_rounding(isa: str) -> None:
    """What is compared above can tell the formats apart."""
    found = {}
    for kv_format in get_args(KVFormat):
        cache = KVCache(CONFIG, 64, 1, CHUNK, kv_format=kv_format)
        places = torch.arange(12)[None]
        found[kv_format] = tables(12, FULL).native(places, places, cache)
    size = float(found["plain"].abs().max())
    assert 1e-4 < float((found["bf16"] - found["plain"]).abs().max()) / size < 0.01
    assert 1e-3 < float((found["int8"] - found["plain"]).abs().max()) / size < 0.03


@torch.inference_mode()
def test_rounding_to_the_bit(isa: str, kv_format: KVFormat) -> None:
    """Ties, scales that are subnormal, at their least and too large for a half, zeros, and noise.

    (The half of 1e-7, the least scale, is 2^-23.)
    """
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(400, WIDTH, generator=generator)
    sizes = 10 ** (torch.rand(400, 1, generator=generator) * 15 - 9)  # 1e-9 to 1e6
    ties = torch.arange(WIDTH) - 63.5
    ties[0] = 127.0  # a scale of exactly 1
    halves = torch.full((1, WIDTH), 1.0) + torch.arange(WIDTH) / 256  # between two bfloat16
    edges = torch.zeros(4, WIDTH)
    edges[1, 3], edges[2, 7], edges[3, 9] = 127 * 65519.0, -127 * 65521.0, 3e38
    more = ties * torch.tensor([[1.0], [-(2**-10)], [3.0], [-1.044921875]])  # halves, all of them
    heads = torch.cat([noise * sizes, more, halves, edges, edges[:1]])
    if kv_format == "int8":  # the sum below is finite: infinite scales have levels of zero
        assert float((heads.abs().amax(1) / 127).half().isinf().sum()) == 2
    table = heads.view(-1, KV_HEADS * WIDTH)
    made = Tables(table, table.flip(0).contiguous(), torch.zeros(len(table), HEADS * WIDTH), FULL,
                  CONFIG.layers_of(FULL)[0])  # fmt: skip
    ours, theirs = (KVCache(CONFIG, 256, 1, 256, kv_format=kv_format) for _ in range(2))
    places = torch.arange(len(table))[None]
    made.native(places, places, ours)
    made.torch(places, places, theirs)
    assert same(ours, theirs)


@torch.inference_mode()
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_stay_broken(isa: str, kv_format: KVFormat, number: float) -> None:
    made = tables(20, FULL)
    made.v[3, 17] = number
    for tokens in (4, 20):  # few and many
        ids = torch.arange(tokens)[None]
        cache = KVCache(CONFIG, 64, 1, CHUNK, kv_format=kv_format)
        assert not made.native(ids, ids, cache)[0, 3:, 17].isfinite().any()
