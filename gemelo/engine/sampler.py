"""Sampler: from logits to a token, by penalties, temperature, top-k, top-p and min-p.

A `Sampler` is built from a `Sampling` once per row, before the loop starts, and then maps one
vector of scores to one token. The filters run in the reference's order: penalties and bias on the
scores, temperature, top-k, top-p, min-p. Reported log-probabilities are the model's own, before any
of that.

Scores and settings may be anything that float32 and `Sampling`'s limits hold: a temperature close
to zero picks what a temperature of zero does, penalties never reach infinity, and a token that
scores minus infinity is never chosen. Broken scores (NaN, or nothing above minus infinity) are an
error.

A random number depends on the seed, the row, and the number of tokens that the answer has, and on
nothing else: it is looked up (`uniforms`), so that there is no generator whose state an interrupt,
a rewind or a draft could move. A token takes one, and is where that share of the probabilities, in
the order of ids, is passed. So a seed gives the same text wherever the scores are the same, and
scores that differ a little seldom change it.

    sample = Sampler(Sampling(temperature=0.7, seed=1))
    token = sample(scores, prompt=ids, answer=[])

V vocabulary, N candidates.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemelo.config.sampling import Sampling
from gemelo.engine.scores import BLOCK, maxima_of, with_maxima_of
from gemelo.errors import InputError
from gemelo.kernels import cpu
from gemelo.kernels.quants import Floats

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

_GROUPS = 4  # times as many groups as scores are wanted, of which the largest are looked at
_BLOCK_BITS = BLOCK.bit_length() - 1
_AHEAD = 32  # tokens whose random numbers are looked up together
_STRIDE = 512  # weights that are summed up together
_RUN = 8192  # scores that are summed up while they lie in the cache
_LARGEST = float(np.finfo(np.float32).max)
_COLDEST = 1e-300  # of temperatures: what is left of one below is zero when it divides


class Token(NamedTuple):
    """A chosen token, with the model's log-probabilities where they were asked for."""

    id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Guess(NamedTuple):
    """A drafted token and the distribution (V,) it was drawn from; None where it was greedy."""

    id: int
    chances: Doubles | None


class Uniforms(NamedTuple):
    """The random numbers of one token, each for one purpose, from 0 up to and without 1."""

    draw: float  # a token, where no draft is
    guess: float  # the draft's token
    judge: float  # whether the guess is kept
    redraw: float  # what replaces it


def uniforms(seed: int, row: int, token: int) -> Uniforms:
    """The random numbers of a continuation's token: one block of Philox 4x64-10 (Salmon et al.,
    "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), keyed by seed and row.

    token is the number of tokens before it in the answer; NumPy takes the block of token + 1.
    """
    return uniforms_from(seed, row, token, 1)[0]


def uniforms_from(seed: int, row: int, token: int, count: int) -> list[Uniforms]:
    """Those of `count` tokens one behind the other, which take little longer than those of one."""
    words = np.random.Philox(key=[seed, row], counter=token).random_raw(4 * count)
    numbers = (words >> np.uint64(11)) * 2.0**-53
    return [Uniforms(*four) for four in numbers.reshape(count, 4).tolist()]


class Sampler:
    """The function that a `Sampling` becomes for one row; it has no state but random numbers that
    it has looked up already."""

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        """row tells continuations of one seed apart; row 0 is what n = 1 gives."""
        self.sampling, self.row = sampling, row
        self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self._known: tuple[int, list[Uniforms]] = (0, [])  # from a token on

    def __call__(
        self,
        scores: Floats,
        prompt: Sequence[int],
        answer: Sequence[int],
        guess: Guess | None = None,
    ) -> Token:
        """scores (V,) float32 of the next token, given the tokens before it.

        With a guess of another model, the guess or what replaces it: the result is distributed as
        without one (speculative sampling, arXiv 2211.17192, theorem 1).
        """
        if self.sampling.plain and len(scores):
            token = largest(scores)  # first, while the threads of the step are awake
            check_scores(scores)
            return Token(token)
        check_scores(scores)
        adjusted = adjust(scores, self.sampling, prompt, answer)
        if self.sampling.greedy:
            return self._report(scores, largest(adjusted))
        random = self._uniforms(len(answer))
        probabilities, ids = candidates(adjusted, self.sampling)
        if guess is None:
            return self._report(scores, draw(random.draw, probabilities, ids))
        return self._report(scores, judge(guess, random, probabilities, ids))

    def guess(self, scores: Floats, prompt: Sequence[int], answer: Sequence[int]) -> Guess:
        """A token drawn from another model's scores, with the chances it was drawn by."""
        check_scores(scores)
        adjusted = adjust(scores, self.sampling, prompt, answer)
        if self.sampling.greedy:
            return Guess(largest(adjusted), None)
        random = self._uniforms(len(answer))
        probabilities, ids = candidates(adjusted, self.sampling)
        token = draw(random.guess, probabilities, ids)
        return Guess(token, dense(probabilities, ids, len(scores)))

    def _uniforms(self, token: int) -> Uniforms:
        """The random numbers of a token."""
        first, known = self._known
        if not 0 <= token - first < len(known):
            first = token // _AHEAD * _AHEAD
            known = uniforms_from(self.seed, self.row, first, _AHEAD)
            self._known = first, known
        return known[token - first]

    def _report(self, scores: Floats, token: int) -> Token:
        count = self.sampling.logprobs
        if count is None:
            return Token(token)
        total = logsumexp(scores)
        values, ids = likeliest(scores, min(count, len(scores)))
        top = zip(ids.tolist(), (values.astype(np.float64) - total).tolist(), strict=True)
        return Token(token, float(scores[token]) - total, tuple(top))


def largest(scores: Floats) -> int:
    """The first of the largest scores (V,)."""
    return cpu.argmax(scores, maxima_of(scores))


def check_scores(scores: Floats) -> None:
    """Raise unless scores (V,) say which token is the likeliest."""
    maxima = maxima_of(scores)
    looked_at = scores if maxima is None else maxima
    top = float(looked_at.max()) if len(scores) else math.nan  # NaN where any is
    if not math.isfinite(top):
        cause = f"the largest of {len(scores)} is {top}" if len(scores) else "there are none"
        raise InputError(f"no token can be chosen from the scores: {cause}")


# ---- choosing ------------------------------------------------------------------------------------


def draw(uniform: float, weights: NDArray[np.floating], ids: Ids) -> int:
    """One of ids (N,), each as often as its weight is of all: the inverse of their running sum. Of
    many it is run through in strides, and by single weights in the stride that it is passed in."""
    if len(weights) <= _STRIDE:
        sums = weights.astype(np.float64).cumsum()
        return int(ids[sums.searchsorted(uniform * sums[-1], side="right")])
    begins = np.arange(0, len(weights), _STRIDE)
    sums = np.add.reduceat(weights, begins, dtype=np.float64).cumsum()
    point = uniform * sums[-1]  # below it, since uniform is below 1
    stride = int(np.searchsorted(sums, point, side="right"))
    begin = stride * _STRIDE
    inside = weights[begin : begin + _STRIDE]
    before = sums[stride - 1] if stride else 0.0
    place = int(np.searchsorted(before + inside.cumsum(dtype=np.float64), point, side="right"))
    return int(ids[begin + min(place, np.flatnonzero(inside)[-1])])  # sums are rounded in two ways


def judge(guess: Guess, random: Uniforms, probabilities: Floats, ids: Ids) -> int:
    """Keep a guess with probability p / q; else draw from what p has more of than q."""
    assert guess.chances is not None, "a sampled guess brings its chances"
    p = probabilities / probabilities.sum(dtype=np.float64)
    q = guess.chances[ids]
    if random.judge * guess.chances[guess.id] < p[ids == guess.id].sum():
        return guess.id
    rest = np.maximum(p - q, 0)
    return draw(random.redraw, rest if rest.any() else p, ids)  # all rounded off: p and q are alike


def dense(probabilities: Floats, ids: Ids, size: int) -> Doubles:
    """Chances of some tokens as a vector over all, summing to one."""
    chances = np.zeros(size)
    chances[ids] = probabilities / probabilities.sum(dtype=np.float64)
    return chances


# ---- penalties -----------------------------------------------------------------------------------


def adjust(
    scores: Floats, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]
) -> Floats:
    """Penalties and bias; returns scores itself where there is nothing to do.

    The repetition penalty is CTRL's (arXiv 1909.05858, section 4.1), over prompt and answer; the
    other two are OpenAI's, over the answer.
    """
    if not sampling.adjusts:
        return scores
    adjusted, plain = np.array(scores), np.asarray(scores)
    changed = {*answer, *sampling.logit_bias}
    if sampling.repetition_penalty != 1:
        changed.update(prompt)
        repeated = [token for token in {*prompt, *answer} if token < len(scores)]
        adjusted[repeated] = _penalised(plain[repeated], sampling.repetition_penalty)
    if answer and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(answer)
        times = np.array(list(counts.values()), np.float32)
        fines = sampling.presence_penalty + sampling.frequency_penalty * times
        adjusted[list(counts)] -= fines
    if sampling.logit_bias:
        for token in sampling.logit_bias:
            if token >= len(scores):
                raise InputError(f"logit_bias token {token} is not below {len(scores)}")
        biases = np.array(list(sampling.logit_bias.values()), np.float32)
        adjusted[list(sampling.logit_bias)] += biases
    return with_maxima_of(adjusted, scores, changed)


def _penalised(scores: Floats, penalty: float) -> Floats:
    """Scores (N,) after CTRL's penalty; the finite stay finite, and the infinite as they are."""
    exact = scores.astype(np.float64)
    new = np.where(scores > 0, exact / penalty, exact * penalty).clip(-_LARGEST, _LARGEST)
    return np.where(np.isinf(scores), exact, new).astype(np.float32)


# ---- filters -------------------------------------------------------------------------------------


def candidates(scores: Floats, sampling: Sampling) -> tuple[Floats, Ids]:
    """The tokens left by temperature, top-k, top-p and min-p: probabilities (N,) and ids (N,), the
    smallest id first. The likeliest is never filtered away."""
    ids = None  # every token, in order
    if 0 < sampling.top_k < len(scores):
        ids = largest_ids(scores, sampling.top_k)
        scores = np.asarray(scores)[ids]
    probabilities = softmax(np.asarray(scores), sampling.temperature)
    if sampling.top_p < 1:
        keep = nucleus(probabilities, sampling.top_p)
        probabilities, ids = probabilities[keep], keep if ids is None else ids[keep]
    if sampling.min_p > 0:
        keep = np.flatnonzero(probabilities >= sampling.min_p * probabilities.max())
        probabilities, ids = probabilities[keep], keep if ids is None else ids[keep]
    return probabilities, np.arange(len(scores)) if ids is None else ids


def softmax(scores: Floats, temperature: float) -> Floats:
    """Probabilities (N,) of scores (N,) at a temperature, however close to zero."""
    divisor = max(temperature, _COLDEST)
    with np.errstate(over="ignore"):
        # The largest is taken off first: divided by next to nothing, the others become minus
        # infinity. They are doubles meanwhile, a few thousand at a time.
        colder: Floats = scores - scores.max()
        if divisor != 1:
            np.divide(colder, divisor, out=colder, dtype=np.float64, casting="same_kind")
    np.exp(colder, out=colder)
    colder /= colder.sum()
    return colder


def nucleus(probabilities: Floats, share: float) -> Ids:
    """Where the fewest probabilities are whose sum reaches `share` of one, in order (top-p, arXiv
    1904.09751); of equal ones the first."""
    for count in (256, 4096):  # a few hundred nearly always do
        if count < len(probabilities):
            ids = _no_less(probabilities, count)
            if probabilities[ids].sum(dtype=np.float64) >= share:
                return ids[_fewest(probabilities[ids], share)]
    return _fewest(probabilities, share)


def _fewest(probabilities: Floats, share: float) -> Ids:
    """The same, where it does not pay to look at the largest first."""
    values = np.sort(probabilities)[::-1]
    sums = values.astype(np.float64).cumsum()
    count = min(1 + int(sums.searchsorted(share)), len(values))
    return _first_no_less(probabilities, values[count - 1], count)


def likeliest(scores: Floats, count: int) -> tuple[Floats, Ids]:
    """The `count` largest of scores (V,), the largest first, and where they are; of equal ones the
    first."""
    ids = largest_ids(scores, count)
    values = scores[ids]
    order = np.argsort(-values, kind="stable")
    return values[order], ids[order]


def largest_ids(scores: Floats, count: int) -> Ids:
    """Where the `count` largest of scores (V,) are, in order; of equal ones the first."""
    ids = _no_less(scores, count)
    values = np.asarray(scores)[ids]
    return ids if count == len(ids) else ids[_first_no_less(values, _least(values, count), count)]


def _no_less(scores: Floats, count: int) -> Ids:
    """Where the `count` largest of scores (V,) are, and a few others: all that are no less than a
    bound which so many reach. Of scores with maxima only the blocks that reach it are read."""
    if not 0 < count < len(scores):
        return np.arange(min(count, len(scores)))
    plain, maxima = np.asarray(scores), maxima_of(scores)
    if maxima is None or count > len(maxima):
        return (plain >= _bound(plain, count)).nonzero()[0]
    bound = _bound(maxima, count)
    end = len(scores) // BLOCK * BLOCK  # what is behind is less than a block
    blocks = (maxima[: end // BLOCK] >= bound).nonzero()[0]
    places = (plain[:end].reshape(-1, BLOCK)[blocks] >= bound).ravel().nonzero()[0]
    offsets = (blocks - np.arange(len(blocks))) * BLOCK  # to a block from where it was copied to
    ids: Ids = places + offsets[places >> _BLOCK_BITS]
    if end == len(scores):
        return ids
    return np.append(ids, end + (plain[end:] >= bound).nonzero()[0])


def _bound(values: Floats, count: int) -> np.float32:
    """What at least `count` of values (N,) reach, and not many more: that many of the maxima of
    groups do. A group is every n-th value, and not neighbours, so that the maxima are one of rows,
    which NumPy computes many at a time."""
    size = len(values) // (_GROUPS * count)
    if size > 1:
        values = values[: size * _GROUPS * count].reshape(size, -1).max(0)
    return _least(values, count)


def _least(values: Floats, count: int) -> np.float32:
    """Of the `count` largest of values (N,)."""
    some = values.copy()
    some.partition(-count)
    least: np.float32 = some[-count]
    return least


def _first_no_less(values: Floats, least: np.float32, count: int) -> Ids:
    """Where the `count` largest of values (N,) are, of which this is the least, in order; of equal
    ones the first."""
    kept: Ids = (values >= least).nonzero()[0]
    if len(kept) > count:
        equal = (values[kept] == least).nonzero()[0]
        kept = np.delete(kept, equal[count - len(kept) :])
    return kept


def logsumexp(scores: Floats) -> float:
    """log(sum(exp(scores))) of scores (V,), without overflow."""
    plain = np.asarray(scores)
    top, total = plain.max(), 0.0
    with np.errstate(over="ignore"):
        for begin in range(0, len(plain), _RUN):
            run = plain[begin : begin + _RUN] - top
            total += float(np.exp(run, out=run).sum(dtype=np.float64))
    return float(top) + math.log(total)
