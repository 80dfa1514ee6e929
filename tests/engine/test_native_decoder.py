"""A decoder as a program gives what its modules give, in every way a step can be taken.

The program runs natively, under every instruction set of this machine, and in NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest

from gemelo.config import Gemma3Config, Gemma3nConfig, Submodel
from gemelo.config.options import KVFormat
from gemelo.config.rope import Linear as Stretch
from gemelo.config.rope import Yarn
from gemelo.engine import step
from gemelo.engine.decoder import Decoder, StepPiece
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache
from gemelo.engine.native_decoder import NativeDecoder, is_float32, runs_natively
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.errors import InputError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import native
from gemelo.kernels.quants import Floats
from tests.divergence import bfloat16_attention, divergence, off
from tests.kernels.matrices import TILES, normal
from tests.native import needs_native
from tests.quantised import GEMMA3, GEMMA3N, IDS, again, cache_of, made, modules_of

STRETCHED = dataclasses.replace(
    GEMMA3,
    rope_scaling_factor=1.0,
    rope_scaling=Yarn(8.0, 32, attention_factor=1.4),
    rope_local_scaling=Stretch(4.0),
)
Run = Callable[[Decoder], Floats]
UNTIED = dataclasses.replace(GEMMA3, tie_word_embeddings=False)
UNTIED_3N = dataclasses.replace(GEMMA3N, tie_word_embeddings=False)
ISAS = ["avx512", "avx2_vnni", "avx2", "generic", "neon", "amx", native.REFERENCE]


@pytest.fixture(scope="module", params=[GEMMA3, GEMMA3N], ids=["gemma3", "gemma3n"])
def decoder(request: pytest.FixtureRequest) -> NativeDecoder:
    return made(request.param)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of this machine, and NumPy."""
    name: str = request.param
    if name not in (*native.instruction_sets(), native.REFERENCE):
        pytest.skip(f"not a {name} machine")
    return name


def under(decoder: NativeDecoder, isa: str) -> NativeDecoder:
    """The decoder's program under an instruction set, which it keeps, or in NumPy."""
    if isa == native.REFERENCE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "module", None)
            return again(decoder)
    before = native.isa()
    native.use(isa)
    try:
        return again(decoder)
    finally:
        native.use(before)


def bound(run: Run, decoder: NativeDecoder, isa: str, kv_format: KVFormat = "plain") -> float:
    """How far a program's scores may diverge from those of the modules.

    Both are float32 sums in other orders: of 512 scores with a last bit of noise that is 1e-12. A
    cache that rounds puts a few numbers on the other side of a tie, a step each: 3e-6 at most. On
    TILES attention of many tokens over a cache of fewer bits is rounded to bfloat16: so much as
    that makes of the modules themselves, and as much again in the scores, which is four times the
    divergence.
    """
    sums = 1e-10 if kv_format == "plain" else 5e-6
    if isa not in TILES or kv_format == "plain":
        return sums
    oracle = modules_of(decoder)
    expected = run(oracle)
    with bfloat16_attention():
        return sums + 4 * divergence(run(oracle), expected)


def assert_alike(run: Run, decoder: NativeDecoder, isa: str, kv_format: KVFormat = "plain") -> None:
    """(test_slots.py compares bits.)"""
    found, expected = run(under(decoder, isa)), run(modules_of(decoder))
    assert divergence(found, expected) <= bound(run, decoder, isa, kv_format)


@pytest.mark.parametrize(
    "config", [STRETCHED, UNTIED, UNTIED_3N], ids=["yarn and linear", "untied", "untied-3n"]
)
def test_other_turns_and_heads(config: Gemma3Config | Gemma3nConfig, isa: str) -> None:
    def run(decoder: Decoder) -> Floats:
        cache = cache_of(decoder)
        read = step.prefill(decoder, cache, Tokens(IDS))
        return np.stack([read, step.decode(decoder, cache, 5, 60)])

    assert_alike(run, made(config), isa)


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_a_norm_five_percent_off_is_out_of_bounds(
    decoder: NativeDecoder, kv_format: KVFormat
) -> None:
    """Even on TILES, where bounds are widest, and in the longest chunk."""

    def run(decoder: Decoder) -> Floats:
        return step.score(decoder, cache_of(decoder, 60, kv_format), IDS)

    oracle = modules_of(decoder)
    expected = run(oracle)
    widest = bound(run, decoder, TILES[0], kv_format)
    assert kv_format == "plain" or widest > bound(run, decoder, "generic", kv_format)
    with off(oracle):
        assert divergence(run(oracle), expected) > 2 * widest


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
@pytest.mark.parametrize("chunk", [7, 24, 60])
def test_prefill_and_decode_are_the_modules(
    decoder: NativeDecoder, isa: str, chunk: int, kv_format: KVFormat
) -> None:
    def run(decoder: Decoder) -> Floats:
        cache = cache_of(decoder, chunk, kv_format)
        out = [step.prefill(decoder, cache, Tokens(IDS), 0)]
        for place, token in enumerate(IDS[:9], len(IDS)):
            out.append(step.decode(decoder, cache, token, place))
        cache.rewind(len(IDS) + 7)
        out.extend(step.verify(decoder, cache, IDS[9:13], len(IDS) + 7))
        return np.stack(out)

    assert_alike(run, decoder, isa, kv_format)


@pytest.mark.parametrize("chunk", [12, 60])
@pytest.mark.parametrize("is_block", [True, False])
def test_embedding_spans_are_the_modules(
    decoder: NativeDecoder, isa: str, chunk: int, is_block: bool
) -> None:
    """Pictures that see themselves both ways, the last of them before the answer; and sounds."""
    width = decoder.config.hidden_size

    def spans(louder: float = 1.0) -> list[EmbeddingSpan]:
        return [
            EmbeddingSpan(begin, normal(count, width, seed=begin) * louder, b"picture", is_block)
            for begin, count in ((3, 10), (17, 2), (48, 12))
        ]

    def run(decoder: Decoder, spans: Sequence[EmbeddingSpan]) -> Floats:
        cache = cache_of(decoder, chunk)
        read = step.prefill(decoder, cache, Tokens(IDS, spans), 0)
        return np.stack([read, step.decode(decoder, cache, 5, len(IDS))])

    assert_alike(lambda some: run(some, spans()), decoder, isa)
    found, expected = run(decoder, spans()), run(modules_of(decoder), spans())
    for other in ([], spans(2.0)):  # what is seen counts
        assert np.abs(run(decoder, other) - found).max() > 0.1 * np.abs(expected).max()


class Markers:
    """Ids from 480 on have their embeddings with a modality."""

    first = 480

    def rows(self, ids: Sequence[int]) -> dict[int, Floats]:
        return {p: np.full(64, id / 100, np.float32) for p, id in enumerate(ids) if id >= 480}


def test_ids_of_a_modality_are_the_modules(isa: str) -> None:
    decoder = made(GEMMA3N)
    text = [id for id in IDS if id < 480]
    ids = [*text[:20], 490, *text[20:30]]

    def run(decoder: Decoder) -> Floats:
        cache = cache_of(decoder)
        read = step.prefill(decoder, cache, Tokens(ids), 0)
        return np.stack([read, step.decode(decoder, cache, 485, len(ids))])

    plain = run(under(decoder, isa))
    decoder.modality_embeddings = Markers()
    assert_alike(run, decoder, isa)
    expected = run(modules_of(decoder))
    assert np.abs(plain - expected).max(-1).min() > 0.1 * np.abs(expected).max()


def test_scores_of_every_position(decoder: NativeDecoder, isa: str) -> None:
    assert_alike(lambda some: step.score(some, cache_of(some), IDS), decoder, isa)


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_a_step_of_many_sequences(decoder: NativeDecoder, isa: str, kv_format: KVFormat) -> None:
    """Each of its own length: prompts of many tokens and of few, and a prompt with its tail."""

    def run(decoder: Decoder) -> Floats:
        one, two, three = (cache_of(decoder, kv_format=kv_format) for _ in range(3))
        pieces = [
            StepPiece(one, IDS[:9], 0),
            StepPiece(two, IDS[9:34], 0),
            StepPiece(three, IDS[:20], 0),
            StepPiece(three, IDS[20:22], 20),
        ]
        scores, finite = decoder.step(pieces)
        assert finite and [len(kept) for kept in scores] == [9, 25, 20, 2]
        return np.concatenate(scores)

    assert_alike(run, decoder, isa, kv_format)


def test_pieces_of_one_cache_are_as_one_by_one(decoder: NativeDecoder, isa: str) -> None:
    """The slots of all are placed before: a token still sees none that comes after it."""
    runs = under(decoder, isa)
    pairs = [runs, modules_of(decoder)]
    for some in pairs:
        together, apart = cache_of(some), cache_of(some)
        pieces = [(0, 20), (20, 21), (21, 30)]
        parts = [StepPiece(together, IDS[b:e], b) for b, e in pieces]
        found, _ = some.step([parts[0], StepPiece(cache_of(some), IDS[:3], 0), *parts[1:]])
        expected = [some.step([StepPiece(apart, IDS[b:e], b)])[0][0] for b, e in pieces]
        for ours, theirs in zip([found[0], *found[2:]], expected, strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_the_last_tokens_of_every_piece(decoder: NativeDecoder, isa: str, keep: int) -> None:
    def run(decoder: Decoder) -> Floats:
        parts = (IDS[:3], IDS[3:25], IDS[25:28])
        pieces = [StepPiece(cache_of(decoder), ids, 0, keep) for ids in parts]
        scores, finite = decoder.step(pieces)
        assert finite and [len(kept) for kept in scores] == [keep] * 3
        return np.concatenate(scores)

    if keep:
        assert_alike(run, decoder, isa)
    assert run(under(decoder, isa)).shape == (3 * keep, decoder.config.vocab_size)


@pytest.mark.parametrize("runner", ["program", "modules"])
def test_what_would_be_read_elsewhere_is_refused(
    decoder: NativeDecoder, isa: str, runner: str
) -> None:
    runs = under(decoder, isa) if runner == "program" else modules_of(decoder)
    cache = cache_of(runs)
    for id in (-1, decoder.config.vocab_size, 1 << 40):
        with pytest.raises(InputError, match=f"token id {id} is outside 0 to 511"):
            runs.step([StepPiece(cache, [3, id], 0)])
    for keep in (3, -1):
        with pytest.raises(InputError, match=f"scores of {keep} of 2 tokens at 0"):
            runs.step([StepPiece(cache, [3, 4], 0, keep)])
    with pytest.raises(InputError, match="a piece at 3 of a cache whose piece before it ends at 2"):
        runs.step([StepPiece(cache, [3, 4], 0), StepPiece(cache, [3], 3)])
    with pytest.raises(InputError, match="a step of 33 tokens; the cache takes 32"):
        runs.step([StepPiece(cache_of(runs), [3], 0), *halves(cache, 17, 16)])
    assert cache.nbytes == 0 and runs.step([]) == ([], True)


def halves(cache: KVCache, first: int, second: int) -> list[StepPiece]:
    return [StepPiece(cache, IDS[:first], 0), StepPiece(cache, IDS[:second], first)]


@needs_native
@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_one_token_is_the_same_among_sixteen(kv_format: KVFormat) -> None:
    """What speculation relies on: verification gives the bits that plain decoding gives."""
    decoder = made(GEMMA3, "q8_0")
    prompt, ahead = IDS[:20], IDS[20:36]
    one, many = (cache_of(decoder, kv_format=kv_format) for _ in range(2))
    for cache in (one, many):
        step.prefill(decoder, cache, Tokens(prompt), 0)
    together = step.verify(decoder, many, ahead, len(prompt))
    for place, token in enumerate(ahead):
        alone = step.decode(decoder, one, token, len(prompt) + place)
        assert np.array_equal(alone, together[place])


def test_a_view_is_a_program_of_its_own(isa: str) -> None:
    decoder = made(GEMMA3N)
    view = decoder.view(Submodel((96,) * 6 + (64,) * 5, skipped_layers=(8,)))

    def run(decoder: Decoder) -> Floats:
        return step.prefill(decoder, cache_of(decoder), Tokens(IDS), 0)

    assert_alike(run, view, isa)
    assert divergence(run(view), run(decoder)) > 1e-3


@needs_native
def test_what_the_kernels_do_not_take() -> None:
    assert runs_natively(GEMMA3, made(GEMMA3).weights)
    assert not made(dataclasses.replace(GEMMA3, head_dim=32)).is_native
    assert not made(dataclasses.replace(GEMMA3N, hidden_size_per_layer_input=8)).is_native


@needs_native
def test_keys_take_16_bits_where_weights_do(tiny_tokenizer: Tokenizer) -> None:
    assert Engine(made(GEMMA3, "q8_0"), tiny_tokenizer).cache().kv_format == "bf16"
    assert Engine(made(GEMMA3, "bf16"), tiny_tokenizer).cache().kv_format == "bf16"
    assert is_float32(made(GEMMA3).weights)
    assert Engine(made(GEMMA3), tiny_tokenizer).cache().kv_format == "plain"
    plain = Engine(made(GEMMA3, "q8_0"), tiny_tokenizer, kv_format="plain")
    assert plain.cache().kv_format == "plain"


def test_broken_weights_are_not_rounded_away(isa: str) -> None:
    decoder = made(GEMMA3, "q8_0")
    broken(decoder, "layers.2.self_attn.k_proj.weight")
    piece = StepPiece(cache_of(decoder, chunk=60), IDS, 0, 1)
    [scores], finite = under(decoder, isa).step([piece])
    assert not np.isfinite(scores).all() and not finite


@pytest.mark.parametrize("tokens", [1, 60])
def test_broken_gates_do_not_sleep(isa: str, tokens: int) -> None:
    """A sparse layer puts most of its gates to zero; what is no number is not among them."""
    decoder = made(GEMMA3N, "q8_0")
    broken(decoder, "layers.0.mlp.gate_proj.weight")
    piece = StepPiece(cache_of(decoder, chunk=60), IDS[:tokens], 0, 1)
    _, finite = under(decoder, isa).step([piece])
    assert not finite


def broken(decoder: NativeDecoder, name: str) -> None:
    """Make the first block's scale of a matrix in q8_0 no number."""
    blocks = decoder.weights[name].blocks
    blocks[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
