"""Workers: cases run in forked processes that may die, hang or swell without harm.

A worker has a limit of address space and takes one case after the other; before each it says the
case's number, after it what came out. Where it dies, says nothing in time or has no memory left,
the case that it was at is to blame, and a new worker goes on behind it.

    table = run(reader, numbers=range(200), jobs=2)

Outcomes: `ok`; `refused`, a `GemeloError` of one line; `other`, any other exception, or a line
that is none; `crash`, a signal; `hang`; `blow-up`, too much memory.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gemelo.errors import MAX_CHARS, GemeloError

OUTCOMES = ("ok", "refused", "other", "crash", "hang", "blow-up")
HANG_S = 5.0  # of the processor's time; of the clock six times that, for what waits
BLOW_UP_BYTES = 600 << 20
_ADDRESSES_BYTES = 3 << 30  # over what a worker has when it begins
_WAITED = 6

Case = Callable[[int, Path], None]  # runs a case by its number in a folder of its own


@dataclass
class Table:
    """Outcomes of one reader: how many of each, and what every bad one said."""

    counts: Counter[str] = field(default_factory=Counter)
    found: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def is_clean(self) -> bool:
        return not self.found

    def add(self, number: int, outcome: str, said: str, peak_bytes: int = 0) -> None:
        self.counts[outcome] += 1
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        if outcome not in ("ok", "refused"):
            self.found.append((number, outcome, said))


def run(case: Case, numbers: range, jobs: int, tell: Callable[[int], None]) -> Table:
    """Every case of `numbers`, in `jobs` workers."""
    table, started = Table(), time.monotonic()
    lanes = [_Lane(case, iter(numbers[start::jobs])) for start in range(jobs)]
    try:
        while waiting := [lane for lane in lanes if lane.advance(table)]:
            ready = [lane.pipe for lane in waiting if lane.pid]
            select.select(ready, [], [], 0.1 if len(ready) == len(waiting) else 0)
            tell(sum(table.counts.values()))
    finally:
        for lane in lanes:
            lane.close()
    table.seconds = time.monotonic() - started
    return table


class _Lane:
    """A share of the cases, and the worker that is at one of them."""

    def __init__(self, case: Case, numbers: Iterator[int]) -> None:
        self.case, self.numbers = case, deque(numbers)
        self.folder = Path(tempfile.mkdtemp(prefix="gemelo-fuzz-"))
        self.pid, self.pipe, self.said = 0, -1, b""
        self.at: int | None = None
        self.since = self.spent = 0.0

    def advance(self, table: Table) -> bool:
        """Take in what the worker said, replace it where it is gone; whether more is to be done."""
        if not self.numbers:
            return False
        if not self.pid:
            self._start()
        try:
            chunk = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return self._in_time(table)
        if not chunk:
            self._ended(table)
            return bool(self.numbers)
        self.said += chunk
        *lines, self.said = self.said.split(b"\n")
        for line in lines:
            self._heard(line, table)
        return bool(self.numbers)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)
            self.pid = 0
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        self.pipe, theirs = os.pipe()
        os.set_blocking(self.pipe, False)
        self.at, self.since, self.spent, self.said = None, time.monotonic(), 0.0, b""
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.pipe)
            _work(self.case, self.numbers, self.folder, theirs)
        os.close(theirs)

    def _heard(self, line: bytes, table: Table) -> None:
        word = json.loads(line)
        self.since, self.spent = time.monotonic(), _processor_s(self.pid)
        if isinstance(word, int):
            self.at = word
            return
        outcome, said, peak = word
        self._done(table, outcome, said, peak)

    def _done(self, table: Table, outcome: str, said: str, peak: int = 0) -> None:
        table.add(self.numbers.popleft(), outcome, said, peak)
        self.at = None

    def _in_time(self, table: Table) -> bool:
        waited = time.monotonic() - self.since
        busy_s = _processor_s(self.pid) - self.spent if waited > HANG_S else 0.0
        if busy_s > HANG_S or waited > _WAITED * HANG_S:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()
            self._done(table, "hang", f"nothing within {HANG_S:.0f} s")
        return bool(self.numbers)

    def _ended(self, table: Table) -> None:
        status = self._reap()
        if self.numbers:
            number = os.waitstatus_to_exitcode(status)
            how = signal.Signals(-number).name if number < 0 else f"exit {number}"
            self._done(table, "crash", how)

    def _reap(self) -> int:
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return status


def _processor_s(pid: int) -> float:
    """Seconds that a process has had of a processor: on a busy machine a clock tells less."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- inside a worker -----------------------------------------------------------------------------


def _work(case: Case, numbers: deque[int], folder: Path, pipe: int) -> None:
    """Run cases until there are none; never returns."""
    try:
        devnull = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(devnull, descriptor)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        faulthandler.disable()
        limit = _status("VmSize") + _ADDRESSES_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            os.write(pipe, b"%d\n" % number)
            word = json.dumps(outcome(case, number, folder)) + "\n"
            os.write(pipe, word.encode())
        os._exit(0)
    finally:
        os._exit(70)


def outcome(case: Case, number: int, folder: Path) -> tuple[str, str, int]:
    """Run one case: its outcome, what it said, and by how much memory grew meanwhile."""
    before = _forget_peak()
    try:
        case(number, folder)
        result, said = "ok", ""
    except GemeloError as error:
        said = str(error)
        clear = said.isprintable() and 0 < len(said) <= MAX_CHARS
        result = "refused" if clear else "other"
    except MemoryError:
        result, said = "blow-up", "MemoryError"
    except Exception as error:
        result, said = "other", _told(error)
    peak = max(0, _status("VmHWM") - before)
    if peak > BLOW_UP_BYTES:
        result, said = "blow-up", f"{peak >> 20} MiB; {said}"
    return result, said[:2000], peak


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})"


def _forget_peak() -> int:
    """Let the process's peak begin anew; what it holds now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak is the largest of all cases so far, which is stricter
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    return 0
