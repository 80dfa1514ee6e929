"""Pictures and sounds among the ids: the joint models against transformers, in any chunking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gemelo.config import Gemma3nConfig, ModelConfig
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache
from gemelo.engine.sampler import Sampling
from gemelo.engine.session import Session
from gemelo.engine.step import prefill, write
from gemelo.engine.tokens import Soft, before_block, chunks, given, shared
from gemelo.errors import InputError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.models.multimodal import Tree
from tests.multimodal import AWAKE, BOA, BOI, EOI, EYED, IMAGE, awake, eyed, twin, vocabulary

TOLERANCE = 3e-4
TEXT = list(range(300, 480))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seen(begin: int, embeds: Tensor, key: bytes = b"a") -> Soft:
    return Soft(begin, embeds, key, is_block=True)


@torch.inference_mode()
def two_pictures() -> tuple[list[int], list[Soft], Tensor]:
    """Ids and runs of a prompt with two pictures, and their pixels."""
    pixels = noise(2, 3, 32, 32)
    picture = [BOI, *[IMAGE] * 16, EOI]
    ids = [2, *TEXT[:5], *picture, *TEXT[9:12], *picture, *TEXT[20:31]]
    soft = eyed().encode_image(pixels)
    return ids, [seen(7, soft[0]), seen(28, soft[1], b"b")], pixels


@pytest.fixture(scope="module")
@torch.inference_mode()
def gemma3() -> tuple[list[int], list[Soft], Tensor]:
    """Ids, runs, and the reference's scores after every token."""
    ids, soft, pixels = two_pictures()
    tokens = torch.tensor([ids])
    told = twin(EYED)(
        input_ids=tokens, pixel_values=pixels, token_type_ids=(tokens == IMAGE).long()
    )
    return ids, soft, told.logits[0]


@torch.inference_mode()
def sounds_and_a_picture() -> tuple[list[int], list[Soft], dict[str, Tensor]]:
    """A picture, a recording of nine tokens and silence up to twelve, and ids of both towers."""
    pixels, mel = noise(1, 3, 256, 256), noise(1, 130, 128, seed=1)
    ids = [2, *TEXT[:6], BOI, *[481] * 16, 480, *TEXT[9:15], BOA, *[497] * 12, 496, *TEXT[20:26]]
    tree = awake()
    heard = torch.cat([tree.encode_audio(mel)[0], tree.silence()[0].expand(3, -1)])
    picture = Soft(8, tree.encode_image(pixels)[0], b"a")
    facts = {
        "pixel_values": pixels,
        "input_features": mel,
        "input_features_mask": torch.ones(1, 130, dtype=torch.bool),
    }
    return ids, [picture, Soft(ids.index(497), heard, b"b")], facts


@pytest.fixture(scope="module")
@torch.inference_mode()
def gemma3n() -> tuple[list[int], list[Soft], Tensor]:
    ids, soft, facts = sounds_and_a_picture()
    return ids, soft, twin(AWAKE)(input_ids=torch.tensor([ids]), **facts).logits[0]


@torch.inference_mode()
def scores(tree: Tree, config: ModelConfig, ids: list[int], soft: Sequence[Soft], most: int) -> Any:
    """Scores after every token, a chunk at a time; most 0: without a cache."""
    decoder = tree.language_model
    cache = KVCache(config, context=128, chunk=most) if most else None
    steps = []
    for begin, end in chunks(0, len(ids), most or len(ids), soft):
        tokens = torch.tensor([ids[begin:end]])
        places = torch.arange(begin, end)[None]
        beside = given(decoder, tokens, places, soft)
        steps.append(decoder(tokens, places, cache, None, beside))
    return decoder.logits(torch.cat(steps, 1))[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("most", [0, 16, 17, 20, 61])
def test_gemma3_with_two_pictures(gemma3: tuple[list[int], list[Soft], Tensor], most: int) -> None:
    ids, soft, wanted = gemma3
    assert relative(scores(eyed(), EYED, ids, soft, most), wanted) <= TOLERANCE


def test_blocks_make_a_difference(gemma3: tuple[list[int], list[Soft], Tensor]) -> None:
    ids, soft, wanted = gemma3
    causal = [Soft(run.begin, run.embeds, run.key) for run in soft]
    assert relative(scores(eyed(), EYED, ids, causal, 0), wanted) > 100 * TOLERANCE


@pytest.mark.parametrize("most", [0, 1, 7, 64])
def test_gemma3n_with_a_picture_and_a_recording(
    gemma3n: tuple[list[int], list[Soft], Tensor], most: int
) -> None:
    ids, soft, wanted = gemma3n
    assert relative(scores(awake(), AWAKE, ids, soft, most), wanted) <= TOLERANCE


def session(tree: Tree, chunk: int = 20) -> Session:
    engine = Engine(tree.language_model, Tokenizer.from_gguf(vocabulary()), 256, chunk)
    return engine.session()


def test_greedy_answers_are_the_references() -> None:
    ids, soft, pixels = two_pictures()
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
    pieces = session(eyed()).stream(ids, settings, soft=soft)
    assert [token for piece in pieces for token in piece.token_ids] == wanted[
        0, len(ids) :
    ].tolist()


def test_a_turn_later_the_past_is_reused_with_its_pictures() -> None:
    ids, soft, _ = two_pictures()
    held = session(eyed())
    held.read(ids[:27], soft=soft[:1])
    again = held.read(ids, soft=soft)
    assert held.timings.reused_tokens == 27
    assert relative(again, session(eyed()).read(ids, soft=soft)) <= TOLERANCE


def test_another_picture_is_another_prefix() -> None:
    ids, soft, _ = two_pictures()
    held = session(eyed(), 64)
    held.read(ids, soft=soft)
    other = [soft[0], seen(28, soft[0].embeds)]
    found = held.read(ids, soft=other)
    assert held.timings.reused_tokens == 28
    fresh = session(eyed()).read(ids, soft=other)
    assert relative(found, fresh) <= TOLERANCE
    held.read(ids, soft=soft)
    assert held.timings.reused_tokens == 28
    held.read(ids, soft=[seen(7, soft[1].embeds, b"c"), soft[1]])
    assert held.timings.reused_tokens == 7


def test_listening_ahead_changes_nothing() -> None:
    ids, soft, _ = sounds_and_a_picture()
    begin = soft[1].begin
    parts = [Soft(begin + at, soft[1].embeds[at : at + 4], bytes([at])) for at in range(0, 12, 4)]
    live = session(awake())
    for part in parts:
        live.listen(ids[: part.end], [soft[0], *[p for p in parts if p.begin <= part.begin]])
    assert len(live.ids) == begin + 12
    found = live.read(ids, soft=[soft[0], *parts])
    assert live.timings.reused_tokens == begin + 12
    assert relative(found, session(awake()).read(ids, soft=soft)) <= TOLERANCE


def test_ids_of_a_tower_have_their_own_embeddings(
    gemma3n: tuple[list[int], list[Soft], Tensor],
) -> None:
    decoder = awake().language_model
    config = decoder.config
    assert isinstance(config, Gemma3nConfig)
    marked, plain = torch.tensor([[480, 496]]), torch.tensor([[300, 301]])
    assert given(decoder, plain, torch.tensor([[0, 1]])) is None
    beside = given(decoder, marked, torch.tensor([[0, 1]]))
    assert beside is not None and beside.attend_until is None
    assert relative(beside.embeds[0].square().mean(-1), torch.ones(2)) < 1e-3
    assert given(eyed().language_model, marked, torch.tensor([[0, 1]])) is None


def test_chunks_end_beside_blocks() -> None:
    block = seen(4, torch.zeros(6, 1))
    heard = Soft(12, torch.zeros(6, 1), b"x")
    assert [*chunks(0, 20, 6, [block, heard])] == [(0, 4), (4, 10), (10, 16), (16, 20)]
    assert [*chunks(0, 20, 20, [block])] == [(0, 20)]
    assert [*chunks(20, 20, 20, [block])] == []
    with pytest.raises(InputError, match="a picture of 6 tokens"):
        [*chunks(0, 20, 5, [block])]
    assert [before_block(at, [block, heard]) for at in (3, 4, 5, 9, 10, 14)] == [3, 4, 4, 4, 10, 14]


def test_how_far_two_lists_agree() -> None:
    a, b = seen(4, torch.zeros(6, 1)), seen(12, torch.zeros(6, 1))
    assert shared([], []) == shared([a], [a]) > 1 << 40
    assert shared([a], [a, b]) == shared([a, b], [a]) == 12
    assert shared([a, b], [seen(4, torch.zeros(6, 1), b"z"), b]) == 4
    assert shared([a], [seen(3, torch.zeros(6, 1))]) == 3


def test_a_picture_too_large_for_a_step_is_told() -> None:
    ids, soft, _ = two_pictures()
    cache = KVCache(EYED, context=128, chunk=8)
    with pytest.raises(InputError, match="16 tokens has to be read in one step, which takes 8"):
        prefill(eyed().language_model, cache, ids, 0, soft=soft)
    write(eyed().language_model, cache, ids, 0, 7, soft)
