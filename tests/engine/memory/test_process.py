"""The memory of this process, as the system counts it."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from gemelo.engine.memory import process
from gemelo.engine.memory.process import peak_rss_bytes, process_bytes
from gemelo.errors import UnavailableError

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds")


@linux
def test_the_process_is_as_large_as_what_it_touched() -> None:
    before = process_bytes()
    memory = np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)  # not what was given back before
    memory[:] = 1
    assert process_bytes() - before > 60 << 20


def test_a_system_that_tells_nothing_takes_no_memory_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "Path", lambda path: tmp_path / "missing")
    with pytest.raises(UnavailableError, match="known on Linux and Windows only"):
        process_bytes()
    assert peak_rss_bytes() > 1 << 20  # getrusage knows


def test_peak_memory_counts_what_was_held() -> None:
    before = peak_rss_bytes()
    held = bytearray(before)  # as much again
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert peak_rss_bytes() > 1.2 * before  # beside what is in memory still
