"""What a step takes: every exact rest, prompts within a budget, none for ever behind others."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.engine.scheduler import (
    LEAST_PREFILL,
    MOST_PREFILL,
    Batch,
    Scheduler,
    StepCost,
)
from gemelo.errors import InputError

FEW, GRID = 16, 64


@dataclass(eq=False)
class Fake:
    """A work without tokens: positions, and the cells between them that were written."""

    end: int
    position: int = 0
    came_s: float = 0.0
    decoder: object = "whole"
    picture: range = range(0)  # positions that one cell has to hold
    written: list[tuple[int, int]] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return self.end - self.position

    @property
    def is_exact(self) -> bool:
        return self.remaining <= FEW

    def cells(self) -> Iterator[tuple[int, int]]:
        """Between lines of the grid that cut no picture, from the position on."""
        begin = self.position
        lines = range((begin // GRID + 1) * GRID, self.end, GRID)
        for line in [*(line for line in lines if line - 1 not in self.picture[:-1]), self.end]:
            yield begin, line
            begin = line

    def takes(self, limit: int) -> int:
        taken = 0
        for begin, end in self.cells():
            if taken and taken + end - begin > limit:
                break
            taken += end - begin
        return taken

    def write(self, limit: int) -> None:
        self.written += [cell for cell in self.cells() if cell[1] <= self.position + limit]
        assert self.written[-1][1] == self.position + limit
        self.position += limit


@st.composite
def fakes(draw: st.DrawFn) -> Fake:
    position = draw(st.integers(0, 300))
    first = draw(st.integers(0, 400))
    return Fake(
        end=position + draw(st.integers(1, 900)),
        position=position,
        came_s=draw(st.floats(0, 10)),
        decoder=draw(st.sampled_from(["whole", "half", "small"])),
        picture=range(first, first + draw(st.sampled_from([0, 0, 100, 256]))),
    )


def live(works: list[Fake]) -> list[Fake]:
    return [work for work in works if work.remaining]


def shares(batch: Batch[Fake]) -> dict[Fake, int]:
    """What is taken of every work; no work is in two groups."""
    flat = [share for group in batch.groups for share in group]
    taken = {share.work: share.limit for share in flat}
    assert len(taken) == len(flat)
    return taken


def run(batch: Batch[Fake]) -> None:
    for work, limit in shares(batch).items():
        work.write(limit)


BUDGETS = st.none() | st.integers(1, 700)


@settings(max_examples=200, deadline=None)
@given(st.lists(fakes(), max_size=12), BUDGETS)
def test_a_step_keeps_its_budget_and_takes_every_exact_rest(
    works: list[Fake], budget: int | None
) -> None:
    scheduler = Scheduler(budget)
    while waiting := live(works):
        num_exact = sum(work.is_exact for work in waiting)
        most = scheduler.budget(num_exact, len(waiting) - num_exact)
        batch = scheduler.batch(waiting)
        taken = shares(batch)
        bulk = {work: limit for work, limit in taken.items() if not work.is_exact}
        assert all(taken[work] == work.remaining for work in waiting if work.is_exact)
        assert sum(bulk.values()) <= most or len(bulk) == 1
        assert bulk or all(work.is_exact for work in waiting)
        assert batch.num_bulk == sum(bulk.values())
        assert batch.num_exact == sum(taken.values()) - batch.num_bulk
        run(batch)


@settings(max_examples=100, deadline=None)
@given(st.lists(fakes(), max_size=12), BUDGETS)
def test_cells_are_those_of_the_grid_whatever_the_budget(
    works: list[Fake], budget: int | None
) -> None:
    expected = [list(work.cells()) for work in works]
    scheduler = Scheduler(budget)
    while waiting := live(works):
        run(scheduler.batch(waiting))
    assert [work.written for work in works] == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(fakes(), max_size=12), BUDGETS, st.randoms())
def test_a_step_does_not_depend_on_the_order_of_works(
    works: list[Fake], budget: int | None, order: random.Random
) -> None:
    for at, work in enumerate(works):  # no two alike, between which an order has to decide
        work.came_s += at * 1e-3
    shuffled = order.sample(works, len(works))
    one, other = Scheduler(budget).batch(works), Scheduler(budget).batch(shuffled)
    assert shares(one) == shares(other)


@settings(max_examples=50, deadline=None)
@given(st.lists(fakes(), min_size=1, max_size=12))
def test_a_group_is_of_one_decoder_and_each_is_first_in_turn(works: list[Fake]) -> None:
    exact = [dataclasses.replace(work, end=work.position + 1, written=[]) for work in works]
    scheduler, decoders = Scheduler(), {work.decoder for work in works}
    first = []
    for _ in decoders:
        groups = scheduler.batch(exact).groups
        assert [len({share.work.decoder for share in group}) for group in groups] == [1] * len(
            decoders
        )
        first.append(groups[0][0].work.decoder)
    assert set(first) == decoders


def test_nothing_waits_and_nothing_is_taken() -> None:
    batch = Scheduler().batch(list[Fake]())
    assert not batch.groups and batch.num_exact == batch.num_bulk == 0
    Scheduler().learn(batch, 1.0)


# ---- order of prompts ----------------------------------------------------------------------------


def test_the_shortest_of_those_that_came_together_goes_first() -> None:
    long, short = Fake(end=2000), Fake(end=200)
    assert list(shares(Scheduler(64).batch([long, short]))) == [short]
    assert shares(Scheduler(512).batch([long, short])) == {short: 200, long: 256}


def test_a_picture_goes_through_whole_and_alone() -> None:
    seen, text = Fake(end=300, picture=range(0, 256)), Fake(end=1000)
    assert shares(Scheduler(64).batch([seen, text])) == {seen: 256}


def test_a_cell_that_fits_goes_beside_the_first_while_a_larger_one_waits() -> None:
    seen, text, short = Fake(end=300, picture=range(0, 256)), Fake(end=1000), Fake(end=64)
    assert shares(Scheduler(128).batch([seen, short, text])) == {short: 64, text: 64}


def test_a_long_prompt_is_read_while_short_ones_come_for_ever() -> None:
    """In every step one more comes than can be read."""
    scheduler, long = Scheduler(64), Fake(end=4096)
    works, steps = [long], 0
    while long.remaining:
        works = [*live(works), Fake(end=64, came_s=steps * 0.064)]
        run(scheduler.batch(works))
        steps += 1
    assert len(works) > 60  # it did not go first
    assert steps <= 2 * 4096 // 64 + 2


def test_whoever_comes_later_than_a_prompt_needs_goes_behind_it() -> None:
    scheduler, long = Scheduler(64), Fake(end=4096)
    need_s = 4096 * scheduler.cost.bulk_token_s
    in_time, late = Fake(end=64, came_s=0.9 * need_s), Fake(end=64, came_s=need_s)
    assert list(shares(scheduler.batch([long, in_time]))) == [in_time]
    assert list(shares(scheduler.batch([long, late]))) == [long]


# ---- the budget that adapts ----------------------------------------------------------------------


@pytest.mark.parametrize("exact_s", [0.01, 0.1, 0.2])
@pytest.mark.parametrize("bulk_token_s", [0.0002, 0.001, 0.01])
def test_the_budget_becomes_what_costs_twice_as_much_as_decoding(
    exact_s: float, bulk_token_s: float
) -> None:
    """Learnt from steps that decode, and from those that read as well, of twenty prompts."""
    scheduler, noise = Scheduler(), random.Random(0)
    for _ in range(20):
        for tokens in (0, 0, 0, 1, 1):
            num_bulk = tokens * scheduler.budget(8, 1)
            seconds = exact_s + num_bulk * bulk_token_s
            scheduler.cost.learn(8, num_bulk, seconds * noise.uniform(0.9, 1.1))
        scheduler.cost.learn(0, MOST_PREFILL, MOST_PREFILL * bulk_token_s)
    expected = min(max(2 * exact_s / bulk_token_s, LEAST_PREFILL), MOST_PREFILL)
    assert scheduler.budget(8, 1) == pytest.approx(expected, rel=0.3)
    assert scheduler.budget(0, 1) == MOST_PREFILL


def test_more_prompts_than_answers_get_a_larger_share() -> None:
    scheduler = Scheduler()
    scheduler.cost.exact_s, scheduler.cost.bulk_token_s = 0.03, 0.001
    assert [scheduler.budget(8, waiting) for waiting in (1, 16, 32, 80)] == [64, 64, 120, 300]


def test_a_step_of_one_kind_says_nothing_about_the_other() -> None:
    cost = StepCost()
    before = cost.bulk_token_s
    cost.learn(1, 0, 1.0)
    assert cost.bulk_token_s == before and cost.exact_s > 0.03
    exact_s = cost.exact_s
    cost.learn(0, 100, 1.0)
    assert cost.exact_s == exact_s and cost.bulk_token_s > before


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_one_step_that_was_interrupted_moves_the_budget_little(seconds: float) -> None:
    cost = StepCost()
    cost.learn(8, 0, seconds)
    assert 0.5 < cost.exact_s / StepCost().exact_s < 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 512), st.floats(0, 1e6)), max_size=300)
)
def test_the_budget_stays_within_its_bounds(steps: list[tuple[int, int, float]]) -> None:
    scheduler = Scheduler()
    for step in steps:
        scheduler.cost.learn(*step)
        assert LEAST_PREFILL <= scheduler.budget(1, 1) <= MOST_PREFILL


@pytest.mark.parametrize("budget", [0, -1, 1.5, "64", True, inf, nan])
def test_a_budget_that_is_none_is_refused(budget: object) -> None:
    with pytest.raises(InputError, match="prefill_budget = .*expected a number of tokens"):
        Scheduler(budget)  # type: ignore[arg-type]
