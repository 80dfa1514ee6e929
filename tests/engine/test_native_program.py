"""A decoder as one native call gives what its modules give, in every way a step can be taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from gemelo.config import Gemma3Config, Gemma3nConfig, Submodel
from gemelo.config.rope import Linear as Stretch
from gemelo.config.rope import Yarn
from gemelo.engine import step
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache, KVFormat
from gemelo.engine.native_program import NativeProgram, is_native
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import native
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from tests.divergence import bfloat16_attention, divergence, off
from tests.kernels.matrices import TILES
from tests.native import needs_native
from tests.quantised import GEMMA3, GEMMA3N, IDS, cache_of, made

pytestmark = needs_native

STRETCHED = dataclasses.replace(
    GEMMA3,
    rope_scaling_factor=1.0,
    rope_scaling=Yarn(8.0, 32, attention_factor=1.4),
    rope_local_scaling=Stretch(4.0),
)
Run = Callable[[NativeProgram | None], Tensor]
UNTIED = dataclasses.replace(GEMMA3, tie_word_embeddings=False)
UNTIED_3N = dataclasses.replace(GEMMA3N, tie_word_embeddings=False)


@pytest.fixture(scope="module", params=[GEMMA3, GEMMA3N], ids=["gemma3", "gemma3n"])
def decoder(request: pytest.FixtureRequest) -> Gemma3 | Gemma3n:
    return made(request.param)


@pytest.fixture(params=["avx512", "avx2_vnni", "avx2", "generic", "neon", "amx"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of this machine; a program keeps the one it was made under."""
    name: str = request.param
    if name not in native.instruction_sets():
        pytest.skip(f"not a {name} machine")
    return name


def fused(decoder: Gemma3 | Gemma3n, isa: str) -> NativeProgram:
    before = native.isa()
    native.use(isa)
    try:
        graph = NativeProgram.of(decoder)
    finally:
        native.use(before)
    assert graph is not None
    return graph


def bound(run: Run, expected: Tensor, isa: str, kv_format: KVFormat = "plain") -> float:
    """How far a program's scores may diverge from those of the modules, `expected`.

    Both are float32 sums in other orders: of 512 scores with a last bit of noise that is 1e-12. A
    cache that rounds puts a few numbers on the other side of a tie, a step each; 1e-7. On TILES
    attention of many tokens over such a cache is rounded to bfloat16: so much as that makes of the
    modules themselves, and as much again in the scores, which is four times the divergence.
    """
    sums = 1e-10 if kv_format == "plain" else 2e-6
    if isa not in TILES or kv_format == "plain":
        return sums
    with bfloat16_attention():
        return sums + 4 * divergence(run(None), expected)


def assert_alike(run: Run, graph: NativeProgram, isa: str, kv_format: KVFormat = "plain") -> None:
    """(test_slots.py compares bits.)"""
    found, expected = run(graph), run(None)
    assert divergence(found, expected) <= bound(run, expected, isa, kv_format)


@torch.inference_mode()
@pytest.mark.parametrize(
    "config", [STRETCHED, UNTIED, UNTIED_3N], ids=["yarn and linear", "untied", "untied-3n"]
)
def test_other_turns_and_heads(config: Gemma3Config | Gemma3nConfig, isa: str) -> None:
    decoder = made(config)
    graph = fused(decoder, isa)

    def run(with_graph: NativeProgram | None) -> Tensor:
        decoder.native_program = with_graph
        cache = cache_of(decoder)
        out = [
            step.prefill(decoder, cache, Tokens(IDS)),
            step.decode(decoder, cache, [5], [60])[0],
        ]
        decoder.native_program = None
        return torch.stack(out)

    assert_alike(run, graph, isa)


@torch.inference_mode()
@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_a_norm_five_percent_off_is_out_of_bounds(
    decoder: Gemma3 | Gemma3n, kv_format: KVFormat
) -> None:
    """Even on TILES, where bounds are widest, and in the longest chunk."""

    def run(_: NativeProgram | None) -> Tensor:
        return step.score(decoder, cache_of(decoder, 1, 60, kv_format), IDS)

    expected = run(None)
    widest = bound(run, expected, TILES[0], kv_format)
    assert kv_format == "plain" or widest > bound(run, expected, "generic", kv_format)
    with off(decoder):
        assert divergence(run(None), expected) > 2 * widest


@torch.inference_mode()
@pytest.mark.parametrize("kv_format", get_args(KVFormat))
@pytest.mark.parametrize("chunk", [7, 24, 60])
def test_prefill_and_decode_are_the_modules(
    decoder: Gemma3 | Gemma3n, isa: str, chunk: int, kv_format: KVFormat
) -> None:
    graph = fused(decoder, isa)

    def run(with_graph: NativeProgram | None) -> Tensor:
        decoder.native_program = with_graph
        cache = cache_of(decoder, 1, chunk, kv_format)
        assert graph.supports(cache)
        out = [step.prefill(decoder, cache, Tokens(IDS), 0)]
        for place, token in enumerate(IDS[:9], len(IDS)):
            out.append(step.decode(decoder, cache, [token], [place])[0])
        cache.rewind(0, len(IDS) + 7)
        out.extend(step.verify(decoder, cache, IDS[9:13], len(IDS) + 7))
        decoder.native_program = None
        return torch.stack(out)

    assert_alike(run, graph, isa, kv_format)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [12, 60])
@pytest.mark.parametrize("is_block", [True, False])
def test_soft_tokens_are_the_modules(
    decoder: Gemma3 | Gemma3n, isa: str, chunk: int, is_block: bool
) -> None:
    """Pictures that see themselves both ways, the last of them before the answer; and sounds."""
    generator = torch.Generator().manual_seed(4)
    width = decoder.config.hidden_size

    def runs(louder: float = 1.0) -> list[EmbeddingSpan]:
        generator.manual_seed(4)
        made = [(begin, torch.randn(count, width, generator=generator) * louder)
                for begin, count in ((3, 10), (17, 2), (48, 12))]  # fmt: skip
        return [EmbeddingSpan(begin, embeds, b"picture", is_block) for begin, embeds in made]

    def run(with_graph: NativeProgram | None, spans: list[EmbeddingSpan]) -> Tensor:
        decoder.native_program = with_graph
        cache = cache_of(decoder, 1, chunk)
        out = [step.prefill(decoder, cache, Tokens(IDS, spans), 0)]
        out.append(step.decode(decoder, cache, [5], [len(IDS)])[0])
        decoder.native_program = None
        return torch.stack(out)

    graph = fused(decoder, isa)
    assert_alike(lambda with_graph: run(with_graph, runs()), graph, isa)
    found, expected = run(graph, runs()), run(None, runs())
    for other in ([], runs(2.0)):  # what is seen counts
        assert float((run(graph, other) - found).abs().max()) > 0.1 * float(expected.abs().max())


class Markers:
    """Ids from 480 on have their embeddings with a tower."""

    def contains(self, ids: Tensor) -> bool:
        return int(ids.max()) >= 480

    def replace(self, x: Tensor, ids: Tensor) -> Tensor:
        return torch.where(ids[..., None] >= 480, ids[..., None] / 100 - x, x)


@torch.inference_mode()
def test_ids_of_a_tower_are_the_modules(isa: str) -> None:
    decoder = made(GEMMA3N)
    assert isinstance(decoder, Gemma3n)
    text = [id for id in IDS if id < 480]
    ids = [*text[:20], 490, *text[20:30]]

    def run(with_graph: NativeProgram | None, hard: Markers | None = None) -> Tensor:
        decoder.native_program, decoder.modality_embeddings = with_graph, hard
        cache = cache_of(decoder)
        read = step.prefill(decoder, cache, Tokens(ids), 0)
        return torch.stack([read, step.decode(decoder, cache, [485], [len(ids)])[0]])

    graph = fused(decoder, isa)
    expected = run(None, Markers())
    assert_alike(lambda with_graph: run(with_graph, Markers()), graph, isa)
    assert float((run(graph) - expected).abs().amax(-1).min()) > 0.1 * float(expected.abs().max())


@torch.inference_mode()
def test_scores_of_every_position(decoder: Gemma3 | Gemma3n, isa: str) -> None:
    graph = fused(decoder, isa)

    def run(with_graph: NativeProgram | None) -> Tensor:
        decoder.native_program = with_graph
        scores = step.score(decoder, cache_of(decoder), IDS)
        decoder.native_program = None
        return scores

    assert_alike(run, graph, isa)


@torch.inference_mode()
@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_rows_of_different_lengths(decoder: Gemma3 | Gemma3n, kv_format: KVFormat) -> None:
    graph = fused(decoder, native.isa())
    ids = torch.tensor([IDS[:9], IDS[9:18], IDS[18:27]])
    positions = torch.arange(9).expand(3, 9).clone()
    positions[1, 6:], positions[2, 2:] = -1, -1

    def run(with_graph: NativeProgram | None) -> Tensor:
        cache = cache_of(decoder, 3, kv_format=kv_format)
        if with_graph is None:
            scores = decoder.logits(decoder(ids, positions, cache))
        else:
            scores, _ = with_graph.scores(ids.tolist(), positions.tolist(), cache, None)
        return scores.view(*ids.shape, -1)[positions >= 0]

    assert_alike(run, graph, native.isa(), kv_format)


@torch.inference_mode()
@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_one_token_is_the_same_among_sixteen(kv_format: KVFormat) -> None:
    """What speculation relies on: verification gives the bits that plain decoding gives."""
    decoder = made(GEMMA3, "q8_0")
    graph = fused(decoder, native.isa())
    decoder.native_program = graph
    prompt, ahead = IDS[:20], IDS[20:36]
    one, many = (cache_of(decoder, kv_format=kv_format) for _ in range(2))
    assert graph.supports(one)
    for cache in (one, many):
        step.prefill(decoder, cache, Tokens(prompt), 0)
    together = step.verify(decoder, many, ahead, len(prompt))
    for place, token in enumerate(ahead):
        alone = step.decode(decoder, one, [token], [len(prompt) + place])[0]
        assert torch.equal(alone, together[place])


@torch.inference_mode()
def test_a_view_is_a_program_of_its_own() -> None:
    decoder = made(GEMMA3N)
    assert isinstance(decoder, Gemma3n)
    narrow = Submodel((96,) * 6 + (64,) * 5, skipped_layers=(8,))
    view = decoder.view(narrow)
    assert view.native_program is None

    def run(with_graph: NativeProgram | None) -> Tensor:
        view.native_program = with_graph
        return step.prefill(view, cache_of(decoder), Tokens(IDS), 0)

    assert_alike(run, fused(view, native.isa()), native.isa())


def test_what_has_no_program() -> None:
    assert NativeProgram.of(Gemma3(GEMMA3)) is None  # plain floats
    assert not is_native(made(dataclasses.replace(GEMMA3, head_dim=32)))
    graph = fused(made(GEMMA3), native.isa())
    assert not graph.supports(KVCache(GEMMA3, 64, dtype=torch.float16))
    assert graph.supports(KVCache(GEMMA3, 64, dtype=torch.float16, kv_format="bf16"))


def test_keys_take_16_bits_where_there_is_a_program(tiny_tokenizer: Tokenizer) -> None:
    assert Engine(made(GEMMA3, "q8_0"), tiny_tokenizer).cache().stored == torch.bfloat16
    assert Engine(Gemma3(GEMMA3), tiny_tokenizer).cache().stored == torch.float32
    plain = Engine(made(GEMMA3, "q8_0"), tiny_tokenizer, kv_format="plain")
    assert plain.cache().stored == torch.float32


@torch.inference_mode()
def test_broken_weights_are_not_rounded_away() -> None:
    decoder = made(GEMMA3, "q8_0")
    blocks = decoder.layers[2].self_attn.k_proj.blocks
    blocks[0, :2] = torch.tensor([float("nan")], dtype=torch.float16).view(torch.uint8)
    scores, finite = fused(decoder, native.isa()).scores(
        [IDS], [range(60)], cache_of(decoder, chunk=60), 1
    )
    assert not torch.isfinite(scores).all() and not finite


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [1, 60])
def test_broken_gates_do_not_sleep(isa: str, tokens: int) -> None:
    """A sparse layer puts most of its gates to zero; what is no number is not among them."""
    decoder = made(GEMMA3N, "q8_0")
    blocks = decoder.layers[0].mlp.gate_proj.blocks
    blocks[0, :2] = torch.tensor([float("nan")], dtype=torch.float16).view(torch.uint8)
    cache = cache_of(decoder, chunk=60)
    _, finite = fused(decoder, isa).scores([IDS[:tokens]], [range(tokens)], cache, 1)
    assert not finite
