"""Text tables fit a width, cut nothing off, and leave out what is needed least."""

from __future__ import annotations

import io

import pytest

from gemelo.cli.columns import WIDE, Column, paragraph, table, width_of

COLUMNS = [
    Column("name", ["E4B", "E2.54B-layer"]),
    Column("keys and values", ["own", "layer 18"], rank=2),
    Column("nothing", ["", ""]),
    Column("MiB each", ["3.0", "1,024"], numeric=True, rank=1),
]


def test_a_table_is_aligned_and_headings_wrap_between_words() -> None:
    assert table(COLUMNS, 80) == [
        "name          keys and    MiB",
        "              values     each",
        "------------  --------  -----",
        "E4B           own         3.0",
        "E2.54B-layer  layer 18  1,024",
    ]


@pytest.mark.parametrize("width", range(5, 60))
def test_the_least_needed_go_first_and_the_rest_is_whole(width: int) -> None:
    lines = table(COLUMNS, width)
    assert max(map(len, lines)) <= max(width, 12)  # what stays whatever the width
    words = " ".join(lines)
    assert "E2.54B-layer" in words and ("1,024" in words or width < 19)
    assert ("layer 18" in words) == (width >= 29)


def test_a_long_cell_goes_on_in_the_next_line() -> None:
    lines = table([Column("layers", ["0-3, 5-8, 10"], most=9), Column("n", ["7"])], 40)
    assert lines == ["layers     n", "---------  -", "0-3, 5-8,  7", "10"]


def test_prose_breaks_at_spaces_alone() -> None:
    text = "the per-layer embeddings " * 9
    for width in (20, 40, 500):
        lines = paragraph(text, width)
        assert " ".join(lines) == text.strip() and max(map(len, lines)) <= min(width, 100)


def test_a_file_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    assert width_of(io.StringIO()) == width_of(None) == WIDE
    assert width_of(Terminal()) == 40
