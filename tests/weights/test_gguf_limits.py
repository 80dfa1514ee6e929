"""Headers at the bounds and past them: none takes seconds or fills memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemelo.weights import gguf_header as header

SECONDS, MEBIBYTES = 3.0, 600  # an import of torch takes 230 MB of it
SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from gemelo.errors import GemeloError
from gemelo.weights.gguf import GGUFFile

resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
told = {}
for path in map(Path, sys.argv[1:]):
    started = time.process_time()
    try:
        GGUFFile(path)
        error = ""
    except GemeloError as caught:
        error = str(caught)
    # Not getrusage: what it counts begins with the process that started this one.
    status = Path("/proc/self/status").read_text().split()
    peak = int(status[status.index("VmHWM:") + 1]) >> 10
    told[path.stem] = (time.process_time() - started, peak, error)
print(json.dumps(told))
"""
ENTRIES, TENSORS = header.MAX_COUNTS["metadata entries"], header.MAX_COUNTS["tensors"]
ROOM = header.MAX_HEADER_BYTES - 200


def counted(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def entries(count: int, value: Callable[[int], bytes]) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, count)
    return start + b"".join(counted(b"gemma3.%d" % i) + value(i) for i in range(count))


def array(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + body


def tensors(count: int) -> bytes:
    places = reversed(range(0, 32 * count, 32))
    infos = (
        counted(b"blk.%d.attn_q.weight" % place) + struct.pack("<IQIQ", 1, 8, 0, place)
        for place in places
    )
    start = b"GGUF" + struct.pack("<IQQ", 3, count, 0) + b"".join(infos)
    return start + bytes(-len(start) % 32 + 32 * count)


HEAVY: dict[str, Callable[[], bytes]] = {
    "short arrays": lambda: entries(ENTRIES, lambda i: array(8, 16, counted(b"a") * 16)),
    "empty strings": lambda: entries(1, lambda i: array(8, 1 << 20, bytes(8 << 20))),
    "strings of all lengths": lambda: entries(
        1, lambda i: array(8, 1 << 18, (counted(b"") + counted(b"x" * 90)) * (1 << 17))
    ),
    "arrays of arrays": lambda: entries(
        1, lambda i: array(9, 4096, (struct.pack("<IQ", 8, 64) + counted(b"") * 64) * 4096)
    ),
    "a text": lambda: entries(
        1, lambda i: struct.pack("<I", 8) + counted(b"x" * (ROOM - 4) + "🦙".encode())
    ),
    "bytes": lambda: entries(1, lambda i: array(7, ROOM, bytes(ROOM))),
    "tensors": lambda: tensors(TENSORS),
}
TOO_MUCH: dict[str, Callable[[], bytes]] = {
    "more numbers": lambda: entries(ENTRIES + 1, lambda i: struct.pack("<IB", 0, 1)),
    "more strings": lambda: entries(1, lambda i: array(8, (1 << 20) + 1, bytes(9 << 20))),
    "more arrays": lambda: entries(1, lambda i: array(9, 4097, bytes(12 * 4097))),
    "deeper arrays": lambda: entries(1, lambda i: array(9, 1, struct.pack("<IQ", 9, 1) * 9)),
    "more bytes": lambda: entries(1, lambda i: array(0, ROOM + 200, bytes(ROOM + 200))),
    "more text": lambda: entries(2, lambda i: struct.pack("<I", 8) + counted(b"x" * (17 << 20))),
    "more tensors": lambda: tensors(TENSORS + 1),
}


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for the peak")
def test_no_header_takes_long_or_fills_memory(tmp_path: Path) -> None:
    paths = []
    for name, make in (HEAVY | TOO_MUCH).items():
        paths.append(tmp_path / f"{name}.gguf")
        paths[-1].write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, paths)], capture_output=True, check=True, text=True
    )
    told: dict[str, tuple[float, int, str]] = json.loads(done.stdout)
    assert told.keys() == HEAVY.keys() | TOO_MUCH.keys()
    for name, (seconds, peak, error) in told.items():
        assert seconds < SECONDS and peak < MEBIBYTES, name
        assert ("at most" in error or "limit" in error or "bytes of header" in error) == (
            name in TOO_MUCH
        ), (name, error)
