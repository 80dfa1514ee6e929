"""Pictures and sounds among the ids: the joint models against transformers, in any chunking."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gemelo.checkpoints.modality_embeddings import Embedder, ModalityEmbeddings
from gemelo.config import AudioConfig, Gemma3nConfig, Vision3nConfig
from gemelo.config.sampling import Sampling
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.engine import Engine
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.modules.forward import forward
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.session import Session
from gemelo.engine.tokens import EmbeddingSpan, Tokens, checked, step_inputs
from gemelo.errors import InputError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import native
from gemelo.kernels.quants import Floats
from gemelo.models.quantised import packed_of
from tests.multimodal import AWAKE, BOA, BOI, EOI, EYED, IMAGE, awake, eyed, twin, vocabulary
from tests.quantised import modules_of, native_of

TOLERANCE = 3e-4
TEXT = list(range(300, 480))


@cache
def program(config: Any) -> NativeDecoder:
    """The decoder of a tiny model with towers, natively where there are kernels."""
    if config is EYED:
        decoder = native_of(eyed().language_model)
    else:
        decoder = native_of(awake().language_model)
        decoder.modality_embeddings = special()
    assert decoder.is_native == (native.module is not None)
    return decoder


def special() -> ModalityEmbeddings:
    """Embeddings of the towers' own ids, from the towers' weights."""
    state, config = awake().state_dict(), AWAKE
    assert isinstance(config.vision, Vision3nConfig) and isinstance(config.audio, AudioConfig)
    towers = ((config.vision, "embed_vision."), (config.audio, "embed_audio."))
    return ModalityEmbeddings([Embedder(t, at, lambda n: packed_of(state[n])) for t, at in towers])


@cache
def decoder_of(runner: str, config: Any) -> Decoder:
    return modules_of(program(config)) if runner == "modules" else program(config)


@pytest.fixture(params=["program", "modules"])
def sees(request: pytest.FixtureRequest) -> Decoder:
    """A Gemma 3 that takes pictures."""
    return decoder_of(request.param, EYED)


@pytest.fixture(params=["program", "modules"])
def hears(request: pytest.FixtureRequest) -> Decoder:
    """A Gemma 3n that takes pictures and sounds."""
    return decoder_of(request.param, AWAKE)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seen(begin: int, embeds: Tensor | Floats, key: bytes = b"a") -> EmbeddingSpan:
    return EmbeddingSpan(begin, embeds, key, bidirectional=True)  # type: ignore[arg-type]


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


@torch.inference_mode()
def two_pictures() -> tuple[list[int], list[EmbeddingSpan], Tensor]:
    """Ids and runs of a prompt with two pictures, and their pixels."""
    pixels = noise(2, 3, 32, 32)
    picture = [BOI, *[IMAGE] * 16, EOI]
    ids = [2, *TEXT[:5], *picture, *TEXT[9:12], *picture, *TEXT[20:31]]
    spans = eyed().encode_image(pixels)
    return ids, [seen(7, spans[0]), seen(28, spans[1], b"b")], pixels


@pytest.fixture(scope="module")
@torch.inference_mode()
def gemma3() -> tuple[list[int], list[EmbeddingSpan], Floats]:
    """Ids, runs, and the reference's scores after every token."""
    ids, spans, pixels = two_pictures()
    tokens = torch.tensor([ids])
    told = twin(EYED)(
        input_ids=tokens, pixel_values=pixels, token_type_ids=(tokens == IMAGE).long()
    )
    return ids, spans, told.logits[0].numpy()


@torch.inference_mode()
def sounds_and_a_picture() -> tuple[list[int], list[EmbeddingSpan], dict[str, Tensor]]:
    """A picture, a recording of nine tokens and silence up to twelve, and ids of both towers."""
    pixels, mel = noise(1, 3, 256, 256), noise(1, 130, 128, seed=1)
    ids = [2, *TEXT[:6], BOI, *[481] * 16, 480, *TEXT[9:15], BOA, *[497] * 12, 496, *TEXT[20:26]]
    tree = awake()
    heard = torch.cat([tree.encode_audio(mel)[0], tree.silence()[0].expand(3, -1)])
    picture = EmbeddingSpan(8, tree.encode_image(pixels)[0], b"a")
    facts = {
        "pixel_values": pixels,
        "input_features": mel,
        "input_features_mask": torch.ones(1, 130, dtype=torch.bool),
    }
    return ids, [picture, EmbeddingSpan(ids.index(497), heard, b"b")], facts


@pytest.fixture(scope="module")
@torch.inference_mode()
def gemma3n() -> tuple[list[int], list[EmbeddingSpan], Floats]:
    ids, spans, facts = sounds_and_a_picture()
    logits = twin(AWAKE)(input_ids=torch.tensor([ids]), **facts).logits[0]
    return ids, spans, logits.numpy()


def scores(decoder: Decoder, ids: list[int], spans: Sequence[EmbeddingSpan], most: int) -> Floats:
    """Scores after every token, a chunk at a time; most 0: all at once, modules without a cache."""
    tokens = Tokens(ids, spans)
    if not most and isinstance(decoder, ModuleDecoder):
        plain: Floats = forward(decoder, tokens).logits.numpy()
        return plain.reshape(len(ids), -1)
    return step.score(decoder, decoder.cache(128, most or len(ids)), tokens)


def relative(a: Floats, b: Floats) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


Told = tuple[list[int], list[EmbeddingSpan], Floats]


@pytest.mark.parametrize("most", [0, 16, 17, 20, 61])
def test_gemma3_with_two_pictures(gemma3: Told, sees: Decoder, most: int) -> None:
    ids, spans, wanted = gemma3
    assert relative(scores(sees, ids, spans, most), wanted) <= TOLERANCE


def test_blocks_make_a_difference(gemma3: Told, sees: Decoder) -> None:
    ids, spans, wanted = gemma3
    causal = [EmbeddingSpan(run.begin, run.embeds, run.key) for run in spans]
    assert relative(scores(sees, ids, causal, 0), wanted) > 100 * TOLERANCE


@pytest.mark.parametrize("most", [0, 1, 7, 64])
def test_gemma3n_with_a_picture_and_a_recording(gemma3n: Told, hears: Decoder, most: int) -> None:
    ids, spans, wanted = gemma3n
    assert relative(scores(hears, ids, spans, most), wanted) <= TOLERANCE


def session(decoder: Decoder, chunk: int = 20) -> Session:
    return Engine(decoder, Tokenizer.from_gguf(vocabulary()), 256, chunk).session()


def test_greedy_answers_are_the_references(sees: Decoder) -> None:
    ids, spans, pixels = two_pictures()
    tokens = torch.tensor([ids])
    wanted = twin(EYED).generate(
        input_ids=tokens,
        pixel_values=pixels,
        token_type_ids=(tokens == IMAGE).long(),
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=[],
    )
    settings = Sampling(temperature=0, max_tokens=8, ignore_eos=True)
    pieces = session(sees).stream(Tokens(ids, spans), settings)
    assert [token for piece in pieces for token in piece.token_ids] == wanted[
        0, len(ids) :
    ].tolist()


def test_a_turn_later_the_past_is_reused_with_its_pictures(sees: Decoder) -> None:
    ids, spans, _ = two_pictures()
    held = session(sees)
    held.read(Tokens(ids[:27], spans[:1]))
    again = held.read(Tokens(ids, spans))
    assert held.timings.reused_tokens == 27
    assert relative(again, session(sees).read(Tokens(ids, spans))) <= TOLERANCE


def test_another_picture_is_another_prefix(sees: Decoder) -> None:
    ids, spans, _ = two_pictures()
    held = session(sees, 64)
    held.read(Tokens(ids, spans))
    other = [spans[0], seen(28, spans[0].embeds)]
    found = held.read(Tokens(ids, other))
    assert held.timings.reused_tokens == 23  # the end of the first, where every prompt is cut
    fresh = session(sees).read(Tokens(ids, other))
    assert relative(found, fresh) <= TOLERANCE
    held.read(Tokens(ids, spans))
    assert held.timings.reused_tokens == 23
    held.read(Tokens(ids, [seen(7, spans[1].embeds, b"c"), spans[1]]))
    assert held.timings.reused_tokens == 0


@pytest.mark.parametrize("extends", [False, True])
def test_writing_ahead_changes_nothing(hears: Decoder, extends: bool) -> None:
    """A prompt that comes in pieces: each time the whole of it, or only what is new."""
    ids, spans, _ = sounds_and_a_picture()
    begin = spans[1].begin
    parts = [
        EmbeddingSpan(begin + at, spans[1].embeds[at : at + 4], bytes([at])) for at in (0, 4, 8)
    ]
    whole = Tokens(ids, [spans[0], *parts])
    live = session(hears)
    live.write(whole[:begin])
    for part in parts:
        if extends:
            live.extend(whole[part.begin : part.end])
        else:
            live.write(whole[: part.end])
    assert len(live.ids) == begin + 12
    found = live.read(whole)
    assert live.timings.reused_tokens == begin + 12
    assert relative(found, session(hears).read(Tokens(ids, spans))) <= TOLERANCE


def test_ids_of_a_tower_have_their_own_embeddings(hears: Decoder) -> None:
    assert isinstance(hears.config, Gemma3nConfig)
    marked = Tokens([480, 496])
    assert step_inputs(hears, Tokens([300, 301]), 0) is None
    inputs = step_inputs(hears, marked, 0)
    assert inputs is not None and inputs.attend_until is None
    assert inputs.inputs_embeds.dtype == np.float32
    assert relative(np.square(inputs.inputs_embeds).mean(-1), np.ones(2, np.float32)) < 1e-3
    with torch.inference_mode():
        expected = awake().language_model.embed(torch.tensor([marked.ids])).numpy()
    assert relative(inputs.inputs_embeds, expected[0]) < 1e-5
    assert step_inputs(decoder_of("program", EYED), marked, 0) is None


def test_embeds_become_float32_arrays() -> None:
    """A tower's tensor of any type, without a copy where it is that already."""
    values = torch.arange(6.0).reshape(3, 2)
    for embeds in (values, values.bfloat16(), values.double().numpy(), values.requires_grad_()):
        span = EmbeddingSpan(0, embeds, b"")  # type: ignore[arg-type]
        assert isinstance(span.embeds, np.ndarray) and span.embeds.dtype == np.float32
        assert np.array_equal(span.embeds, values.detach().numpy())
    own = EmbeddingSpan(0, values, b"")  # type: ignore[arg-type]
    assert own.embeds.ctypes.data == values.data_ptr()
    assert EmbeddingSpan(0, own.embeds, b"").embeds is own.embeds


def test_tensors_of_few_numbers_are_taken_or_told() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    negated = torch.complex(values, -values).conj().imag  # its sign is a bit of the tensor's own
    span = EmbeddingSpan(0, negated, b"")  # type: ignore[arg-type]
    assert np.array_equal(span.embeds, values.numpy())
    for embeds in (values.to("meta"), values.to_sparse(), [[1.0], [2.0, 3.0]]):
        with pytest.raises(InputError, match="^embeddings cannot be read as an array .*floats"):
            EmbeddingSpan(0, embeds, b"")  # type: ignore[arg-type]


def test_blocks_are_the_pictures_that_are_seen_both_ways() -> None:
    picture = seen(4, zeros(6, 1))
    sound = EmbeddingSpan(12, zeros(6, 1), b"x")
    tokens = Tokens(range(20), [picture, sound])
    assert tokens.blocks == [(4, 10)] and tokens[4:].blocks == [(0, 6)]
    assert [tokens.uncut(index) for index in (3, 4, 5, 9, 10, 14)] == [3, 4, 4, 4, 10, 14]


def test_a_part_has_its_spans_at_their_places() -> None:
    embeds = np.arange(6, dtype=np.float32)[:, None]
    spans = [EmbeddingSpan(4, embeds, b"a"), EmbeddingSpan(12, embeds, b"x")]
    tokens = Tokens(range(20), spans)
    part = tokens[6:14]
    assert len(part) == 8 and [*part.ids] == [*range(6, 14)]
    assert [(span.begin, span.end, span.key) for span in part.spans] == [
        (0, 4, b"a"),
        (6, 8, b"x"),
    ]
    assert np.array_equal(part.spans[0].embeds, embeds[2:])
    assert np.array_equal(part.spans[1].embeds, embeds[:2])
    assert tokens[10:12].spans == [] and len(tokens[30:]) == 0
    joined = tokens[:12] + tokens[12:]
    assert [*joined.ids] == [*tokens.ids] and joined.common_prefix(tokens) == 20


def test_how_far_two_lists_agree() -> None:
    a, b = seen(4, zeros(6, 1)), seen(12, zeros(6, 1))

    def shared(one: list[EmbeddingSpan], other: list[EmbeddingSpan], ids: int = 20) -> int:
        return Tokens(range(20), one).common_prefix(Tokens([*range(ids), *[0] * 9], other))

    assert Tokens([1, 2, 3]).common_prefix(Tokens([1, 2, 4])) == 2
    assert Tokens([]).common_prefix(Tokens([1])) == 0
    assert Tokens([1, 2]).common_prefix(Tokens([1, 2, 3])) == 2
    assert shared([], []) == shared([a], [a]) == 20
    assert shared([], [], 7) == shared([a], [a], 7) == 7
    assert shared([a], [a, b]) == shared([a, b], [a]) == 12
    assert shared([a, b], [seen(4, zeros(6, 1), b"z"), b]) == 4
    assert shared([a], [seen(3, zeros(6, 1))]) == 3


def test_a_picture_too_large_for_a_step_is_told(sees: Decoder) -> None:
    ids, spans, _ = two_pictures()
    held = sees.cache(128, 8)
    with pytest.raises(InputError, match="16 tokens has to be read in one step, which takes 8"):
        step.prefill(sees, held, Tokens(ids, spans), 0)
    step.write(sees, held, Tokens(ids[:7]), 0)


def test_parts_of_one_span_are_told_apart() -> None:
    """The first half of a recording in place of the second is another content."""
    embeds = np.arange(8, dtype=np.float32)[:, None]
    whole = Tokens(range(20), [EmbeddingSpan(5, embeds, b"x")])
    first, second = whole[:9], Tokens(range(5)) + whole[9:13]
    assert len(first) == len(second) == 9
    assert first.common_prefix(Tokens(range(9), second.spans)) == 5
    assert whole.common_prefix(whole[:9] + whole[9:]) == 5 and first.common_prefix(whole[:9]) == 9


@pytest.mark.parametrize("part", [slice(None, None, 2), slice(None, None, -1), 3])
def test_other_parts_are_refused(part: Any) -> None:
    with pytest.raises(InputError, match=r"expected tokens\[begin:end\]"):
        Tokens(range(9))[part]


def test_a_picture_is_not_cut() -> None:
    tokens = Tokens(range(20), [seen(4, zeros(6, 1))])
    assert len(tokens[4:10].spans) == 1 and not tokens[:4].spans
    with pytest.raises(InputError, match="cut a picture at 4 to 10"):
        tokens[:9]


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        ([EmbeddingSpan(5, zeros(4, 96), b"")], None),
        ([EmbeddingSpan(-1, zeros(4, 96), b"")], "where 0 is the first"),
        ([EmbeddingSpan(6, zeros(4, 96), b"")], "at 6 to 10 of 9 tokens"),
        (
            [EmbeddingSpan(4, zeros(2, 96), b""), EmbeddingSpan(5, zeros(2, 96), b"")],
            "6",
        ),
        (
            [EmbeddingSpan(4, zeros(2, 96), b""), EmbeddingSpan(1, zeros(2, 96), b"")],
            "6",
        ),
        ([EmbeddingSpan(4, zeros(2, 3), b"")], "width 96"),
        ([EmbeddingSpan(4, zeros(96), b"")], "width 96"),
        ([EmbeddingSpan(4, zeros(0, 96), b"")], "one or more"),
        ([EmbeddingSpan(4, np.zeros((2, 96), np.int32), b"")], "expected floats"),
        ([EmbeddingSpan(4, torch.ones(2, 96, dtype=torch.int32), b"")], "of type int32"),
        ([EmbeddingSpan(4, np.full((2, 96), np.nan), b"")], "at 4 hold what is no finite float32"),
        ([EmbeddingSpan(4, np.full((2, 96), 1e300), b"")], "at 4 hold what is no finite float32"),
        ([EmbeddingSpan(4.0, zeros(2, 96), b"")], "at 4.0; expected an index"),  # type: ignore[arg-type]
    ],
)
def test_spans_are_checked(spans: list[EmbeddingSpan], error: str | None) -> None:
    tokens = Tokens(range(9), spans)
    if error is None:
        assert checked(tokens, EYED, 64).spans == spans
    else:
        with pytest.raises(InputError, match=error):
            checked(tokens, EYED, 64)


def test_going_on_after_a_prompt_that_was_not_read_whole(hears: Decoder) -> None:
    """What was read of a recording counts, and no more of it."""
    ids, spans, _ = sounds_and_a_picture()
    whole = Tokens(ids, spans)
    middle = spans[1].begin + 4
    live = session(hears, chunk=16)

    def stop(position: int, total: int) -> None:
        if position >= middle - 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live.read(whole, stop)
    held = len(live.ids)
    live.extend([300, 301])
    assert all(span.end <= held for span in live.spans)
    assert relative(live.read(whole), session(hears).read(whole)) <= TOLERANCE
