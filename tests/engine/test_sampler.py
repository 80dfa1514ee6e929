"""Filters filter, seeds repeat, and chances are what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gemelo.config.sampling import Sampling
from gemelo.engine.sampler import (
    Doubles,
    Guess,
    Sampler,
    Uniforms,
    adjust,
    candidates,
    draw,
    judge,
    likeliest,
    logsumexp,
    uniforms,
)
from gemelo.errors import InputError
from gemelo.kernels.quants import Floats

SCORES: Floats = np.array([0.1, 3.0, 2.0, 1.0, -1.0], np.float32)


def drawn(sampling: Sampling, count: int = 1, row: int = 0) -> list[int]:
    sample = Sampler(sampling, row)
    return [sample(SCORES, [], range(index)).id for index in range(count)]


def normal(size: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def softmax(scores: Floats, temperature: float = 1.0) -> Doubles:
    weights: Doubles = np.exp((scores.astype(np.float64) - float(scores.max())) / temperature)
    weights /= weights.sum()
    return weights


def test_temperature_zero_is_greedy() -> None:
    assert drawn(Sampling(temperature=0), 5) == [1] * 5


# ---- random numbers ------------------------------------------------------------------------------


def philox(counter: int, key: tuple[int, int]) -> Iterator[int]:
    """Four words of 64 bits: Philox 4x64-10 as its paper's figures and tables have it."""
    mask = 2**64 - 1
    c0, c1, c2, c3 = (counter >> shift & mask for shift in (0, 64, 128, 192))
    k0, k1 = key
    for _ in range(10):
        one, two = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = two >> 64 ^ c1 ^ k0, two & mask, one >> 64 ^ c3 ^ k1, one & mask
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
    yield from (c0, c1, c2, c3)


def test_the_philox_of_this_file_is_the_papers() -> None:
    """Its known answers (kat_vectors of Random123)."""
    assert list(philox(0, (0, 0))) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert list(philox(2**256 - 1, (2**64 - 1, 2**64 - 1))) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**63 - 1])
@pytest.mark.parametrize("row", [0, 1, 63])
def test_random_numbers_are_philoxs(seed: int, row: int) -> None:
    """The 53 upper bits of the block that follows the number of tokens."""
    for token in (0, 1, 2, 1000, 2**31):
        wanted = [(word >> 11) / 2**53 for word in philox(token + 1, (seed, row))]
        found = uniforms(seed, row, token)
        assert list(found) == wanted and all(0 <= number < 1 for number in found)


def test_a_seed_gives_these_tokens_for_good() -> None:
    """A change of these changes the text of every seed that anybody has noted."""
    sampling = Sampling(seed=1, temperature=3.0, top_k=0, top_p=1.0)
    assert drawn(sampling, 16) == [1, 3, 1, 3, 1, 4, 0, 1, 2, 1, 4, 0, 4, 1, 1, 0]


def test_a_seed_repeats_and_another_does_not() -> None:
    first = drawn(Sampling(seed=7, top_p=1.0), 50)
    assert first == drawn(Sampling(seed=7, top_p=1.0), 50)
    assert first != drawn(Sampling(seed=8, top_p=1.0), 50)
    assert first != drawn(Sampling(seed=7, top_p=1.0), 50, row=1)


def test_a_token_depends_on_no_call_before() -> None:
    """An answer that goes on where another broke off is what it would have been."""
    sampling = Sampling(seed=7, top_p=1.0, temperature=2.0)
    whole = drawn(sampling, 50)
    sample = Sampler(sampling)
    assert [sample(SCORES, [], range(index)).id for index in reversed(range(50))] == whole[::-1]
    sample.guess(SCORES, [], [])
    assert sample(SCORES, [], range(30)).id == whole[30]


def test_an_unseeded_sampler_tells_its_seed() -> None:
    sample = Sampler(Sampling())
    again = drawn(Sampling(seed=sample.seed), 20)
    assert [sample(SCORES, [], range(index)).id for index in range(20)] == again


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 5000])
def test_a_draw_is_the_inverse_of_the_running_sum(size: int) -> None:
    """Exactly, with weights that no order of summing rounds; what weighs nothing is never drawn."""
    weights = np.random.default_rng(size).integers(0, 4, size).astype(np.float32)
    weights[size // 2] = 3
    ids = np.arange(size) * 3
    total = int(weights.sum())
    wanted = np.repeat(ids, weights.astype(np.int64))
    for point in {*range(0, total, max(1, total // 500)), total - 1}:
        assert draw((point + 0.5) / total, weights, ids) == wanted[point]
    assert draw(0.0, weights, ids) == wanted[0]
    assert draw(1 - 2**-53, weights, ids) == wanted[-1]


def test_a_draw_from_weights_that_are_rounded_is_one_that_weighs() -> None:
    """At the ends of strides too, where two ways of summing meet."""
    weights = normal(2048, 1).clip(0) ** 9
    weights[500:600] = weights[1020:1030] = weights[-40:] = 0
    ids, sums = np.arange(2048), weights.cumsum(dtype=np.float64)
    edges = sums[[499, 511, 512, 1019, 1023, 1024, 1535, 1536, 2007]] / sums[-1]
    for edge in edges:
        for uniform in (edge, np.nextafter(edge, 0), np.nextafter(edge, 1)):
            chosen = draw(min(float(uniform), 1 - 2**-53), weights, ids)
            assert weights[chosen] > 0
            before = sums[chosen] - weights[chosen]
            assert before - 1e-9 <= uniform * sums[-1] <= sums[chosen] + 1e-9


# ---- filters -------------------------------------------------------------------------------------


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
    assert ids.tolist() == sorted(kept)
    chances = softmax(SCORES[ids], settings.get("temperature", 1.0))
    np.testing.assert_allclose(probabilities / probabilities.sum(), chances, rtol=1.3e-6)


@pytest.mark.parametrize("levels", [2, 30, 100_000])
@pytest.mark.parametrize("size", [7, 300, 20_000])
def test_filters_are_those_of_a_sorted_list(size: int, levels: int) -> None:
    """One after the other, each over what the one before has left; of equal scores the first."""
    dice = np.random.default_rng(size + levels)
    for _ in range(20):
        scores = (dice.integers(0, levels, size) * (12 / levels)).astype(np.float32)
        top_k, top_p = int(dice.integers(0, 2 * size)), float(dice.choice([0.1, 0.5, 0.9, 1]))
        min_p, temperature = float(dice.choice([0, 0.01, 0.6])), float(dice.choice([0.5, 1, 3]))
        order = sorted(range(size), key=lambda token: (-scores[token], token))
        order = order[:top_k] if top_k else order
        chances = softmax(scores[order], temperature)
        if top_p < 1:  # which ends in the middle of a token, where rounding does not decide
            before = chances.cumsum() - chances
            last = int((before < top_p).sum()) - 1
            top_p = float(before[last] + chances[last] / 2)
            order = order[: last + 1]
        order = [token for token, p in zip(order, chances, strict=False) if p >= min_p * chances[0]]
        sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
        assert candidates(scores, sampling)[1].tolist() == sorted(order)


@pytest.mark.parametrize("size", [5, 64, 700, 6400, 262_145])
@pytest.mark.parametrize("count", [1, 5, 64, 200])
def test_the_likeliest_are_the_first_of_all_sorted(size: int, count: int) -> None:
    """Whether a vocabulary fills its groups or not, the largest at its end or not, and with equal
    ones."""
    scores, count = normal(size, size), min(count, size)
    for _ in range(3):
        for some in (scores, scores.round(), (scores / np.float32(9)).round()):
            values, where = likeliest(some, count)
            wanted = np.lexsort((np.arange(size), -some))[:count]
            assert where.tolist() == wanted.tolist() and (values == some[wanted]).all()
        scores[-3:] += 5


def test_a_nucleus_is_the_fewest_that_reach_the_share() -> None:
    """Of a flat vocabulary thousands, of a steep one a few."""
    for steepness in (0.0, 1.0, 5.0):
        scores = normal(20_000, 1) * np.float32(steepness)
        probabilities, ids = candidates(scores, Sampling(top_k=0, top_p=0.9))
        everything = softmax(scores)
        assert (np.diff(ids) > 0).all()
        assert everything[ids].sum() >= 0.9 - 1e-4
        assert everything[ids].sum() - everything[ids].min() < 0.9 + 1e-4
        np.testing.assert_allclose(probabilities, everything[ids], rtol=1e-4)
        left = np.ones(len(scores), bool)
        left[ids] = False
        assert everything[left].max() <= everything[ids].min()


def test_the_distribution_is_the_softmax() -> None:
    """20,000 draws: every frequency within five standard deviations of its probability."""
    draws = drawn(Sampling(seed=0, temperature=2.0, top_k=0, top_p=1.0), 20_000)
    wanted = softmax(SCORES, 2.0)
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
    before = SCORES.copy()
    assert drawn(Sampling(temperature=0, logit_bias={4: 100.0, 1: -100.0})) == [4]
    assert (SCORES == before).all()
    with pytest.raises(InputError, match="token 5 is not below 5"):
        drawn(Sampling(temperature=0, logit_bias={5: 1.0}))


def test_logprobs_are_the_models_own() -> None:
    sample = Sampler(Sampling(temperature=0, logit_bias={4: 100.0}, logprobs=2))
    token = sample(SCORES, [], [])
    logprobs = np.log(softmax(SCORES))
    assert token.id == 4 and token.logprob == pytest.approx(float(logprobs[4]))
    assert [id for id, _ in token.top_logprobs] == [1, 2]
    assert [logprob for _, logprob in token.top_logprobs] == pytest.approx(logprobs[[1, 2]])
    assert Sampler(Sampling(logprobs=0))(SCORES, [], []).top_logprobs == ()


def test_logsumexp_neither_overflows_nor_loses_the_small() -> None:
    assert logsumexp(SCORES) == pytest.approx(math.log(sum(map(math.exp, SCORES.tolist()))))
    assert logsumexp(np.full(1000, 3e38, np.float32)) == pytest.approx(3e38)
    assert logsumexp(np.zeros(262_144, np.float32)) == pytest.approx(math.log(262_144))
    assert logsumexp(np.array([-math.inf, -3e38, 3e38], np.float32)) == pytest.approx(3e38)


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


def extreme_scores() -> dict[str, Floats]:
    some, places = normal(1024, 3) * np.float32(5), np.arange(1024)
    nothing = np.float32(-math.inf)
    return {
        "usual": some,
        "one finite": np.where(places == 17, np.float32(-3), nothing),
        "a third finite": np.where(places % 3 == 0, some, nothing),
        "close to the largest floats": some * np.float32(1e37),
        "all of them the smallest": np.full(1024, np.finfo(np.float32).min),
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
    zeros = np.zeros(4, np.float32)
    assert len({sample(zeros, [], range(index)).id for index in range(100)}) == 4


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_scores_are_an_error(temperature: float, broken: float) -> None:
    sample = Sampler(Sampling(temperature=temperature))
    one = normal(1024, 0)
    one[900] = broken
    for values in (one, [broken] * 8, [-math.inf] * 8, []):
        scores = np.array(values, np.float32)
        with pytest.raises(InputError, match="no token can be chosen from the scores"):
            sample(scores, [], [])
        with pytest.raises(InputError, match="no token can be chosen from the scores"):
            sample.guess(scores, [], [])


def test_a_guess_that_is_turned_down_for_rounding_alone() -> None:
    """p is nowhere above q, so that nothing is left to draw from but p itself."""
    p, q = np.array([0.0, 0.5, 0.5], np.float32), np.array([0.0, 0.6, 0.5])
    for redraw, wanted in ((0.0, 1), (0.4999, 1), (0.5001, 2), (0.9999, 2)):
        random = Uniforms(draw=0.0, guess=0.0, judge=0.9999, redraw=redraw)
        assert judge(Guess(1, q), random, p, np.arange(3)) == wanted


def test_a_guess_that_was_filtered_away_is_turned_down() -> None:
    """Whatever the random numbers: what p leaves out has no chance."""
    q = np.array([0.0, 1.0, 0.0])
    random = Uniforms(draw=0.0, guess=0.0, judge=0.0, redraw=0.0)
    assert judge(Guess(1, q), random, np.ones(2, np.float32), np.array([0, 2])) == 0
