"""Where prompts are cut: everywhere alike, however much a step takes and wherever one begins."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gemelo.engine.decoder import FEW_TOKENS
from gemelo.engine.grid import GRID, Range, cells, pieces

lengths = st.integers(0, 400)
chunks = st.sampled_from([1, 3, 16, 20, 64, 100, 512])


@st.composite
def blocks_within(draw: st.DrawFn, end: int) -> list[Range]:
    """Pictures in order, none longer than 90."""
    marks = sorted(draw(st.sets(st.integers(0, end), max_size=8)))
    pairs = zip(marks[::2], marks[1::2], strict=False)
    return [(begin, min(last, begin + 90)) for begin, last in pairs]


def all_pieces(
    begin: int, end: int, limits: Sequence[int], blocks: Sequence[Range], grid: int
) -> list[list[Range]]:
    """Step by step, with one limit after the other, until all is taken."""
    taken = []
    while begin < end:
        step = pieces(begin, end, limits[len(taken) % len(limits)], blocks, grid)
        begin = step[-1][1]
        taken.append(step)
    return taken


def bits(piece: Range) -> list[tuple[int, object]]:
    """Of every position what its bits may depend on: with few tokens nothing, with many where its
    block of 32 begins and ends."""
    begin, end = piece
    if end - begin <= FEW_TOKENS:
        return [(at, "few") for at in range(begin, end)]
    first = [at - (at - begin) % 32 for at in range(begin, end)]
    return [(begin + place, (at, min(at + 32, end))) for place, at in enumerate(first)]


def written(steps: Sequence[Sequence[Range]]) -> dict[int, object]:
    return {at: how for step in steps for piece in step for at, how in bits(piece)}


@given(st.data(), lengths, lengths, chunks, st.lists(st.integers(1, 700), min_size=1))
def test_all_is_covered_once_and_no_picture_is_cut(
    data: st.DataObject, begin: int, end: int, grid: int, limits: list[int]
) -> None:
    blocks = data.draw(blocks_within(end))
    begin = next((first for first, last in blocks if first < begin < last), begin)
    steps = all_pieces(begin, end, limits, blocks, grid)
    found = [piece for step in steps for piece in step]
    assert [at for first, last in found for at in range(first, last)] == list(range(begin, end))
    for first, last in blocks:
        cuts = {at for piece in found for at in piece}
        assert not [at for at in cuts if first < at < last and begin < at < end]


@given(st.data(), lengths, chunks, st.lists(st.integers(1, 700), min_size=1))
def test_a_step_takes_what_it_has_room_for_or_one_cell(
    data: st.DataObject, end: int, grid: int, limits: list[int]
) -> None:
    blocks, at = data.draw(blocks_within(end)), 0
    for place, step in enumerate(all_pieces(0, end, limits, blocks, grid)):
        ends = [last for _, last in cells(at, end, blocks, grid)]
        within = [last for last in ends if last - at <= limits[place % len(limits)]]
        assert step[0][0] == at
        at = step[-1][1]
        assert at == max(within, default=ends[0])


@given(st.data(), lengths, st.lists(st.integers(1, 700), min_size=1))
def test_bits_do_not_depend_on_what_a_step_takes(
    data: st.DataObject, end: int, limits: list[int]
) -> None:
    blocks = data.draw(blocks_within(end))
    alone = written([[cell] for cell in cells(0, end, blocks)])
    assert written(all_pieces(0, end, limits, blocks, GRID)) == alone


@given(st.data(), lengths, st.integers(0, 6))
def test_bits_do_not_depend_on_where_it_began_on_the_grid(
    data: st.DataObject, end: int, lines: int
) -> None:
    """A prefix that is held is as one that was read just now."""
    blocks, begin = data.draw(blocks_within(end)), lines * GRID
    if begin < end and not any(first < begin < last for first, last in blocks):
        whole = written([pieces(0, end, 512, blocks)])
        rest = written([pieces(begin, end, 512, blocks)])
        assert rest.items() <= whole.items()


def test_a_tail_of_few_tokens_is_a_piece_of_its_own() -> None:
    assert pieces(0, 150, 512) == [(0, 150)]
    assert pieces(0, 144, 512) == [(0, 128), (128, 144)]
    assert pieces(0, 144, 100) == [(0, 64)] and pieces(64, 144, 80) == [(64, 128), (128, 144)]
    assert pieces(60, 70, 512) == [(60, 70)]  # few tokens are not cut at a line
    assert pieces(60, 140, 512) == [(60, 64), (64, 128), (128, 140)]


def test_a_picture_is_a_cell() -> None:
    assert pieces(0, 400, 512, [(70, 326)]) == [
        (0, 64),
        (64, 70),
        (70, 326),
        (326, 384),
        (384, 400),
    ]
    assert pieces(0, 400, 200, [(70, 326)]) == [(0, 64), (64, 70)]
    assert pieces(70, 400, 200, [(70, 326)]) == [(70, 326)]
    assert pieces(0, 400, 512, [(64, 320)]) == [(0, 384), (384, 400)]
