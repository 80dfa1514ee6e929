"""The machine that a number was measured on: its CPU, and the speed of its memory.

A speed without its ceiling says little. The ceiling of decoding is how fast memory can be read, so
it is measured in the same run, with the same threads, over a buffer that no cache holds.

    machine.cpu_name(), machine.memory_bandwidth()
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import numpy as np

from gemelo.kernels import native
from gemelo.kernels.quants import Bytes
from gemelo.kernels.repacked import large_pages

_LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES = 256 << 20, 1 << 30
_CACHES = 4  # the buffer is this many times the largest cache
_ROUNDS = 6


def cpu_name() -> str:
    """The processor's own name where the system tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware", "cpu model"):
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def memory_bandwidth(buffer_bytes: int | None = None) -> float:
    """Bytes a second that the kernels' threads read from memory: the best of a few readings.

    The buffer is by default four times the largest cache, within 256 MiB to 1 GiB and a quarter of
    the memory that is free; in large pages where there are any, which are read fastest.
    """
    buffer = large_pages((buffer_bytes or _buffer_bytes()) // 256 * 256)
    buffer.fill(1)
    return max(read_speeds(buffer))


def read_speeds(memory: Bytes) -> list[float]:
    """Bytes a second of a few readings of memory (bytes,) uint8, a multiple of 256."""
    speeds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        _read(memory)
        speeds.append(memory.nbytes / (time.perf_counter() - started))
    return speeds


def _read(memory: Bytes) -> None:
    """Read all of it with all threads, as products read weights."""
    if native.module is None:
        memory.view(np.float32).sum()
    else:
        native.extension.read(memory.ctypes.data, memory.nbytes)


def _buffer_bytes() -> int:
    wanted = min(max(_LEAST_BUFFER_BYTES, _CACHES * _cache_bytes()), _MOST_BUFFER_BYTES)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return wanted
    return max(1 << 20, min(wanted, free // 4))


def _cache_bytes() -> int:
    """Bytes of the last-level cache, 0 where the system does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii", errors="replace").strip()
        number = text.rstrip("KMG")
        if number.isdigit():
            sizes.append(int(number) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    return max(sizes)
