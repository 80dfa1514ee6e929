"""Native code writes to a cache, bit for bit, what the cache would write, and reads what it holds.

A program written by hand takes keys, values and queries from tables, keeps the first two and
attends. The same program in NumPy does it by the formulas, and `ModuleCache` with `layers.attend`
does it in torch: two oracles that know nothing of each other.

T tokens, H heads, K key/value heads, d head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch

from gemelo.config import FULL, SLIDING, LayerType
from gemelo.engine.decoder import StepInputs, StepPiece
from gemelo.engine.kv import KVCache, KVFormat
from gemelo.engine.modules.cache import ModuleCache, tensor_cache
from gemelo.engine.programs.backends import Backend, NativeBackend, ReferenceBackend, Step
from gemelo.engine.scores import Scores
from gemelo.engine.slots import Integers
from gemelo.kernels.quants import Floats, Packed
from gemelo.models.layers import KV, attend
from gemelo.models.masks import attention_mask
from tests.conftest import TINY
from tests.kernels.matrices import TILES, normal
from tests.native import needs_native

pytestmark = needs_native

HEADS, KV_HEADS, WIDTH = 14, 2, 128  # seven heads a key: all numbers that are taken at once
CONFIG = dataclasses.replace(TINY["blocks-of-32"], head_dim=WIDTH, sliding_window=24)
CHUNK, SCALE = 40, 0.09
ORACLES = ("numpy", "torch")

Run = Callable[[Integers, Integers, KVCache, Integers | None], Floats]


@pytest.fixture(params=get_args(KVFormat))
def kv_format(request: pytest.FixtureRequest) -> KVFormat:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=ORACLES)
def oracle(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Tables:
    """Keys, values and queries of every token id, and three ways to put them to a cache."""

    def __init__(self, k: Floats, v: Floats, q: Floats, kind: LayerType) -> None:
        self.k, self.v, self.q, self.kind = k, v, q, kind
        self.owner = CONFIG.layers_of(kind)[0]
        self.identity = np.eye(q.shape[1], dtype=np.float32)
        ours, theirs = NativeBackend(CONFIG), ReferenceBackend()
        for backend in (ours, theirs):
            self._write(backend)
        self.native: Run = partial(self._run, ours)
        self.runs: dict[str, Run] = {"numpy": partial(self._run, theirs), "torch": self._torch}

    def _write(self, backend: Backend) -> None:
        p, layer_type = backend.program, backend.layer_type(self.kind)
        p.rotary_embedding(CONFIG.rope(self.kind).frequencies(WIDTH), layer_type)
        buffers = [p.buffer(x.shape[1]) for x in (self.k, self.v, self.q, self.q)]
        for table, buffer in zip((self.k, self.v, self.q), buffers[:3], strict=True):
            p.embed(matrix(backend, table), 1.0, buffer)
        p.store_kv(buffers[0], buffers[1], self.owner, layer_type)
        window = CONFIG.window(self.kind) or 0
        p.attend(buffers[2], self.owner, layer_type, HEADS, window, SCALE, buffers[3])
        p.logits(buffers[3], matrix(backend, self.identity), 0.0)

    def _run(
        self,
        backend: Backend,
        ids: Integers,
        positions: Integers,
        cache: KVCache,
        reach: Integers | None = None,
    ) -> Floats:
        """ids, positions (T,) -> what every token sees, (T, H * d); writes the cache."""
        inputs = None if reach is None else StepInputs(None, reach)  # type: ignore[arg-type]
        piece = StepPiece(cache, ids.tolist(), int(positions[0]), None, inputs)
        cache.make_room(len(ids), piece.end)
        out = Scores.empty(len(ids), self.q.shape[1])
        backend.run(Step([piece], out))
        return np.asarray(out)

    def _torch(
        self, ids: Integers, positions: Integers, cache: KVCache, reach: Integers | None = None
    ) -> Floats:
        module_cache, places = ModuleCache(cache), torch.from_numpy(positions)[None]
        seen = module_cache.place(places)[self.kind]
        k, v, q = (
            torch.from_numpy(x[ids][None]).unflatten(-1, (-1, WIDTH)).transpose(1, 2)
            for x in (self.k, self.v, self.q)
        )
        held = module_cache.write(self.owner, KV(k, v))
        until = None if reach is None else torch.from_numpy(reach)[None]
        mask = attention_mask(places, seen, CONFIG.window(self.kind), until)
        found: Floats = attend(q, held, mask, SCALE)[0].numpy()
        return found


def matrix(backend: Backend, x: Floats) -> Any:
    return backend.matrix("", Packed.of(x), None, None, None)


def tables(count: int, kind: LayerType, seed: int = 0) -> Tables:
    """Of `count` ids."""
    heads = (KV_HEADS, KV_HEADS, HEADS)
    k, v, q = (normal(count, n * WIDTH, seed=3 * seed + i) for i, n in enumerate(heads))
    return Tables(k, v, q, kind)


def pair(
    oracle: str, context: int, chunk: int = CHUNK, kv_format: KVFormat = "plain"
) -> tuple[KVCache, KVCache]:
    """A cache for the kernels, and one for an oracle."""
    make = tensor_cache if oracle == "torch" else KVCache
    ours = KVCache(CONFIG, context, chunk, kv_format)
    return ours, make(CONFIG, context, chunk, kv_format=kv_format)


def bits(store: Any) -> list[Integers]:
    """What a store has in memory, array or tensor."""
    numbers = [store.x] if hasattr(store, "x") else [store.levels, store.scales]
    arrays = [n.x if hasattr(n, "x") else n for n in numbers]
    whole = [x.view(torch.uint8).numpy() if isinstance(x, torch.Tensor) else x for x in arrays]
    return [np.ascontiguousarray(x).view(np.uint8) for x in whole]


def same(ours: KVCache, theirs: KVCache) -> bool:
    """Whether two caches of which one layer was written hold the same bits in the same places."""
    held = (ours.slots.tables, theirs.slots.tables)
    placed = all(np.array_equal(held[0][kind], held[1][kind]) for kind in (SLIDING, FULL))
    return placed and all(
        np.array_equal(a, b)
        for layer, pair in ours.stores.items()
        for store, other in zip(pair, theirs.stores[layer], strict=True)
        for a, b in zip(bits(store), bits(other), strict=True)
    )


@pytest.mark.parametrize("kind", [SLIDING, FULL])
def test_writes_and_reads_are_the_caches(
    isa: str, kv_format: KVFormat, kind: LayerType, oracle: str
) -> None:
    """Long steps and short ones, until the ring has wrapped, and one token after a rewind."""
    made = tables(150, kind)
    expect = made.runs[oracle]
    ours, theirs = pair(oracle, 256, kv_format=kv_format)
    end = 0
    for tokens in (40, 16, 1, 7, 40, 2):
        places = np.arange(end, end + tokens)
        ids = 149 - places
        got, expected = made.native(ids, places, ours), expect(ids, places, theirs)
        assert same(ours, theirs)
        # Many tokens go through bfloat16 there, but not over a cache of floats.
        rounds = isa in TILES and tokens > 16 and kv_format != "plain"
        tolerance = 0.01 if rounds else 1e-5
        assert np.abs(got - expected).max() / np.abs(expected).max() <= tolerance
        end += tokens
    assert end > len(ours.slots.tables[SLIDING])
    if kind == SLIDING:
        for cache in (ours, theirs):
            cache.rewind(end - 3)
        alone, ids = np.array([end - 3]), np.array([7])
        got, expected = made.native(ids, alone, ours), expect(ids, alone, theirs)
        assert same(ours, theirs)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", [SLIDING, FULL])
@pytest.mark.parametrize("tokens", [9, 38])
def test_blocks_see_each_other_both_ways(
    isa: str, kind: LayerType, tokens: int, oracle: str
) -> None:
    """A picture within a step, longer than the window or not, and one at its end."""
    made = tables(150, kind)
    ours, theirs = pair(oracle, 256)
    for positions in (np.arange(30), np.arange(30, 30 + tokens)):
        reach = positions.copy()
        reach[1:4], reach[5:] = reach[3], reach[-1]
        ids = 149 - positions
        got = made.native(ids, positions, ours, reach)
        expected = made.runs[oracle](ids, positions, theirs, reach)
    causal = made.native(ids, positions, ours)
    size = np.abs(expected).max()
    assert np.abs(got - expected).max() <= 1e-5 * size
    ahead = reach > positions
    assert np.abs(got - causal)[ahead].max(-1).min() > 0.03 * size
    assert np.array_equal(got[~ahead], causal[~ahead])


def test_formats_differ_by_their_rounding(isa: str) -> None:
    """What is compared above can tell the formats apart."""
    found = {}
    for kv_format in get_args(KVFormat):
        cache = KVCache(CONFIG, 64, CHUNK, kv_format=kv_format)
        places = np.arange(12)
        found[kv_format] = tables(12, FULL).native(places, places, cache)
    size = np.abs(found["plain"]).max()
    assert 1e-4 < np.abs(found["bf16"] - found["plain"]).max() / size < 0.01
    assert 1e-3 < np.abs(found["int8"] - found["plain"]).max() / size < 0.03


def test_rounding_to_the_bit(isa: str, kv_format: KVFormat, oracle: str) -> None:
    """Ties, scales that are subnormal, at their least and too large for a half, zeros, and noise.

    (The half of 1e-7, the least scale, is 2^-23.)
    """
    generator = np.random.default_rng(5)
    noise = generator.standard_normal((400, WIDTH), np.float32)
    sizes = 10 ** (generator.random((400, 1), np.float32) * 15 - 9)  # 1e-9 to 1e6
    ties = np.arange(WIDTH, dtype=np.float32) - np.float32(63.5)
    ties[0] = 127.0  # a scale of exactly 1
    halves = np.ones((1, WIDTH)) + np.arange(WIDTH) / 256  # between two bfloat16
    edges = np.zeros((4, WIDTH))
    edges[1, 3], edges[2, 7], edges[3, 9] = 127 * 65519.0, -127 * 65521.0, 3e38
    more = ties * np.array([[1.0], [-(2**-10)], [3.0], [-1.044921875]])  # halves, all of them
    parts = [noise * sizes, more, halves, edges, edges[:1]]
    heads = np.concatenate([part.astype(np.float32) for part in parts])
    if kv_format == "int8":  # the sum below is finite: infinite scales have levels of zero
        with np.errstate(over="ignore"):
            scales = (np.abs(heads).max(1) / np.float32(127)).astype(np.float16)
        assert np.isinf(scales).sum() == 2
    table = heads.reshape(-1, KV_HEADS * WIDTH)
    queries = np.zeros((len(table), HEADS * WIDTH), np.float32)
    made = Tables(table, table[::-1].copy(), queries, FULL)
    ours, theirs = pair(oracle, 256, 256, kv_format)
    places = np.arange(len(table))
    made.native(places, places, ours)
    made.runs[oracle](places, places, theirs)
    assert same(ours, theirs)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_stay_broken(isa: str, kv_format: KVFormat, number: float) -> None:
    made = tables(20, FULL)
    made.v[3, 17] = number
    for tokens in (4, 20):  # few and many
        ids = np.arange(tokens)
        for run in (made.native, made.runs["numpy"]):
            cache = KVCache(CONFIG, 64, CHUNK, kv_format=kv_format)
            assert not np.isfinite(run(ids, ids, cache)[3:, 17]).any()
