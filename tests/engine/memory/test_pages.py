"""Pages let go and files found behind maps, on real files; whatever is no file must stay."""

from __future__ import annotations

import copy
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.engine.memory import pages
from gemelo.engine.memory.pages import (
    PAGE_BYTES,
    ask,
    backing,
    present_bytes,
    release,
)
from gemelo.errors import FileFormatError
from gemelo.kernels.quants import Bytes
from gemelo.weights.mapped import map_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of pages")

PAGES = 64


def mapped(path: Path, seed: int = 0) -> Bytes:
    """PAGES pages of random bytes on disk, mapped and touched."""
    content = np.random.default_rng(seed).integers(0, 256, PAGES * PAGE_BYTES, np.uint8)
    path.write_bytes(content.tobytes())
    found = np.frombuffer(map_file(path), np.uint8)
    assert np.array_equal(found, content)
    return found


@pytest.fixture
def weight(tmp_path: Path) -> Bytes:
    return mapped(tmp_path / "weight.bin")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    return mapped(tmp_path_factory.mktemp("pages") / "weight.bin")


def test_pages_of_a_file_go_and_come_back(weight: Bytes) -> None:
    content = weight.copy()
    assert present_bytes(weight) == PAGES * PAGE_BYTES
    assert release(weight) == PAGES * PAGE_BYTES
    assert present_bytes(weight) == 0
    assert release(weight) == 0  # nothing left to let go
    ask(weight)
    assert np.array_equal(weight, content)


def test_part_of_a_page_stays(weight: Bytes) -> None:
    assert release(weight[1 : 3 * PAGE_BYTES - 1]) == PAGE_BYTES
    assert release(weight[: PAGE_BYTES - 1]) == release(weight[:0]) == 0


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 3 * PAGE_BYTES),
    row=st.integers(1, 3 * PAGE_BYTES),
    width=st.integers(1, 3 * PAGE_BYTES),
    rows=st.integers(1, 9),
)
def test_of_a_matrix_the_pages_inside_its_rows_go(
    shared: Bytes, start: int, row: int, width: int, rows: int
) -> None:
    width = min(row, width)
    shared.sum()  # touch
    matrix = shared[start : start + rows * row].reshape(rows, row)[:, :width]
    inside = set()
    for line in range(rows):
        begin = shared.ctypes.data + start + line * row
        inside |= {
            page
            for page in range(begin // PAGE_BYTES, (begin + width) // PAGE_BYTES)
            if page * PAGE_BYTES >= begin
        }
    if width == row:  # one run: pages across the ends of rows go too
        begin, end = shared.ctypes.data + start, shared.ctypes.data + start + rows * row
        inside = set(range(-(-begin // PAGE_BYTES), end // PAGE_BYTES))
    before = present_bytes(shared)
    assert release(matrix) == len(inside) * PAGE_BYTES
    # The rest of the map stays where it was.
    assert present_bytes(shared) == before - len(inside) * PAGE_BYTES


def test_memory_that_is_no_file_stays(weight: Bytes) -> None:
    """Letting it go would leave zeros."""
    memory = weight.copy()
    assert present_bytes(memory) > 0 and release(memory) == 0
    assert np.array_equal(memory, weight)
    shared = np.frombuffer(mmap.mmap(-1, 1 << 18), np.uint8)  # of several processes
    shared[:] = 1
    release(shared)  # goes, and comes back from where it is shared
    assert (shared == 1).all()


def test_what_was_written_to_a_map_stays(weight: Bytes) -> None:
    content = weight.copy()
    weight[5 * PAGE_BYTES] = content[5 * PAGE_BYTES] = 255 - int(weight[5 * PAGE_BYTES])
    assert release(weight) == (PAGES - 1) * PAGE_BYTES
    assert np.array_equal(weight, content)
    assert backing(weight) is None


def test_a_map_is_read_beside(tmp_path: Path) -> None:
    weight = mapped(tmp_path / "a weight\n.bin")
    release(weight)
    part = weight[700:90000]
    found = backing(part)
    assert found is not None
    buffer = np.zeros(1000, np.uint8)
    found.ask(5000, 1000)
    found.read(5000, buffer.data)
    assert present_bytes(weight) == 0
    assert np.array_equal(buffer, weight[5700:6700])
    assert copy.deepcopy(found) is found


def test_a_file_that_became_too_short_is_said(tmp_path: Path) -> None:
    found = backing(mapped(tmp_path / "weight.bin"))
    assert found is not None
    with (tmp_path / "weight.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(FileFormatError, match="weight.bin was cut short while it was in use"):
        found.read(50, memoryview(bytearray(100)))


def test_no_file_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert backing(np.zeros(100_000)) is None
    removed = mapped(tmp_path / "removed.bin")
    (tmp_path / "removed.bin").unlink()
    assert backing(removed) is None
    mapped(tmp_path / "removed.bin (deleted)", seed=1)  # which is what the system calls it now
    assert backing(removed) is None
    replaced = mapped(tmp_path / "replaced.bin")
    other = tmp_path / "other.bin"
    other.write_bytes((tmp_path / "replaced.bin").read_bytes())
    other.rename(tmp_path / "replaced.bin")
    assert backing(replaced) is None


def test_a_system_that_tells_nothing_keeps_everything(
    weight: Bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGEMAP", tmp_path / "missing")
    assert release(weight) == present_bytes(weight) == 0
    monkeypatch.setattr(pages, "Path", lambda path: tmp_path / "missing")
    assert backing(weight) is None
