"""The decoder against transformers on random weights: whole, in steps, in chunks, in a batch."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from gemelo.config import Gemma3Config
from gemelo.engine.modules.cache import ModuleCache, tensor_cache
from gemelo.models.gemma3 import Gemma3
from tests.conftest import TINY, tiny_model
from tests.twins import gemma3_twin

TOLERANCE = 1e-4
TOKENS = 37  # past every tiny window, and no multiple of any


@pytest.fixture(scope="module", params=TINY.values(), ids=TINY.keys())
def pair(request: pytest.FixtureRequest) -> tuple[Gemma3, Tensor, Tensor]:
    """Our model, ids (2, T), and the reference's logits (2, T, V)."""
    model = tiny_model(request.param)
    ids = torch.randint(3, 512, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model, ids, gemma3_twin(model)(ids, use_cache=False).logits


def positions_of(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.inference_mode()
def test_prefill_without_a_cache(pair: tuple[Gemma3, Tensor, Tensor]) -> None:
    model, ids, wanted = pair
    assert difference(model.logits(model(ids, positions_of(ids))), wanted) <= TOLERANCE


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 36, TOKENS])
@torch.inference_mode()
def test_any_chunking(pair: tuple[Gemma3, Tensor, Tensor], chunk: int) -> None:
    model, ids, wanted = pair
    cache = ModuleCache(tensor_cache(model.config, context=64, chunk=chunk))
    places = positions_of(ids)
    steps = [
        model(ids[:1, at : at + chunk], places[:1, at : at + chunk], cache)
        for at in range(0, TOKENS, chunk)
    ]
    assert difference(model.logits(torch.cat(steps, 1)), wanted[:1]) <= TOLERANCE


@torch.inference_mode()
def test_a_batch_of_mixed_lengths_is_each_alone(pair: tuple[Gemma3, Tensor, Tensor]) -> None:
    model, ids, _ = pair
    twin = gemma3_twin(model)
    places = positions_of(ids).clone()
    lengths = [TOKENS - 4, 11]
    for row, length in enumerate(lengths):
        places[row, length:] = -1
    found = model.logits(model(ids, places))
    for row, length in enumerate(lengths):
        wanted = twin(ids[row : row + 1, :length], use_cache=False).logits[0]
        assert difference(found[row, :length], wanted) <= TOLERANCE


@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_the_reference_is(
    pair: tuple[Gemma3, Tensor, Tensor],
) -> None:
    model, ids, exact = pair
    theirs = gemma3_twin(model).to(torch.bfloat16)(ids, use_cache=False).logits.float()
    half = copy.deepcopy(model).to(torch.bfloat16)
    ours = half.logits(half(ids, positions_of(ids)))
    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().mean() <= 1.1 * (theirs - exact).abs().mean()


def test_the_embedding_scale_is_rounded_to_the_dtype() -> None:
    config = Gemma3Config(vocab_size=8, hidden_size=640, num_hidden_layers=1, sliding_window=4)
    with torch.device("meta"):
        model = Gemma3(config)
    model.embed_tokens.weight = torch.nn.Parameter(
        torch.ones(8, 640, dtype=torch.bfloat16), requires_grad=False
    )
    assert float(model.embed(torch.tensor([[1]]))[0, 0, 0]) == 25.25


def test_an_untied_head_is_used() -> None:
    config = dataclasses.replace(TINY["one-kv-head"], tie_word_embeddings=False)
    model = tiny_model(config)
    hidden = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.logits(hidden), hidden @ model.lm_head.weight.T)


@pytest.mark.parametrize("keep", [0, 1, 5])
@torch.inference_mode()
def test_kept_tokens_are_those_of_the_whole(pair: tuple[Gemma3, Tensor, Tensor], keep: int) -> None:
    model, ids, wanted = pair
    cache, ids = ModuleCache(tensor_cache(model.config, context=64, chunk=TOKENS)), ids[:1]
    hidden = model(ids, positions_of(ids), cache, logits_to_keep=keep)
    assert hidden.shape[1] == keep
    if keep:
        assert difference(model.logits(hidden), wanted[:1, -keep:]) <= TOLERANCE
    step = model(torch.full((1, 1), 9), torch.full((1, 1), TOKENS), cache)
    twice = torch.cat([ids, torch.full((1, 1), 9)], 1)
    assert difference(step, model(twice, positions_of(twice))[:, -1:]) <= TOLERANCE
