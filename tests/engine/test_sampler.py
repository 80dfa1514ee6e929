"""Filters filter, seeds repeat, and chances are what they should be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gemelo.config.sampling import Sampling
from gemelo.engine.sampler import Guess, Sampler, adjust, candidates, likeliest
from gemelo.errors import InputError

SCORES = torch.tensor([0.1, 3.0, 2.0, 1.0, -1.0])


def drawn(sampling: Sampling, count: int = 1) -> list[int]:
    sample = Sampler(sampling)
    return [sample(SCORES, [], []).id for _ in range(count)]


def test_temperature_zero_is_greedy() -> None:
    assert drawn(Sampling(temperature=0), 5) == [1] * 5


def test_a_seed_repeats_and_another_does_not() -> None:
    first = drawn(Sampling(seed=7, top_p=1.0), 50)
    assert first == drawn(Sampling(seed=7, top_p=1.0), 50)
    assert first != drawn(Sampling(seed=8, top_p=1.0), 50)


def test_an_unseeded_sampler_tells_its_seed() -> None:
    sample = Sampler(Sampling())
    again = Sampler(Sampling(seed=sample.seed))
    assert [sample(SCORES, [], []).id for _ in range(20)] == [
        again(SCORES, [], []).id for _ in range(20)
    ]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2, "top_p": 1.0}, {1, 2}),
        ({"top_k": 0, "top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 0, "top_p": 0.6}, {1}),
        ({"top_k": 0, "top_p": 0.7}, {1, 2}),
        ({"top_k": 0, "top_p": 1e-9}, {1}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.3}, {1, 2}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 1.0}, {1}),
        ({"top_k": 99, "top_p": 1.0, "temperature": 0.1, "min_p": 0.01}, {1}),
    ],
)
def test_filters(settings: dict[str, Any], kept: set[int]) -> None:
    probabilities, ids = candidates(SCORES, Sampling(**settings))
    ids = torch.arange(len(SCORES)) if ids is None else ids
    assert set(ids.tolist()) == kept
    chances = (SCORES[ids] / settings.get("temperature", 1.0)).exp()
    torch.testing.assert_close(probabilities / probabilities.sum(), chances / chances.sum())


@pytest.mark.parametrize("size", [5, 64, 700, 6400, 262_145])
@pytest.mark.parametrize("count", [1, 5, 64, 200])
def test_the_likeliest_are_those_of_topk(size: int, count: int) -> None:
    """Whether a vocabulary fills its blocks or not, the largest at its end or not."""
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(size, generator=generator)
    for _ in range(3):
        values, where = likeliest(scores, min(count, size))
        assert torch.equal(values, scores.topk(min(count, size)).values)
        assert torch.equal(scores[where], values) and len(where.unique()) == len(where)
        scores[-3:] += 5


def test_a_nucleus_is_the_fewest_that_reach_the_share() -> None:
    """Of a flat vocabulary thousands, of a steep one a few."""
    for steepness in (0.0, 1.0, 5.0):
        generator = torch.Generator().manual_seed(1)
        scores = torch.randn(20_000, generator=generator) * steepness
        probabilities, ids = candidates(scores, Sampling(top_k=0, top_p=0.9))
        everything = scores.double().softmax(-1)
        assert ids is not None and len(ids.unique()) == len(ids)
        assert float(everything[ids].sum()) >= 0.9 - 1e-4
        assert float(everything[ids].sum() - everything[ids].min()) < 0.9 + 1e-4
        torch.testing.assert_close(probabilities.double(), everything[ids], rtol=1e-4, atol=0)
        left = torch.ones(len(scores), dtype=torch.bool)
        left[ids] = False
        assert float(everything[left].max()) <= float(everything[ids].min())


def test_the_distribution_is_the_softmax() -> None:
    """20,000 draws: every frequency within five standard deviations of its probability."""
    draws = drawn(Sampling(seed=0, temperature=2.0, top_k=0, top_p=1.0), 20_000)
    wanted = (SCORES / 2).softmax(-1)
    for token, p in enumerate(wanted.tolist()):
        error = abs(draws.count(token) / 20_000 - p)
        assert error < 5 * math.sqrt(p * (1 - p) / 20_000)


def test_repetition_penalty_divides_or_multiplies() -> None:
    sampling = Sampling(repetition_penalty=2.0)
    adjusted = adjust(SCORES, sampling, prompt=[1], answer=[4])
    assert adjusted.tolist() == pytest.approx([0.1, 1.5, 2.0, 1.0, -2.0])


def test_presence_and_frequency_count_the_answer_alone() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    adjusted = adjust(SCORES, sampling, prompt=[1, 1], answer=[2, 2, 3])
    assert adjusted.tolist() == pytest.approx([0.1, 3.0, 1.0, 0.25, -1.0])


def test_bias_moves_the_choice_and_scores_stay_untouched() -> None:
    before = SCORES.clone()
    assert drawn(Sampling(temperature=0, logit_bias={4: 100.0, 1: -100.0})) == [4]
    assert torch.equal(SCORES, before)
    with pytest.raises(InputError, match="token 5 is not below 5"):
        drawn(Sampling(temperature=0, logit_bias={5: 1.0}))


def test_logprobs_are_the_models_own() -> None:
    sample = Sampler(Sampling(temperature=0, logit_bias={4: 100.0}, logprobs=2))
    token = sample(SCORES, [], [])
    logprobs = SCORES.log_softmax(-1)
    assert token.id == 4 and token.logprob == pytest.approx(float(logprobs[4]))
    assert [id for id, _ in token.top_logprobs] == [1, 2]
    assert Sampler(Sampling(logprobs=0))(SCORES, [], []).top_logprobs == ()


# ---- the edges of float32 ------------------------------------------------------------------------

COLD = (5e-324, 1e-300, 1e-46, 1e-45, 1e-40, 1e-38, 1.2e-38, 1e-30)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 0, "top_p": 1.0},
    {"top_k": 10**6, "top_p": 1e-9},
    {"top_k": 0, "top_p": 5e-324},
    {"top_p": 1 - 1e-9, "min_p": 1.0},
    {"top_k": 0, "top_p": 1 - 1e-16, "min_p": 5e-324},
    {"n": 3, "logprobs": 20},
)


def extreme_scores() -> dict[str, torch.Tensor]:
    some = torch.randn(1024, generator=torch.Generator().manual_seed(3)) * 5
    nothing = torch.full((1024,), -math.inf)
    return {
        "usual": some,
        "one finite": nothing.index_fill(0, torch.tensor([17]), -3.0),
        "a third finite": torch.where(torch.arange(1024) % 3 == 0, some, nothing),
        "close to the largest floats": some * 1e37,
        "all of them the smallest": torch.full((1024,), torch.finfo(torch.float32).min),
    }


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", COLD)
def test_the_coldest_temperatures_are_greedy(temperature: float, filters: dict[str, Any]) -> None:
    for name, scores in extreme_scores().items():
        chosen = Sampler(Sampling(temperature=temperature, seed=1, **filters))(scores, [5], [7]).id
        assert scores[chosen] == scores.max() and 0 <= chosen < 1024, name


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"presence_penalty": 100.0, "frequency_penalty": 100.0},
        {"presence_penalty": -100.0, "frequency_penalty": -100.0},
        {"logit_bias": {0: 1000.0, 1023: -1000.0}},
    ],
)
def test_penalties_never_choose_what_cannot_be(
    penalties: dict[str, Any], filters: dict[str, Any]
) -> None:
    """Neither outside of the vocabulary nor a token at minus infinity, warm or cold."""
    for temperature in (0.0, 1e-40, 1.0, 100.0):
        sample = Sampler(Sampling(temperature=temperature, seed=1, **filters, **penalties))
        for name, scores in extreme_scores().items():
            chosen = sample(scores, [5, 17, 2000], [7, 7, 1023, 18]).id
            assert 0 <= chosen < 1024 and scores[chosen] > -math.inf, name


def test_equal_scores_are_equally_likely_however_cold() -> None:
    sample = Sampler(Sampling(temperature=1e-40, top_k=0, top_p=1.0, seed=1))
    assert len({sample(torch.zeros(4), [], []).id for _ in range(100)}) == 4


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_scores_are_an_error(temperature: float, broken: float) -> None:
    sample = Sampler(Sampling(temperature=temperature))
    one = torch.randn(1024).index_fill(0, torch.tensor([900]), broken)
    for scores in (one, torch.full((8,), broken), torch.full((8,), -math.inf), torch.zeros(0)):
        with pytest.raises(InputError, match="no token can be chosen from the scores"):
            sample(scores, [], [])


def test_a_guess_that_is_turned_down_for_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """p is nowhere above q, so that nothing is left to draw from but p itself."""
    sample = Sampler(Sampling(top_k=0, top_p=1.0, seed=1))
    p = torch.tensor([0.0, 0.5, 0.5])
    monkeypatch.setattr(torch, "rand", lambda *size, **how: torch.full(size, 0.9999))
    assert sample._judge(Guess(1, torch.tensor([0.0, 0.6, 0.5])), p, None) != 0
