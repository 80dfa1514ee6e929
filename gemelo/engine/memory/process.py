"""Memory of this process: its resident set (RSS) now, and the largest that it has been.

Both count touched pages of mapped files, so weights that nobody copies are in them too, as far as
they were read. The first is what a memory policy keeps below its limit; the second stands beside a
speed, and never goes down.

    process_bytes(), peak_rss_bytes()
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from gemelo.errors import UnavailableError


def process_bytes() -> int:
    """Bytes of memory that this process holds now, touched pages of mapped files included."""
    if sys.platform == "win32":
        return _memory_counters().resident
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except OSError:
        raise UnavailableError(
            "how much memory the process holds is known on Linux and Windows only; set no memory "
            "limit"
        ) from None


def peak_rss_bytes() -> int:
    """The most memory this process has held at once, mapped file pages included.

    Linux tells it for this program alone; the older way also counts what a parent held before it
    started the program, so it is only the second choice.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _memory_counters().peak_resident
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = [
        ("nbytes", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_resident", ctypes.c_size_t),  # Windows calls it the working set
        ("resident", ctypes.c_size_t),
        ("pools_and_page_file", ctypes.c_size_t * 6),
    ]
    peak_resident: int
    resident: int


def _memory_counters() -> _MemoryCounters:
    counters = _MemoryCounters(ctypes.sizeof(_MemoryCounters))
    system = ctypes.CDLL("kernel32")  # its calls have one convention on every 64-bit Windows
    system.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(system.GetCurrentProcess())
    if not system.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.nbytes):
        raise UnavailableError("Windows does not say how much memory the process holds")
    return counters
