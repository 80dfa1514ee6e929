"""The mask, drawn."""

from __future__ import annotations

import torch

from gemelo.models.masks import attention_mask


def drawn(queries: list[int], keys: list[int], window: int | None) -> list[str]:
    mask = attention_mask(torch.tensor([queries]), torch.tensor([keys]), window)
    return ["".join("#" if seen else "." for seen in row) for row in mask[0, 0].tolist()]


def test_causal() -> None:
    assert drawn([0, 1, 2], [0, 1, 2], None) == ["#..", "##.", "###"]


def test_a_window_counts_the_query_itself() -> None:
    places = [0, 1, 2, 3, 4]
    assert drawn(places, places, 3) == ["#....", "##...", "###..", ".###.", "..###"]


def test_order_of_slots_does_not_matter_and_empty_ones_are_unseen() -> None:
    assert drawn([4], [3, 4, -1, 2, 1], 3) == ["##.#."]


def test_padded_queries_see_something_so_that_softmax_stays_finite() -> None:
    assert drawn([-1], [0, -1], 3) == ["##"]
