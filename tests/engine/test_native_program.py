"""A decoder as one native call gives what its modules give, in every way a step can be taken."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from gemelo.config import Gemma3Config, Gemma3nConfig, Submodel
from gemelo.config.rope import Linear as Stretch
from gemelo.config.rope import Yarn
from gemelo.engine import step
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache, KVFormat
from gemelo.engine.native_program import NativeProgram, is_native
from gemelo.engine.tokens import Soft
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import cpu
from gemelo.kernels.formats import FORMATS, Packed, pack
from gemelo.kernels.linear import QuantEmbedding, QuantLinear
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.layers import Embedding, Linear
from tests.conftest import TINY, randomise
from tests.gemma3n import TINY_3N
from tests.kernels.matrices import TILES

pytestmark = pytest.mark.skipif(cpu.native is None, reason="the native kernels were not built")

GEMMA3 = dataclasses.replace(
    TINY["blocks-of-32"], head_dim=64, hidden_size=64, final_logit_softcapping=20.0
)
GEMMA3N = dataclasses.replace(
    TINY_3N, vocab_size_per_layer_input=500, intermediate_size=(128,) * 12, head_dim=64
)
STRETCHED = dataclasses.replace(
    GEMMA3,
    rope_scaling_factor=1.0,
    rope_scaling=Yarn(8.0, 32, attention_factor=1.4),
    rope_local_scaling=Stretch(4.0),
)
UNTIED = dataclasses.replace(GEMMA3, tie_word_embeddings=False)
UNTIED_3N = dataclasses.replace(GEMMA3N, tie_word_embeddings=False)
IDS = torch.randint(3, 500, (60,), generator=torch.Generator().manual_seed(3)).tolist()


def quantised(decoder: Gemma3 | Gemma3n, name: str = "f32") -> Gemma3 | Gemma3n:
    """The decoder with every matrix as blocks; "f32" blocks change no number."""
    randomise(decoder)

    def packed(weight: Tensor) -> Packed:
        if name == "f32":
            return Packed(weight.detach().clone().view(torch.uint8), FORMATS["f32"])
        return pack(weight.detach(), FORMATS[name])

    def exchange(module: nn.Module) -> None:
        for leaf, child in module.named_children():
            if isinstance(child, Embedding):
                setattr(module, leaf, QuantEmbedding(packed(child.weight), torch.float32))
            elif type(child) is Linear and child.weight.shape[1] % 32 == 0:
                setattr(module, leaf, QuantLinear(packed(child.weight)))
            else:
                exchange(child)

    exchange(decoder)
    return decoder.eval()


def made(config: Gemma3Config | Gemma3nConfig, name: str = "f32") -> Gemma3 | Gemma3n:
    return quantised(Gemma3n(config) if isinstance(config, Gemma3nConfig) else Gemma3(config), name)


@pytest.fixture(scope="module", params=[GEMMA3, GEMMA3N], ids=["gemma3", "gemma3n"])
def decoder(request: pytest.FixtureRequest) -> Gemma3 | Gemma3n:
    return made(request.param)


@pytest.fixture(params=["avx512", "avx2_vnni", "avx2", "generic", "neon", "amx"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of this machine; a program keeps the one it was made under."""
    name: str = request.param
    if name not in cpu.instruction_sets():
        pytest.skip(f"not a {name} machine")
    return name


def fused(decoder: Gemma3 | Gemma3n, isa: str) -> NativeProgram:
    before = cpu.isa()
    cpu.use(isa)
    try:
        graph = NativeProgram.of(decoder)
    finally:
        cpu.use(before)
    assert graph is not None
    return graph


def cache_of(
    decoder: Gemma3 | Gemma3n, rows: int = 1, chunk: int = 32, kv_format: KVFormat = "plain"
) -> KVCache:
    return KVCache(decoder.config, 256, rows, chunk, kv_format=kv_format)


def close(a: Tensor, b: Tensor, isa: str, kv_format: KVFormat = "plain") -> None:
    """Many tokens go through bfloat16 on TILES; everything else is float32 in another order.

    So keys and values differ in their last bits, and where a cache rounds them, some of them fall
    on different sides of a tie; layers later that shows. (test_slots.py compares bits.)
    """
    few, tiles = (2e-4, 0.03) if kv_format == "plain" else (0.01, 0.1)
    tolerance = tiles if isa in TILES else few
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


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
        out = [step.prefill(decoder, cache, IDS, 0), step.decode(decoder, cache, [5], [60])[0]]
        decoder.native_program = None
        return torch.stack(out)

    close(run(graph), run(None), isa)


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
        assert graph.takes(cache)
        out = [step.prefill(decoder, cache, IDS, 0)]
        for place, token in enumerate(IDS[:9], len(IDS)):
            out.append(step.decode(decoder, cache, [token], [place])[0])
        cache.rewind(0, len(IDS) + 7)
        out.extend(step.verify(decoder, cache, IDS[9:13], len(IDS) + 7))
        decoder.native_program = None
        return torch.stack(out)

    close(run(graph), run(None), isa, kv_format)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [12, 60])
@pytest.mark.parametrize("is_block", [True, False])
def test_soft_tokens_are_the_modules(
    decoder: Gemma3 | Gemma3n, isa: str, chunk: int, is_block: bool
) -> None:
    """Pictures that see themselves both ways, the last of them before the answer; and sounds."""
    generator = torch.Generator().manual_seed(4)
    width = decoder.config.hidden_size

    def runs(louder: float = 1.0) -> list[Soft]:
        generator.manual_seed(4)
        made = [(begin, torch.randn(count, width, generator=generator) * louder)
                for begin, count in ((3, 10), (17, 2), (48, 12))]  # fmt: skip
        return [Soft(begin, embeds, b"picture", is_block) for begin, embeds in made]

    def run(with_graph: NativeProgram | None, soft: list[Soft]) -> Tensor:
        decoder.native_program = with_graph
        cache = cache_of(decoder, 1, chunk)
        out = [step.prefill(decoder, cache, IDS, 0, soft=soft)]
        out.append(step.decode(decoder, cache, [5], [len(IDS)])[0])
        decoder.native_program = None
        return torch.stack(out)

    graph = fused(decoder, isa)
    found, expected = run(graph, runs()), run(None, runs())
    close(found, expected, isa)
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
        read = step.prefill(decoder, cache, ids, 0)
        return torch.stack([read, step.decode(decoder, cache, [485], [len(ids)])[0]])

    graph = fused(decoder, isa)
    expected = run(None, Markers())
    close(run(graph, Markers()), expected, isa)
    assert float((run(graph) - expected).abs().amax(-1).min()) > 0.1 * float(expected.abs().max())


@torch.inference_mode()
def test_scores_of_every_position(decoder: Gemma3 | Gemma3n, isa: str) -> None:
    graph = fused(decoder, isa)
    expected = step.score(decoder, cache_of(decoder), IDS)
    decoder.native_program = graph
    close(step.score(decoder, cache_of(decoder), IDS), expected, isa)
    decoder.native_program = None


@torch.inference_mode()
@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_rows_of_different_lengths(decoder: Gemma3 | Gemma3n, kv_format: KVFormat) -> None:
    graph = fused(decoder, cpu.isa())
    ids = torch.tensor([IDS[:9], IDS[9:18], IDS[18:27]])
    positions = torch.arange(9).expand(3, 9).clone()
    positions[1, 6:], positions[2, 2:] = -1, -1
    plain, native = (cache_of(decoder, 3, kv_format=kv_format) for _ in range(2))
    expected = decoder.logits(decoder(ids, positions, plain))
    found, _ = graph.scores(ids.tolist(), positions.tolist(), native, None)
    found = found.view(expected.shape)
    close(found[positions >= 0], expected[positions >= 0], cpu.isa(), kv_format)


@torch.inference_mode()
@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_one_token_is_the_same_among_sixteen(kv_format: KVFormat) -> None:
    """What speculation relies on: verification gives the bits that plain decoding gives."""
    decoder = made(GEMMA3, "q8_0")
    graph = fused(decoder, cpu.isa())
    decoder.native_program = graph
    prompt, ahead = IDS[:20], IDS[20:36]
    one, many = (cache_of(decoder, kv_format=kv_format) for _ in range(2))
    assert graph.takes(one)
    for cache in (one, many):
        step.prefill(decoder, cache, prompt, 0)
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
    expected = step.prefill(view, cache_of(decoder), IDS, 0)
    view.native_program = fused(view, cpu.isa())
    close(step.prefill(view, cache_of(decoder), IDS, 0), expected, cpu.isa())


def test_what_has_no_program() -> None:
    assert NativeProgram.of(Gemma3(GEMMA3)) is None  # plain floats
    assert not is_native(made(dataclasses.replace(GEMMA3, head_dim=32)))
    graph = fused(made(GEMMA3), cpu.isa())
    assert not graph.takes(KVCache(GEMMA3, 64, dtype=torch.float16))
    assert graph.takes(KVCache(GEMMA3, 64, dtype=torch.float16, kv_format="bf16"))


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
    scores, finite = fused(decoder, cpu.isa()).scores(
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
