"""Sampler: from logits to a token, by penalties, temperature, top-k, top-p and min-p.

A `Sampler` is built from a `Sampling` once per row, before the loop starts, and then maps one
vector of scores to one token. The filters run in the reference's order: penalties and bias on the
scores, temperature, top-k, top-p, min-p. Reported log-probabilities are the model's own, before any
of that.

Scores and settings may be anything that float32 and `Sampling`'s limits hold: a temperature close
to zero picks what a temperature of zero does, penalties never reach infinity, and a token that
scores minus infinity is never chosen. Broken scores (NaN, or nothing above minus infinity) are an
error.

The random numbers come from one generator a row, seeded and on the CPU, so that a seed gives the
same text on every device that gives the same scores.

    sample = Sampler(Sampling(temperature=0.7, seed=1));  token = sample(scores, history=ids)

V vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gemelo.config.sampling import Sampling
from gemelo.errors import InputError
from gemelo.kernels import cpu

_BLOCK = 64  # scores that are looked at together
_LARGEST = torch.finfo(torch.float32).max
_COLDEST = 1e-300  # of temperatures: what is left of one below is zero when it divides


class Token(NamedTuple):
    """A chosen token, with the model's log-probabilities where they were asked for."""

    id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Guess(NamedTuple):
    """A drafted token and the distribution (V,) it was drawn from; None where it was greedy."""

    id: int
    chances: Tensor | None


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch without its other threads: after an operation they spin for a while, on the cores that
    the next step needs, and a row of scores is soon read by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def largest(scores: Tensor) -> int:
    """The first of the largest scores (V,)."""
    return cpu.argmax(scores) if scores.device.type == "cpu" else int(scores.argmax())


def check_scores(scores: Tensor) -> None:
    """Raise unless scores (V,) say which token is the likeliest."""
    # NumPy's maximum is NaN where any is, and wakes no threads of torch's.
    on_cpu = scores.device.type == "cpu" and scores.dtype == torch.float32
    top = float(scores.numpy().max() if on_cpu else scores.max()) if len(scores) else math.nan
    if not math.isfinite(top):
        cause = f"the largest of {len(scores)} is {top}" if len(scores) else "there are none"
        raise InputError(f"no token can be chosen from the scores: {cause}")


class Sampler:
    """The function that a `Sampling` becomes for one row; its only state is a generator."""

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        """row tells continuations of one seed apart; row 0 is what n = 1 gives."""
        self.sampling = sampling
        self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self.generator = torch.Generator().manual_seed(
            (self.seed + row * 0x9E3779B97F4A7C15) % 2**63
        )

    def __call__(
        self,
        scores: Tensor,
        prompt: Sequence[int],
        answer: Sequence[int],
        guess: Guess | None = None,
    ) -> Token:
        """scores (V,) float32 of the next token, given the tokens before it.

        With a guess of another model, the guess or what replaces it: the result is distributed as
        without one (speculative sampling, arXiv 2211.17192, theorem 1).
        """
        if self.sampling.plain and len(scores):
            likeliest = largest(scores)  # first, while the threads of the step are awake
            check_scores(scores)
            return Token(likeliest)
        check_scores(scores)
        with one_thread():
            adjusted = adjust(scores, self.sampling, prompt, answer)
            if self.sampling.greedy:
                token = largest(adjusted)
            elif guess is None:
                token = self._draw(*candidates(adjusted, self.sampling))
            else:
                token = self._judge(guess, *candidates(adjusted, self.sampling))
            return self._report(scores, token)

    def guess(self, scores: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Guess:
        """A token drawn from another model's scores, with the chances it was drawn by."""
        check_scores(scores)
        with one_thread():
            adjusted = adjust(scores, self.sampling, prompt, answer)
            if self.sampling.greedy:
                return Guess(largest(adjusted), None)
            probabilities, ids = candidates(adjusted, self.sampling)
            return Guess(self._draw(probabilities, ids), _dense(probabilities, ids, len(scores)))

    def _judge(self, guess: Guess, probabilities: Tensor, ids: Tensor | None) -> int:
        """Keep a guess with probability p / q; else draw from what p has more of than q."""
        q = guess.chances
        assert q is not None, "a sampled guess brings its chances"
        p = _dense(probabilities, ids, len(q))
        threshold = float(torch.rand(1, generator=self.generator)) * float(q[guess.id])
        if threshold < float(p[guess.id]):
            return guess.id
        rest = (p - q).clamp(min=0)
        return self._draw(rest if rest.any() else p)  # all rounded off: p and q are alike

    def _draw(self, weights: Tensor, ids: Tensor | None = None) -> int:
        """One of ids (N,), or of the numbers from 0, each as often as it weighs."""
        if ids is not None:
            return int(ids[torch.multinomial(weights, 1, generator=self.generator)])
        # Of a whole vocabulary by one random number, where `multinomial` takes one for each.
        sums = weights.double().cumsum(-1)
        point = 1 - torch.rand(1, generator=self.generator, dtype=torch.float64)  # above 0, up to 1
        return int(torch.searchsorted(sums, point * sums[-1]))

    def _report(self, scores: Tensor, token: int) -> Token:
        count = self.sampling.logprobs
        if count is None:
            return Token(token)
        total = scores.logsumexp(-1)
        values, ids = likeliest(scores, min(count, len(scores)))
        top = tuple(zip(ids.tolist(), (values - total).tolist(), strict=True))
        return Token(token, float(scores[token] - total), top)


def adjust(
    scores: Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]
) -> Tensor:
    """Penalties and bias; returns scores itself where there is nothing to do.

    The repetition penalty is CTRL's (arXiv 1909.05858, section 4.1), over prompt and answer; the
    other two are OpenAI's, over the answer.
    """
    adjusted = scores
    if sampling.repetition_penalty != 1:
        repeated = sorted(token for token in {*prompt, *answer} if token < len(scores))
        ids = torch.tensor(repeated, dtype=torch.long, device=scores.device)
        old = scores[ids]
        penalty = sampling.repetition_penalty
        new = torch.where(old > 0, old / penalty, old * penalty).clamp(-_LARGEST, _LARGEST)
        adjusted = adjusted.index_copy(0, ids, torch.where(old.isinf(), old, new))
    if answer and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(answer)
        fines = [
            sampling.presence_penalty + sampling.frequency_penalty * n for n in counts.values()
        ]
        adjusted = _add(adjusted, list(counts), [-fine for fine in fines])
    if sampling.logit_bias:
        for token in sampling.logit_bias:
            if token >= scores.shape[0]:
                raise InputError(f"logit_bias token {token} is not below {scores.shape[0]}")
        adjusted = _add(adjusted, list(sampling.logit_bias), list(sampling.logit_bias.values()))
    return adjusted


def candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The tokens left by temperature, top-k, top-p and min-p: probabilities and ids, on the CPU.

    Without ids it is every token, in order. The likeliest is never filtered away.
    """
    ids = None
    if 0 < sampling.top_k < len(scores):
        scores, ids = likeliest(scores, sampling.top_k)
    # The largest is taken off first: divided by next to nothing, the others become minus infinity.
    colder = (scores - scores.max()).double() / max(sampling.temperature, _COLDEST)
    probabilities = colder.float().softmax(-1).cpu()
    ids = None if ids is None else ids.cpu()
    if sampling.top_p < 1:
        probabilities, order = nucleus(probabilities, sampling.top_p)
        ids = order if ids is None else ids[order]
    if sampling.min_p > 0:
        keep = (probabilities >= sampling.min_p * probabilities.max()).nonzero()[:, 0]
        probabilities, ids = probabilities[keep], keep if ids is None else ids[keep]
    return probabilities, ids


def nucleus(probabilities: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The fewest probabilities whose sum reaches `share` of one, and where they are; the largest
    first (top-p, arXiv 1904.09751)."""
    count, vocab_size = min(256, len(probabilities)), len(probabilities)
    while True:  # a few hundred nearly always do
        first, order = likeliest(probabilities, count)
        before = first.cumsum(-1) - first
        if count == vocab_size or float(before[-1] + first[-1]) >= share:
            num_kept = max(1, int((before < share).sum()))
            return first[:num_kept], order[:num_kept]
        count = min(16 * count, vocab_size)


def likeliest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of scores (V,), the largest first, and where they are.

    They lie in those `count` blocks that have the largest maxima, so that of most of a vocabulary
    only maxima are looked at: a few in a quarter of the time of `topk`.
    """
    whole = len(scores) // _BLOCK * _BLOCK
    blocks, rest = scores[:whole].view(-1, _BLOCK), scores[whole:]
    if count == len(scores) or count * 8 > len(blocks):
        values, ids = scores.topk(count)
        return values, ids
    chosen = blocks.amax(-1).topk(count).indices
    values, indices = torch.cat([blocks[chosen].flatten(), rest]).topk(count)
    block, offset = indices // _BLOCK, indices % _BLOCK
    inside = chosen[block.clamp(max=count - 1)] * _BLOCK + offset
    return values, torch.where(block < count, inside, indices - count * _BLOCK + whole)


def _dense(probabilities: Tensor, ids: Tensor | None, size: int) -> Tensor:
    """Chances of some tokens as a vector over all, summing to one."""
    chances = probabilities / probabilities.sum()
    return chances if ids is None else torch.zeros(size).index_copy(0, ids, chances)


def _add(scores: Tensor, ids: list[int], values: list[float]) -> Tensor:
    index = torch.tensor(ids, device=scores.device)
    return scores.index_add(0, index, torch.tensor(values, device=scores.device))
