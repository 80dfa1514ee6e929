"""A piece of a sequence is computed alike alone and in any company: scores and cache, to the bit.

Steps hold pieces of several caches, and several of one: single tokens, drafts, prompts. Under every
instruction set of this machine, of both families, with matrices in rows, panels and strips.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest

from gemelo.config.options import KVFormat
from gemelo.engine.decoder import StepInputs, StepPiece
from gemelo.engine.kv import KVCache
from gemelo.engine.memory.repack import repacked
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.programs.backends import NativeBackend, Step
from gemelo.engine.scores import Scores
from gemelo.kernels import native
from gemelo.kernels.cpu import address_of
from gemelo.kernels.quants import Floats, Format, Packed
from gemelo.kernels.repacked import Panels, can_interleave
from tests.kernels.matrices import normal, random_input, random_weight
from tests.native import needs_native
from tests.quantised import GEMMA3, GEMMA3N, again, made

if TYPE_CHECKING:
    from gemelo.kernels import _native

pytestmark = needs_native

CHUNK, CONTEXT = 96, 256
LAYOUTS = ("rows", "panels", "strips")
MODELS = [
    ("gemma3", "q8_0", True),
    ("gemma3", "q4_0", False),
    ("gemma3", "f32", False),
    ("gemma3n", "q8_0", True),
    ("gemma3n", "q4_0", False),
    ("gemma3n", "bf16", False),
]


@cache
def model(family: str, format: str, moved: bool) -> NativeDecoder:
    decoder = made(GEMMA3 if family == "gemma3" else GEMMA3N, format)
    if not moved:
        return decoder
    panels = repacked(decoder.config, decoder.weights)
    assert panels is not None
    return NativeDecoder(decoder.config, decoder.weights, panels, decoder.table)


@pytest.fixture(params=MODELS, ids=lambda model: "-".join(map(str, model)))
def decoder(request: pytest.FixtureRequest, isa: str) -> NativeDecoder:
    """A program of its own, under the instruction set that is in use."""
    return again(model(*request.param))


@pytest.fixture(params=get_args(KVFormat))
def kv_format(request: pytest.FixtureRequest) -> KVFormat:
    return request.param  # type: ignore[no-any-return]


def ids_of(seed: int, tokens: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(3, 500, tokens).tolist()
    return found


def sequence(
    cache: KVCache, seed: int, lengths: Sequence[int], keep: int | None = None, start: int = 0
) -> list[StepPiece]:
    """Pieces of these lengths, one behind the other, from `start` on."""
    ends = list(accumulate(lengths, initial=start))
    ids = ids_of(seed, ends[-1])
    kept = [keep if keep is None else min(keep, length) for length in lengths]
    return [
        StepPiece(cache, ids[begin:end], begin, count)
        for (begin, end), count in zip(pairwise(ends), kept, strict=True)
    ]


def held(cache: KVCache) -> list[Any]:
    """All that a cache has in memory."""
    stores = [array for pair in cache.stores.values() for store in pair for array in store.arrays]
    return [*stores, *cache.slots.tables.values()]


def assert_same(found: KVCache, expected: KVCache) -> None:
    for ours, theirs in zip(held(found), held(expected), strict=True):
        assert np.array_equal(ours.view(np.uint8), theirs.view(np.uint8))


def one_by_one(decoder: NativeDecoder, pieces: Sequence[StepPiece]) -> list[Floats]:
    """The scores of pieces in steps of their own."""
    found = []
    for piece in pieces:
        [scores], finite = decoder.step([piece])
        assert finite
        found.append(scores)
    return found


def assert_alike(decoder: NativeDecoder, together: list[list[StepPiece]]) -> None:
    """Steps of several pieces give what copies of their caches give piece by piece."""
    copies: dict[KVCache, KVCache] = {}
    for pieces in together:
        for piece in pieces:
            if piece.cache not in copies:
                copies[piece.cache] = piece.cache.copy()
    for pieces in together:
        alone = one_by_one(decoder, [p._replace(cache=copies[p.cache]) for p in pieces])
        found, finite = decoder.step(pieces)
        assert finite
        for ours, theirs in zip(found, alone, strict=True):
            assert np.array_equal(ours, theirs)
    for own, copy in copies.items():
        assert_same(own, copy)


def caches(decoder: NativeDecoder, count: int, kv_format: KVFormat) -> list[KVCache]:
    return [decoder.cache(CONTEXT, CHUNK, kv_format) for _ in range(count)]


def test_a_piece_is_alike_in_company(decoder: NativeDecoder, kv_format: KVFormat) -> None:
    """Prompts, drafts and single tokens; scores of none, one, some and all, in any order."""
    a, b, c, d, e = caches(decoder, 5, kv_format)
    first = [
        *sequence(a, 1, [1]),
        *sequence(b, 2, [40], 1),
        *sequence(c, 3, [16], 0),
        *sequence(d, 4, [64], None),
        *sequence(e, 5, [17], 0),
    ]
    second = [
        *sequence(b, 2, [33], 20, 40),
        *sequence(a, 1, [7], None, 1),
        *sequence(d, 4, [1], 1, 64),
        *sequence(c, 3, [70], 3, 16),
        *sequence(e, 5, [2], 1, 17),
    ]
    assert_alike(decoder, [first, second])


def test_pieces_of_one_cache_see_each_other(decoder: NativeDecoder, kv_format: KVFormat) -> None:
    """Cells of a prompt and its tail in one step, before and behind what others have."""
    a, b = caches(decoder, 2, kv_format)
    first = [*sequence(a, 1, [64, 20, 9], 1), *sequence(b, 2, [32, 5, 1, 33], None)]
    second = [*sequence(b, 2, [1, 64], 0, 71), *sequence(a, 1, [3, 1], 1, 93)]
    assert_alike(decoder, [first, second])


def test_cells_are_alike_apart_and_as_one(decoder: NativeDecoder, kv_format: KVFormat) -> None:
    """Cut where blocks of 32 tokens begin; the rings are full, and the ends lie elsewhere."""
    apart, whole = caches(decoder, 2, kv_format)
    for own in (apart, whole):
        decoder.step(sequence(own, 1, [64, 13], 0))
    [*found], _ = decoder.step(sequence(apart, 1, [32, 64], None, 77))
    [expected], _ = decoder.step(sequence(whole, 1, [96], None, 77))
    assert np.array_equal(np.concatenate(found), expected)
    assert_same(apart, whole)


@pytest.mark.parametrize("tokens", [20, 70])
def test_any_number_of_single_tokens(decoder: NativeDecoder, tokens: int) -> None:
    """More than are few, each of a sequence of its own length."""
    all_caches = caches(decoder, tokens, "bf16")
    read = [sequence(c, i, [1 + i % 9], 0)[0] for i, c in enumerate(all_caches)]
    decoded = [sequence(c, i, [1], 1, 1 + i % 9)[0] for i, c in enumerate(all_caches)]
    drafted = [sequence(c, i, [2], None, 2 + i % 9)[0] for i, c in enumerate(all_caches)]
    assert_alike(decoder, [read, decoded, drafted])


def test_rings_wrap_in_company(decoder: NativeDecoder, kv_format: KVFormat) -> None:
    """Long past their capacity, window + chunk - 1, at places of their own."""
    a, b = caches(decoder, 2, kv_format)
    steps: list[list[StepPiece]] = []
    at = 0
    for lengths in ([90], [1], [64, 11], [3], [80]):
        step = sequence(a, 1, lengths, 1, at)
        at += sum(lengths)
        behind = sequence(b, 2, [1], 1, len(steps))
        steps.append([*behind, *step] if len(steps) % 2 else [*step, *behind])
    assert_alike(decoder, steps)
    assert at > max(len(table) for kind, table in a.slots.tables.items() if "sliding" in kind)


def test_embeddings_are_a_pieces_own(decoder: NativeDecoder) -> None:
    """A picture that sees itself both ways among text, and a sound at the end of another."""
    a, b, c = caches(decoder, 3, "plain")
    width = decoder.config.hidden_size
    until = np.arange(40)
    until[10:30] = 29
    picture = StepInputs(normal(40, width), until)
    sound = StepInputs(normal(5, width, seed=1))
    text, seen = sequence(a, 1, [40], 1)[0], sequence(b, 2, [40], 1)[0]
    heard = sequence(c, 3, [5], 1)[0]
    pieces = [text, seen._replace(inputs=picture), heard._replace(inputs=sound)]
    assert_alike(decoder, [pieces])
    [other], _ = decoder.step([seen._replace(cache=caches(decoder, 1, "plain")[0])])
    [same], _ = decoder.step([seen._replace(cache=caches(decoder, 1, "plain")[0], inputs=picture)])
    assert np.abs(other - same).max() > 0.1 * np.abs(same).max()


def test_threads_change_nothing(decoder: NativeDecoder) -> None:
    """Shares of 3 threads are others than those of 1."""
    found = []
    before = native.extension.threads()
    for threads in (1, 3):
        native.set_threads(threads)
        try:
            a, b, c = caches(decoder, 3, "int8")
            step = [*sequence(a, 1, [50], 2), *sequence(b, 2, [3]), *sequence(c, 3, [64, 18, 1])]
            found.append([*decoder.step(step)[0], *(x for k in (a, b, c) for x in held(k))])
        finally:
            native.set_threads(before)
    for ours, theirs in zip(*found, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_step_is_whole_if_it_is_not_finite(decoder: NativeDecoder) -> None:
    """One sequence that is broken leaves the others as they are, and is said."""
    a, b = caches(decoder, 2, "plain")
    good, bad = sequence(a, 1, [5])[0], sequence(b, 2, [30], 1)[0]
    embeds = normal(30, decoder.config.hidden_size)
    embeds[4, 4] = np.nan
    alone = one_by_one(decoder, [good._replace(cache=a.copy())])
    [found, broken], finite = decoder.step([good, bad._replace(inputs=StepInputs(embeds))])
    assert not finite and not np.isfinite(broken).all()
    assert np.array_equal(found, alone[0])


def products(x: Floats, weight: Packed, layout: str, lengths: Sequence[int]) -> Floats:
    """x (T, C) times a weight (R, C) transposed, in one step of pieces of these lengths, the short
    ones first, each of a cache of its own."""
    rows, panels, strips = ({"w": weight} if layout == name else {} for name in LAYOUTS)
    backend = NativeBackend(GEMMA3, Panels(panels, rows, strips))
    p = backend.program
    inputs, outputs = p.buffer(weight.columns), p.buffer(weight.rows)
    identity = Packed.of(np.eye(weight.rows, dtype=np.float32))
    p.embed(backend.matrix("", Packed.of(x), None, None, None), 1.0, inputs)
    p.product(inputs, [backend.matrix("w", weight, None, None, None)], [outputs])
    p.logits(outputs, backend.matrix("", identity, None, None, None), 0.0)
    pieces = []
    for begin, end in pairwise(accumulate(lengths, initial=0)):
        pieces.append(StepPiece(KVCache(GEMMA3, CONTEXT, CHUNK), range(begin, end), 0))
        pieces[-1].cache.make_room(end - begin, end - begin)
    scores = Scores.empty(len(x), weight.rows)
    assert backend.run(Step(pieces, scores))
    return np.asarray(scores)


def test_products_of_every_format(isa: str, format: Format) -> None:
    """Few exact tokens and more, beside bulk ones and alone: each token has its own sums."""
    weight = random_weight(format, 70, 512)
    x = random_input(69, 512)
    x[:, ::3] = 0  # what strips leave out
    lengths = (1, 3, 16, 16, 33)
    exact = sum(lengths[:-1])
    for layout in LAYOUTS if can_interleave(weight) else LAYOUTS[:1]:
        together = products(x, weight, layout, lengths)
        assert np.array_equal(products(x[:exact], weight, layout, lengths[:-1]), together[:exact])
        assert np.array_equal(products(x[exact:], weight, layout, lengths[-1:]), together[exact:])
        alone = [products(x[t : t + 1], weight, layout, [1])[0] for t in range(exact)]
        assert np.array_equal(np.stack(alone), together[:exact])


def test_pieces_that_cannot_be_run_are_refused() -> None:
    """What would be read or written elsewhere, and an order that no path takes."""
    extension, table, scores = native.extension, np.full(64, -1), np.empty((64, 16), np.float32)

    def cache(format: str = "F32", used: int = 64) -> _native.Cache:
        made = extension.Cache(
            layers=[], slots=[(address_of(table), 64)] * 2,
            format=extension.CacheFormat[format], kv_heads=1, head_dim=64,
        )  # fmt: skip
        made.used = [used] * 2
        return made

    def refused(why: str, *pieces: _native.Piece) -> None:
        call = extension.Call(address_of(table), list(pieces), None, address_of(scores))
        with pytest.raises(ValueError, match=why):
            extension.Program().run(call)

    one, many = extension.Piece(cache(), 0, 1, 1), extension.Piece(cache(), 0, 17, 17)
    refused("no pieces")
    refused("exact pieces come first", many, one)
    refused("exact pieces come first", many, extension.Piece(cache(), 0, 17, 16))
    refused("no tokens", one, extension.Piece(cache(), 0, 0, 0))
    refused("no position", extension.Piece(cache(), -1, 1, 0))
    refused("more scores", extension.Piece(cache(), 0, 2, 3))
    refused("no slots in use", extension.Piece(cache(used=0), 0, 1, 1))
    refused("no slots in use", extension.Piece(cache(used=65), 0, 1, 1))
    refused("differ in format", one, extension.Piece(cache("INT8"), 0, 1, 1))
    assert (table == -1).all()


def test_a_step_without_per_layer_embeddings_is_refused() -> None:
    decoder = model("gemma3n", "q8_0", True)
    bare = NativeDecoder(decoder.config, decoder.weights)
    with pytest.raises(ValueError, match="reads per-layer embeddings"):
        bare.step([StepPiece(bare.cache(CONTEXT, CHUNK), [5], 0)])
