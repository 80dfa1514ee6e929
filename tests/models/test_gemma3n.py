"""The Gemma 3n decoder against transformers on random weights, whole and in every kind of step."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from gemelo.engine.modules.cache import ModuleCache, tensor_cache
from gemelo.models.altup import gaussian_topk
from gemelo.models.gemma3n import Gemma3n
from tests.gemma3n import SMALL, VARIANTS
from tests.matformer import tiny_gemma3n
from tests.twins import gemma3n_twin

TOLERANCE = 3e-4
TOKENS = 31


def positions_of(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def pair(request: pytest.FixtureRequest) -> tuple[Gemma3n, Tensor, Tensor]:
    """Our model, ids (2, T), and the reference's logits (2, T, V)."""
    model = tiny_gemma3n(request.param)
    ids = torch.randint(3, 320, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model, ids, gemma3n_twin(model)(ids, use_cache=True).logits


@torch.inference_mode()
def test_without_a_cache(pair: tuple[Gemma3n, Tensor, Tensor]) -> None:
    model, ids, wanted = pair
    assert difference(model.logits(model(ids, positions_of(ids))), wanted) <= TOLERANCE


@pytest.mark.parametrize("chunk", [1, 3, 7, 30, TOKENS])
@torch.inference_mode()
def test_any_chunking(pair: tuple[Gemma3n, Tensor, Tensor], chunk: int) -> None:
    model, ids, wanted = pair
    cache = ModuleCache(tensor_cache(model.config, context=64, chunk=chunk))
    places = positions_of(ids)
    steps = [
        model(ids[:1, at : at + chunk], places[:1, at : at + chunk], cache)
        for at in range(0, TOKENS, chunk)
    ]
    assert difference(model.logits(torch.cat(steps, 1)), wanted[:1]) <= TOLERANCE


@torch.inference_mode()
def test_a_batch_of_mixed_lengths_is_each_alone(pair: tuple[Gemma3n, Tensor, Tensor]) -> None:
    model, ids, _ = pair
    twin = gemma3n_twin(model)
    places = positions_of(ids).clone()
    lengths = [TOKENS - 4, 11]
    for row, length in enumerate(lengths):
        places[row, length:] = -1
    found = model.logits(model(ids, places))
    for row, length in enumerate(lengths):
        wanted = twin(ids[row : row + 1, :length], use_cache=True).logits[0]
        assert difference(found[row, :length], wanted) <= TOLERANCE


@pytest.mark.parametrize("keep", [0, 1, 4])
@torch.inference_mode()
def test_half_depth_is_exact_for_the_tokens_that_are_kept(
    pair: tuple[Gemma3n, Tensor, Tensor], keep: int
) -> None:
    """Prompt tokens stop at the last layer that owns keys; later steps cannot tell."""
    model, ids, wanted = pair
    cache, ids = ModuleCache(tensor_cache(model.config, context=64, chunk=TOKENS)), ids[:1]
    hidden = model(ids, positions_of(ids), cache, logits_to_keep=keep)
    assert hidden.shape[1] == keep
    if keep:
        assert difference(model.logits(hidden), wanted[:1, -keep:]) <= TOLERANCE
    step = model(torch.full((1, 1), 9), torch.full((1, 1), TOKENS), cache)
    longer = torch.cat([ids, torch.full((1, 1), 9)], 1)
    assert difference(step, model(longer, positions_of(longer))[:, -1:]) <= TOLERANCE


def test_upper_layers_do_not_run_for_tokens_nobody_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_gemma3n(SMALL)
    seen: dict[int, int] = {}
    for place, block in enumerate(model.layers):
        forward = block.mlp.forward

        def counted(x: Tensor, width: int, place: int = place, forward=forward) -> Tensor:  # type: ignore[no-untyped-def]
            seen[place] = seen.get(place, 0) + x.shape[1]
            result: Tensor = forward(x, width)
            return result

        monkeypatch.setattr(block.mlp, "forward", counted)
    ids = torch.arange(3, 24)[None]
    with torch.inference_mode():
        model(ids, positions_of(ids), ModuleCache(tensor_cache(SMALL, 64)), logits_to_keep=1)
    assert [seen[place] for place in range(12)] == [21] * 6 + [1] * 6


def test_shared_layers_have_no_keys_of_their_own() -> None:
    model = tiny_gemma3n(SMALL)
    with_keys = [i for i, block in enumerate(model.layers) if hasattr(block.self_attn, "k_proj")]
    assert with_keys == list(SMALL.kv_layers) == list(range(7))
    assert sorted(tensor_cache(SMALL, 64).stores) == with_keys
    assert [SMALL.kv_donor(layer) for layer in range(7, 12)] == [6, 6, 4, 6, 6]


@torch.inference_mode()
def test_ids_outside_the_per_layer_table_take_its_first_row() -> None:
    model = tiny_gemma3n(SMALL)
    changed = copy.deepcopy(model)
    changed.embed_tokens_per_layer.weight[1:] += 1
    ids = torch.tensor([[310, 319, 300]])
    same = model(ids, positions_of(ids))
    assert torch.equal(same, changed(ids, positions_of(ids)))
    assert not torch.equal(model(ids - 10, positions_of(ids)), changed(ids - 10, positions_of(ids)))


@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_the_reference_is(
    pair: tuple[Gemma3n, Tensor, Tensor],
) -> None:
    model, ids, exact = pair
    theirs = gemma3n_twin(model).to(torch.bfloat16)(ids, use_cache=True).logits.float()
    half = copy.deepcopy(model).to(torch.bfloat16)
    ours = half.logits(half(ids, positions_of(ids)))
    assert 0 < (ours - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("tokens", [1, 2])
@torch.inference_mode()
def test_a_narrower_feed_forward_is_the_first_neurons(tokens: int) -> None:
    """As a feed-forward that has no others; NaN in those does not reach the result."""
    mlp = tiny_gemma3n(SMALL).layers[0].mlp
    narrow = tiny_gemma3n(dataclasses.replace(SMALL, intermediate_size=(64,) * 12)).layers[0].mlp
    narrow.gate_proj.weight.copy_(mlp.gate_proj.weight[:64])
    narrow.up_proj.weight.copy_(mlp.up_proj.weight[:64])
    narrow.down_proj.weight.copy_(mlp.down_proj.weight[:, :64])
    mlp.gate_proj.weight[64:], mlp.up_proj.weight[64:] = float("nan"), float("nan")
    mlp.down_proj.weight[:, 64:] = float("nan")
    x = torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(0))
    assert difference(mlp(x, 64), narrow(x, 64)) < 1e-5


def test_most_gates_of_a_sparse_feed_forward_are_zero() -> None:
    mlp = tiny_gemma3n(SMALL).layers[0].mlp
    x = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    gate = mlp.gate_proj(x)
    found = gaussian_topk(gate, mlp.std_multiplier)
    cutoff = gate.mean() + mlp.std_multiplier * gate.std(correction=0)
    assert 0 < int((found > 0).sum()) < 96 // 4
    assert difference(found, (gate - cutoff).clamp(min=0)) < 1e-5
