"""Who shares which beginning: the longest that a fresh reading would have written alike."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.engine.prefix_pool import GRID, Prefix, PrefixPool
from gemelo.engine.tokens import EmbeddingSpan, Tokens

SMALL = 4  # a grid for tests
LARGE = 1 << 40  # bytes


@dataclass(eq=False)
class Held:
    """A sequence without a cache."""

    tokens: Tokens
    on_grid: int = 0
    nbytes: int = 1
    back_to: int = 0  # how far back its ring reaches
    snapshots: tuple[int, ...] = ()

    def restorable(self, end: int) -> int:
        reached = end if end >= self.back_to else 0
        return max([reached, *(at for at in self.snapshots if at <= end)])


def held(
    ids: list[int], on_grid: int | None = None, nbytes: int = 1, back_to: int = 0, *snapshots: int
) -> Held:
    on_grid = len(ids) if on_grid is None else on_grid
    return Held(Tokens(ids), on_grid, nbytes, back_to, snapshots)


def pool_of(*sequences: Held, busy: tuple[Held, ...] = (), grid: int = GRID) -> PrefixPool[Held]:
    pool = PrefixPool[Held](LARGE, grid)
    for sequence in (*sequences, *busy):
        pool.begin(sequence, "key")
    for sequence in sequences:
        assert not pool.end(sequence)
    return pool


def take(pool: PrefixPool[Held], ids: list[int], key: str = "key") -> Prefix[Held] | None:
    return pool.take(Tokens(ids), key)


def picture(begin: int, size: int, key: bytes = b"a", both_ways: bool = True) -> EmbeddingSpan:
    return EmbeddingSpan(begin, np.zeros((size, 1), np.float32), key, bidirectional=both_ways)


IDS = list(range(1000))


# ---- which prefix --------------------------------------------------------------------------------


def test_a_chat_goes_on_at_the_end_of_all_that_was_said() -> None:
    said = held(IDS[:150], on_grid=100)  # and fifty of an answer
    assert take(pool_of(said), IDS[:170]) == (said, 150, False)


def test_a_part_of_a_prompt_counts_down_to_the_grid() -> None:
    said = held([*IDS[:200], 7, 7, 7])
    assert take(pool_of(said), IDS[:250]) == (said, 192, False)


def test_what_was_decoded_counts_only_with_all_that_was() -> None:
    said = held(IDS[:500], on_grid=130)
    assert take(pool_of(said), [*IDS[:499], 7, 7]) == (said, 128, True)


def test_the_last_token_is_always_read() -> None:
    """Scores of it are nowhere kept."""
    said = held(IDS[:128])
    assert take(pool_of(said), IDS[:128]) == (said, 64, False)
    assert take(pool_of(held(IDS[:64])), IDS[:64]) is None


def test_a_key_of_another_size_or_caller_shares_nothing() -> None:
    pool = pool_of(held(IDS[:128]))
    assert take(pool, IDS[:200], key="other") is None
    assert take(pool, IDS[:200]) is not None


def test_too_little_in_common_is_nothing() -> None:
    assert take(pool_of(held([*IDS[:63], 7])), IDS[:200]) is None
    assert take(pool_of(), IDS[:200]) is None
    assert take(pool_of(busy=(held([]),)), IDS[:200]) is None


@pytest.mark.parametrize("busy", [True, False])
def test_an_idle_one_is_taken_and_a_busy_one_copied(busy: bool) -> None:
    said = held(IDS[:128])
    pool = pool_of(busy=(said,)) if busy else pool_of(said)
    assert take(pool, IDS[:200]) == (said, 128, busy)
    again = take(pool, IDS[:200])
    assert again == ((said, 128, True) if busy else None)


@pytest.mark.parametrize(("length", "copy"), [(128, False), (256, False), (258, True), (500, True)])
def test_an_idle_one_is_copied_if_more_than_half_would_be_lost(length: int, copy: bool) -> None:
    said = held(IDS[:length])
    assert take(pool_of(said), [*IDS[:128], 7, 7]) == (said, 128, copy)


def test_of_equals_one_that_need_not_be_copied_is_taken() -> None:
    idle, busy = held(IDS[:128]), held(IDS[:128])
    assert take(pool_of(idle, busy=(busy,)), IDS[:200]) == (idle, 128, False)


def test_a_busy_prompt_is_shared_as_far_as_it_is_read() -> None:
    said = held([], on_grid=0)
    pool = pool_of(busy=(said,))
    for read, shared in [(0, None), (64, 64), (192, 192), (200, 192)]:
        said.tokens, said.on_grid = Tokens(IDS[:read]), read
        found = take(pool, IDS[:300])
        assert found == (None if shared is None else (said, shared, True))
    said.tokens = Tokens([*IDS[:200], 5, 6])  # it decodes; a draft's guesses come and go
    assert take(pool, [*IDS[:200], 5, 6, 7]) == (said, 192, True)


# ---- rings, snapshots and pictures ---------------------------------------------------------------


def test_a_ring_that_has_wrapped_goes_back_to_a_snapshot() -> None:
    wrapped = held(IDS[:900], 900, 1, 700, 320)
    assert take(pool_of(wrapped), [*IDS[:650], 7, 7]) == (wrapped, 320, True)
    assert take(pool_of(wrapped), [*IDS[:750], 7, 7]) == (wrapped, 704, False)
    assert take(pool_of(held(IDS[:900], 900, 1, 700)), [*IDS[:650], 7, 7]) is None


def test_a_snapshot_off_the_grid_serves_none_but_the_line_before_it_may() -> None:
    assert take(pool_of(held(IDS[:900], 900, 1, 700, 330)), [*IDS[:650], 7]) is None
    lower = held(IDS[:900], 900, 1, 700, 330, 256)
    assert take(pool_of(lower), [*IDS[:650], 7]) == (lower, 256, True)


def test_a_shorter_prefix_that_can_be_restored_beats_a_longer_one_that_cannot() -> None:
    wrapped, short = held(IDS[:900], 900, 1, 700), held(IDS[:200], 200)
    assert take(pool_of(short, wrapped), [*IDS[:650], 7]) == (short, 200, False)


def seen(ids: list[int], *spans: EmbeddingSpan) -> Held:
    return Held(Tokens(ids, spans), len(ids))


def test_a_picture_is_shared_whole_or_not_at_all() -> None:
    shown = seen([*IDS[:600], 7], picture(70, 256))
    request = Tokens([*IDS[:600], 8], [picture(70, 256)])
    assert pool_of(shown).take(request, "key") == (shown, 576, False)
    # up to its end, which is no line of the grid; and where another one stands, to the line before
    cut = Tokens([*IDS[:330], 8], [picture(70, 256)])
    assert pool_of(shown).take(cut, "key") == (shown, 326, False)
    other = Tokens([*IDS[:600], 8], [picture(70, 256, b"b")])
    assert pool_of(shown).take(other, "key") == (shown, 64, True)
    none = Tokens([*IDS[:600], 8])
    assert pool_of(shown).take(none, "key") == (shown, 64, True)


# ---- the slow rule -------------------------------------------------------------------------------


def is_cut(tokens: Tokens, end: int, grid: int) -> bool:
    """Whether a fresh reading is cut there, whatever follows."""
    both_ways = [span for span in tokens.spans if span.bidirectional]
    inside = any(span.begin < end < span.end for span in both_ways)
    return not inside and (end % grid == 0 or any(span.end == end for span in both_ways))


def longest(sequence: Held, is_busy: bool, tokens: Tokens, grid: int) -> int:
    """By trying every end."""
    common = min(sequence.tokens.common_prefix(tokens), len(tokens) - 1)
    whole = len(sequence.tokens)
    ends = [
        end
        for end in range(1, common + 1)
        if (not is_busy and end == whole)
        or end <= sequence.on_grid
        and is_cut(tokens, end, grid)
        and sequence.restorable(end) == end
    ]
    return max(ends, default=0)


@st.composite
def prompts(draw: st.DrawFn) -> Tokens:
    """Of few ids, so that they begin alike, with few pictures and sounds at few places."""
    ids = draw(st.lists(st.just(1), max_size=30)) + draw(st.lists(st.integers(1, 2), max_size=4))
    spans, free = list[EmbeddingSpan](), 0
    for begin, size in draw(st.sampled_from([[], [(3, 6)], [(5, 3)], [(2, 5), (7, 9)]])):
        if begin >= free and begin + size <= len(ids):
            key = draw(st.sampled_from([b"a", b"a", b"b"]))
            spans.append(picture(begin, size, key, draw(st.sampled_from([True, True, False]))))
            free = begin + size
    return Tokens(ids, spans)


@st.composite
def sequences(draw: st.DrawFn) -> Held:
    tokens = draw(prompts())
    on_grid = draw(st.integers(0, len(tokens)))
    snapshots = draw(st.lists(st.integers(0, len(tokens)), max_size=2))
    back_to = draw(st.sampled_from([0, 0, len(tokens)])) and draw(st.integers(0, len(tokens)))
    return Held(tokens, on_grid, draw(st.integers(1, 50)), back_to, tuple(snapshots))


@settings(max_examples=300, deadline=None)
@given(st.lists(sequences(), max_size=5), st.lists(sequences(), max_size=2), prompts())
def test_the_longest_is_found_that_trying_every_end_finds(
    idle: list[Held], busy: list[Held], tokens: Tokens
) -> None:
    idle = [sequence for sequence in idle if len(sequence.tokens)]
    found = pool_of(*idle, busy=tuple(busy), grid=SMALL).take(tokens, "key")
    ends = {one: longest(one, one in busy, tokens, SMALL) for one in (*idle, *busy)}
    assert (found.end if found else 0) == max(ends.values(), default=0)
    if found is not None:
        assert found.end == ends[found.sequence]
        assert found.copy or found.sequence in idle


# ---- coming and going ----------------------------------------------------------------------------


def test_the_least_recently_used_goes_first() -> None:
    first, second, third = (held([at, *IDS[:128]], nbytes=10) for at in (1, 2, 3))
    pool = pool_of(first, second, third)
    assert take(pool, [1, *IDS[:63], 7, 7]) == (first, 64, True)  # a copy is a use
    assert pool.keep_within(25) == [second]
    assert pool.keep_within(0) == [third, first]


def test_one_larger_than_the_limit_drives_nobody_out() -> None:
    small, large = held(IDS[:64], nbytes=10), held(IDS[:64], nbytes=101)
    pool = pool_of(small)
    pool.keep_within(100)
    pool.begin(large, "key")
    assert pool.end(large) == [large] and pool.nbytes == 10


def test_one_that_holds_nothing_does_not_stay() -> None:
    empty, pool = held([], nbytes=0), pool_of()
    pool.begin(empty, "key")
    assert pool.end(empty) == [empty] and pool.num_idle == 0


def test_running_ones_are_never_evicted_and_count_nothing() -> None:
    running = held(IDS[:128], nbytes=10)
    pool = pool_of(busy=(running,))
    assert pool.nbytes == 0 and pool.keep_within(0) == []
    assert take(pool, IDS[:200]) == (running, 128, True)
    pool.forget(running)
    assert take(pool, IDS[:200]) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 120), st.lists(sequences(), min_size=1, max_size=30), st.randoms())
def test_the_pool_keeps_its_limit_and_gives_nothing_twice(
    limit: int, coming: list[Held], chance: random.Random
) -> None:
    """Requests that come, take what there is, run, and end or are given up, as they do."""
    pool, running = PrefixPool[Held](limit, SMALL), list[Held]()
    idle = set[Held]()

    def ends(sequence: Held) -> None:
        idle.add(sequence)
        idle.difference_update(pool.end(sequence))

    for sequence in coming:
        found = pool.take(sequence.tokens, "key") if len(sequence.tokens) else None
        if found is not None:
            assert found.sequence in idle or found.copy and found.sequence in running
            assert found.sequence.tokens.common_prefix(sequence.tokens) >= found.end > 0
            assert found.end < len(sequence.tokens)
        if found is not None and not found.copy:
            idle.remove(found.sequence)
        pool.begin(sequence, "key")
        running.append(sequence)
        if chance.random() < 0.6:
            ends(running.pop(chance.randrange(len(running))))
        elif chance.random() < 0.2:
            pool.forget(running.pop(chance.randrange(len(running))))
        elif chance.random() < 0.2:
            idle.difference_update(pool.keep_within(chance.randint(0, limit)))
        assert pool.nbytes == sum(one.nbytes for one in idle) <= pool.limit_bytes
        assert pool.num_idle == len(idle)
    for sequence in running:
        ends(sequence)
    assert set(pool.keep_within(0)) == idle and pool.nbytes == 0
