"""The entropy of the next token, by which a policy tells the easy from the hard."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gemelo.engine.elastic.policy import entropy_nats


def test_entropy_is_that_of_the_softmax() -> None:
    scores = np.random.default_rng(0).standard_normal(5000, np.float32) * 4
    weights = [math.exp(score) for score in scores.tolist()]
    chances = [weight / math.fsum(weights) for weight in weights]
    assert entropy_nats(scores) == pytest.approx(-math.fsum(p * math.log(p) for p in chances))
    assert entropy_nats(scores + np.float32(100)) == pytest.approx(entropy_nats(scores), abs=1e-3)


@pytest.mark.parametrize("size", [1, 2, 64, 262_144])
def test_equal_scores_have_the_most_entropy_there_is(size: int) -> None:
    assert entropy_nats(np.full(size, 7, np.float32)) == pytest.approx(math.log(size))


def test_certainty_has_none() -> None:
    scores = np.zeros(512, np.float32)
    scores[3] = 200
    assert entropy_nats(scores) == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_adds_nothing() -> None:
    scores = np.full(512, -np.inf, np.float32)
    scores[[3, 9]] = 1
    assert entropy_nats(scores) == pytest.approx(math.log(2))


def test_the_largest_floats_neither_overflow_nor_warn() -> None:
    extremes = np.array([-3e38, 3e38, 3e38], np.float32)
    assert entropy_nats(extremes) == pytest.approx(math.log(2))
