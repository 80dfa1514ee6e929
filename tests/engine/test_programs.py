"""Programs block by block: each gives what the block of modules gives, and so do the parts around.

A decoder's scores may hide what one block does wrong and another makes good. Here every block of a
tiny model is a program of its own: tables put its input into the buffers, an identity matrix reads
a buffer out. Under every instruction set of this machine and in NumPy, all tokens at once and in
pieces.

T tokens, D width, L layers, S streams, P width of a per-layer embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch

from gemelo.config import Gemma3nConfig, ModelConfig, Submodel
from gemelo.engine.decoder import StepPiece
from gemelo.engine.kv import KVCache
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.programs import gemma3, gemma3n
from gemelo.engine.programs.backends import Backend, NativeBackend, ReferenceBackend, Step
from gemelo.engine.programs.writer import Writer
from gemelo.engine.scores import Scores
from gemelo.kernels import native
from gemelo.kernels.quants import Floats, Packed
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.layers import KV, AttentionContext
from tests.kernels.matrices import normal
from tests.quantised import GEMMA3, GEMMA3N, made, modules_of

TOKENS = 20  # more than a window, and more than are few to the kernels
PIECES = [(TOKENS,), (13, 1, 6)]
TOLERANCE = 1e-4  # of the largest number: float32 in another order
NESTED = Submodel((96,) * 5 + (64,) * 5, skipped_layers=(8, 9))

Write = Callable[[Writer], int]  # writes steps, and says which buffer to read


@pytest.fixture(params=["avx512", "avx2_vnni", "avx2", "generic", "neon", "amx", native.REFERENCE])
def backend(request: pytest.FixtureRequest) -> Iterator[Callable[[ModelConfig], Backend]]:
    """What makes a backend, under every instruction set of this machine and in NumPy."""
    name: str = request.param
    if name == native.REFERENCE:
        yield lambda config: ReferenceBackend()
        return
    if name not in native.instruction_sets():
        pytest.skip(f"not a {name} machine")
    before = native.isa()
    native.use(name)
    yield NativeBackend
    native.use(before)


@cache
def decoder_of(family: str) -> tuple[NativeDecoder, ModuleDecoder]:
    """A tiny decoder and its modules; of a nested model, both of the view."""
    program = made(GEMMA3 if family == "gemma3" else GEMMA3N)
    modules = modules_of(program)
    if family == "nested":
        return program.view(NESTED), modules.view(NESTED)
    return program, modules


LAYERS = {
    "gemma3": GEMMA3.num_hidden_layers,
    "gemma3n": GEMMA3N.num_hidden_layers,
    "nested": len(NESTED.ffn_widths),
}


def blocks(*families: str) -> list[tuple[str, int]]:
    return [(family, at) for family in families for at in range(LAYERS[family])]


def run(
    decoder: NativeDecoder,
    backend: Backend,
    write: Write,
    width: int,
    pieces: Sequence[int] = (TOKENS,),
    keep: int | None = None,
    per_layer_rows: Packed | None = None,
) -> Floats:
    """What a program has in the buffer that `write` names after each piece, (T or keep, width).
    Token ids are 0, 1, 2 and so on."""
    p = Writer(decoder.config, decoder.weights, decoder.layer_indices, backend)
    p.program.logits(write(p), matrix(p, np.eye(width, dtype=np.float32)), 0.0)
    held, found = KVCache(decoder.config, 64, TOKENS), []
    for begin, end in pairwise([0, *accumulate(pieces)]):
        piece = StepPiece(held, range(begin, end), begin, keep)
        held.make_room(end - begin, end)
        out = Scores.empty(piece.num_scored, width)
        assert backend.run(Step([piece], out, per_layer_rows))
        found.append(np.asarray(out))
    return np.concatenate(found)


def matrix(p: Writer, x: Floats) -> object:
    return p.backend.matrix("", Packed.of(x), None, None, None)


def put(p: Writer, x: Floats, buffer: int) -> None:
    """A step: row t of x (T, width) is token t's."""
    p.program.embed(matrix(p, x), 1.0, buffer)


def assert_near(found: Floats, expected: torch.Tensor) -> None:
    wanted = expected.reshape(found.shape).numpy()
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def context(config: ModelConfig) -> AttentionContext:
    return AttentionContext.of(config, torch.arange(TOKENS)[None], None, torch.float32)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize(("family", "at"), blocks("gemma3"))
@torch.inference_mode()
def test_a_block_of_gemma3(
    backend: Callable[[ModelConfig], Backend], family: str, at: int, pieces: tuple[int, ...]
) -> None:
    """The residual, and the norm of it that the next block reads."""
    decoder, modules = decoder_of(family)
    config, width = decoder.config, decoder.config.hidden_size
    x = normal(TOKENS, width, seed=at)
    block = modules.module.layers[at]
    expected = block(torch.from_numpy(x)[None], context(config))
    is_last = at == config.num_hidden_layers - 1
    norm = modules.module.norm if is_last else modules.module.layers[at + 1].input_layernorm

    def write(p: Writer, name: str) -> int:
        b = gemma3.Buffers.of(p)
        put(p, x, b.x)
        p.rotary_embedding()
        p.program.norm(b.x, p.layer(at).norm("input_layernorm"), b.h)
        gemma3.write_block(p, at, b, gemma3.following(p, at))
        return int(getattr(b, name))

    for name, wanted in (("x", expected), ("h", norm(expected))):
        found = run(decoder, backend(config), lambda p, n=name: write(p, n), width, pieces)  # type: ignore[misc]
        assert_near(found, wanted)
    if is_last and len(pieces) == 1:
        found = run(decoder, backend(config), lambda p: write(p, "x"), width, keep=3)
        assert_near(found, expected[:, -3:])


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize(("family", "at"), blocks("gemma3n", "nested"))
@torch.inference_mode()
def test_a_block_of_gemma3n(
    backend: Callable[[ModelConfig], Backend], family: str, at: int, pieces: tuple[int, ...]
) -> None:
    """All streams, of blocks with keys of their own and with borrowed ones, sparse and dense."""
    decoder, modules = decoder_of(family)
    config, d = decoder.config, decoder.config.head_dim
    assert isinstance(config, Gemma3nConfig)
    width, facts = config.hidden_size, config.layer(at)
    streams = [normal(TOKENS, width, seed=10 * at + s) for s in range(config.altup_num_inputs)]
    per_layer = config.hidden_size_per_layer_input
    given = normal(TOKENS, per_layer * config.num_hidden_layers, seed=10 * at + 7)
    k, v = (normal(TOKENS, config.num_key_value_heads * d, seed=10 * at + i) for i in (8, 9))
    donor = KV(*(torch.from_numpy(n).view(1, TOKENS, -1, d).transpose(1, 2) for n in (k, v)))
    x = torch.from_numpy(np.stack(streams))[:, None]
    own_input = torch.from_numpy(given[:, at * per_layer : (at + 1) * per_layer])[None]
    expected, _ = modules.module.layers[at](
        x, own_input, context(config), None if facts.owns_keys else donor, facts.intermediate_size
    )

    def write(p: Writer, stream: int) -> int:
        b = gemma3n.Buffers.of(p)
        for numbers, buffer in zip(
            (*streams, given), (*b.streams, b.per_layer_inputs), strict=True
        ):
            put(p, numbers, buffer)
        p.rotary_embedding()
        if not facts.owns_keys:
            owner = gemma3n.owner_of(p, at)
            put(p, k, b.k)
            put(p, v, b.v)
            p.program.store_kv(b.k, b.v, owner, p.layer(owner).type)
        gemma3n.write_block(p, at, b)
        return b.streams[stream]

    for stream in range(config.altup_num_inputs):
        found = run(decoder, backend(config), lambda p, s=stream: write(p, s), width, pieces)  # type: ignore[misc]
        assert_near(found, expected[stream])
    if at == len(config.kv_layers) - 1 and len(pieces) == 1:  # where tokens nobody asks for stop
        found = run(decoder, backend(config), lambda p: write(p, 1), width, keep=3)
        assert_near(found, expected[1, :, -3:])


# ---- around the blocks of Gemma 3n ---------------------------------------------------------------


@torch.inference_mode()
def test_one_stream_becomes_all(backend: Callable[[ModelConfig], Backend]) -> None:
    decoder, modules = decoder_of("gemma3n")
    assert isinstance(modules.module, Gemma3n)
    width = decoder.config.hidden_size
    x = normal(TOKENS, width, seed=1)
    expected = modules.module.expand(torch.from_numpy(x)[None])

    def write(p: Writer, stream: int) -> int:
        b = gemma3n.Buffers.of(p)
        put(p, x, b.streams[0])
        gemma3n.write_expand(p, b)
        return b.streams[stream]

    for stream in range(len(expected)):
        found = run(decoder, backend(decoder.config), lambda p, s=stream: write(p, s), width)  # type: ignore[misc]
        assert_near(found, expected[stream])


@torch.inference_mode()
def test_all_streams_become_one(backend: Callable[[ModelConfig], Backend]) -> None:
    decoder, modules = decoder_of("gemma3n")
    assert isinstance(modules.module, Gemma3n)
    width, count = decoder.config.hidden_size, decoder.config.altup_num_inputs
    streams = [normal(TOKENS, width, seed=s) for s in range(count)]
    expected = modules.module.merge(torch.from_numpy(np.stack(streams))[:, None])

    def write(p: Writer) -> int:
        b = gemma3n.Buffers.of(p)
        for numbers, buffer in zip(streams, b.streams, strict=True):
            put(p, numbers, buffer)
        gemma3n.write_merge(p, b)
        return b.g

    assert_near(run(decoder, backend(decoder.config), write, width), expected)


@pytest.mark.parametrize("family", ["gemma3n", "nested"])
@torch.inference_mode()
def test_per_layer_inputs(backend: Callable[[ModelConfig], Backend], family: str) -> None:
    """Looked up and projected, for the layers of what runs."""
    decoder, modules = decoder_of(family)
    assert isinstance(modules.module, Gemma3n) and decoder.table is not None
    config = decoder.config
    x, ids = normal(TOKENS, config.hidden_size, seed=2), list(range(TOKENS))
    expected = modules.module.project_per_layer_inputs(
        torch.tensor([ids]), torch.from_numpy(x)[None]
    )
    rows = decoder.table.packed(ids, decoder.layer_indices)

    def write(p: Writer) -> int:
        b = gemma3n.Buffers.of(p)
        put(p, x, b.streams[0])
        gemma3n.write_per_layer_inputs(p, b)
        return b.per_layer_inputs

    width = config.hidden_size_per_layer_input * config.num_hidden_layers
    found = run(decoder, backend(config), write, width, per_layer_rows=rows)
    assert_near(found, expected)


def test_other_blocks_are_told_apart() -> None:
    """What is compared above can see which layer's weights a block has."""
    decoder, _ = decoder_of("gemma3")
    x, width = normal(TOKENS, decoder.config.hidden_size), decoder.config.hidden_size

    def write(p: Writer, at: int) -> int:
        b = gemma3.Buffers.of(p)
        put(p, x, b.x)
        p.rotary_embedding()
        p.program.norm(b.x, p.layer(at).norm("input_layernorm"), b.h)
        gemma3.write_block(p, at, b, gemma3.following(p, at))
        return b.x

    first, second = (
        run(decoder, ReferenceBackend(), lambda p, a=a: write(p, a), width) for a in (0, 1)
    )  # type: ignore[misc]
    assert np.abs(first - second).max() > 1000 * TOLERANCE * np.abs(first).max()
