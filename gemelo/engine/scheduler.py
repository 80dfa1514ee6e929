"""Scheduler: which tokens of which works the next step takes, decided in host integers.

A step takes every work whose rest is exact (at most 16 tokens: decode, verification of drafts, ends
of prompts), so that nobody's text stops, and beside them grid cells of prompts (chunked prefill),
as far as a budget of tokens goes. What a step takes never changes what a token's scores are, only
when they come: cells are cut by the prompt's positions, and the budget decides how many of them.

Prompts go in the order of

    came_s + remaining * bulk_token_s

the time at which a prompt would have been read, had it been alone since it came. Of those that come
together the shortest goes first, and whatever comes later than a prompt would have needed goes
behind it, so that none starves. Others serve in order of arrival (llama.cpp, vLLM), where a long
prompt stops all short ones, or cut their prompts by the load, which changes bits.

Without a budget of the caller's, prompts get as many tokens as cost twice what the exact ones do: a
step lasts about three times as long while somebody reads. Where more prompts wait than answers are
being written, each counts as much as an answer: prompts get so many times what the exact ones cost.

    batch = scheduler.batch(works)
    for group in batch.groups:                 # a native step each: works of one decoder
        decoder.step([piece for work, limit in group for piece in work.pieces(limit)])
    scheduler.learn(batch, seconds)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from gemelo.errors import InputError, shown

LEAST_PREFILL, MOST_PREFILL = 64, 512  # tokens of a budget that adapts; the most if nobody decodes
_SHARE = 2.0  # of what exact works cost, that prompts may cost beside them at least
_SMOOTHING = 0.25  # share of a step's surprise, in logarithms, that is believed
_MOST_SURPRISE = 8.0  # a process that was stopped meanwhile says nothing about steps


class Schedulable(Protocol):
    """A work, as much of it as decides when it runs."""

    @property
    def decoder(self) -> object:
        """Of the size that runs it; one step runs one size."""

    @property
    def remaining(self) -> int:
        """Tokens that are still to be written, one at least."""

    @property
    def is_exact(self) -> bool:
        """Whether all of these take the path of few tokens."""

    @property
    def came_s(self) -> float:
        """When its request came, in seconds of any clock that all works have."""

    def takes(self, limit: int) -> int:
        """Tokens that a step would write, given `limit`: the cells that fit, one at least."""


W = TypeVar("W", bound=Schedulable)


class Share(NamedTuple, Generic[W]):
    """What a step takes of a work: the cells that fit in `limit` tokens, one at least."""

    work: W
    limit: int


class Batch(NamedTuple, Generic[W]):
    """What the next step takes, by decoder; with how many tokens of each path."""

    groups: list[list[Share[W]]]
    num_exact: int
    num_bulk: int


class Scheduler:
    """Chooses what the next step takes, and learns what steps cost."""

    def __init__(self, prefill_budget: int | None = None) -> None:
        """prefill_budget is the most tokens of prompts in a step, if more than one cell fits; None
        adapts it to the cost of what decodes beside them."""
        is_number = isinstance(prefill_budget, int) and not isinstance(prefill_budget, bool)
        if prefill_budget is not None and not (is_number and prefill_budget > 0):
            raise InputError(
                f"prefill_budget = {shown(prefill_budget)}; expected a number of tokens from 1, or "
                "None for as many as cost what a decode step does"
            )
        self.prefill_budget, self.cost = prefill_budget, StepCost()
        self._turn = 0

    def batch(self, works: Sequence[W]) -> Batch[W]:
        """What the next step takes of works that all have something left.

        Groups take turns at being first, since whoever is first waits for nobody else's step.
        """
        exact = [Share(work, work.remaining) for work in works if work.is_exact]
        waiting = [work for work in works if not work.is_exact]
        bulk = self._bulk(waiting, self.budget(len(exact), len(waiting)))
        groups = _by_decoder([*exact, *bulk])
        first = self._turn % max(1, len(groups))
        self._turn += 1
        return Batch(
            groups[first:] + groups[:first],
            sum(share.limit for share in exact),
            sum(share.limit for share in bulk),
        )

    def budget(self, num_exact: int, num_bulk: int) -> int:
        """The most tokens of so many prompts in a step, beside exact works or without any."""
        if self.prefill_budget is not None:
            return self.prefill_budget
        if not num_exact:
            return MOST_PREFILL
        return self.cost.balanced_tokens(max(_SHARE, num_bulk / num_exact))

    def learn(self, batch: Batch[W], seconds: float) -> None:
        """Note how long a batch took, all groups together."""
        self.cost.learn(batch.num_exact, batch.num_bulk, seconds)

    def _bulk(self, waiting: list[W], budget: int) -> list[Share[W]]:
        """Cells of prompts that fit in the budget, whichever is due first; one cell fits always."""
        shares: list[Share[W]] = []
        for work in sorted(waiting, key=self._due_s):
            tokens = work.takes(budget)
            if tokens <= budget or not shares:
                shares.append(Share(work, tokens))
                budget -= tokens
            if budget <= 0:
                break
        return shares

    def _due_s(self, work: Schedulable) -> float:
        """When it would have been read, had it been alone since it came."""
        return work.came_s + work.remaining * self.cost.bulk_token_s


def _by_decoder(shares: Iterable[Share[W]]) -> list[list[Share[W]]]:
    groups: dict[int, list[Share[W]]] = {}
    for share in shares:
        groups.setdefault(id(share.work.decoder), []).append(share)
    return list(groups.values())


class StepCost:
    """What a step costs: `exact_s` for its exact tokens, as many as there are now, and
    `bulk_token_s` for every token of a prompt.

    A step of one kind says what that kind costs; in a mixed one both are wrong by the same factor,
    as far as anybody can tell.
    """

    def __init__(self) -> None:
        """Before the first step, guesses: a model of 1B on a few cores."""
        self.exact_s, self.bulk_token_s = 0.03, 0.001

    def balanced_tokens(self, share: float) -> int:
        """Tokens of prompts that cost so many times what the exact ones do, within bounds."""
        tokens = share * self.exact_s / self.bulk_token_s
        return int(min(max(tokens, LEAST_PREFILL), MOST_PREFILL))

    def learn(self, num_exact: int, num_bulk: int, seconds: float) -> None:
        """Correct both costs, as far as they took part, by what a step took."""
        if not num_exact and not num_bulk:
            return
        expected = bool(num_exact) * self.exact_s + num_bulk * self.bulk_token_s
        surprise = min(max(seconds / expected, 1 / _MOST_SURPRISE), _MOST_SURPRISE) ** _SMOOTHING
        self.exact_s *= surprise if num_exact else 1
        self.bulk_token_s *= surprise if num_bulk else 1
