"""The threads of the native products: never a wrong number and never a wait that does not end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Floats, Packed
from tests.kernels.matrices import random_input, random_weight
from tests.native import needs_native

pytestmark = [
    needs_native,
    pytest.mark.timeout(120),
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many threads after each test as before."""
    before = native.extension.threads()
    yield
    native.set_threads(before)


class Case:
    """A product whose right bits are known, from one thread alone."""

    def __init__(self, name: str, tokens: int, seed: int) -> None:
        self.weight: Packed = random_weight(FORMATS[name], 67 + seed, 768, seed)
        self.x: Floats = random_input(tokens, 768, seed=seed)
        native.set_threads(1)
        self.want = cpu.linear(self.x, self.weight)

    def right(self) -> bool:
        return np.array_equal(cpu.linear(self.x, self.weight), self.want)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Few tokens and many (with a barrier inside the job), of several formats."""
    shapes = [("q4_0", 1), ("q8_0", 40), ("q4_k", 3), ("q6_k", 21), ("bf16", 17), ("f32", 5)]
    return [Case(name, tokens, seed) for seed, (name, tokens) in enumerate(shapes)]


def together(*work: Callable[[], bool]) -> list[bool]:
    """Start all at the same moment, each in a thread of its own."""
    start = threading.Barrier(len(work))

    def one(function: Callable[[], bool]) -> bool:
        start.wait()
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(one, work))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_callers_at_once_each_get_their_own_result(cases: list[Case], count: int) -> None:
    native.set_threads(count)
    done = together(*(lambda c=case: all(c.right() for _ in range(20)) for case in cases))
    assert all(done)


def test_the_number_of_threads_may_change_at_any_time(cases: list[Case]) -> None:
    for count in (1, 2, 3, 4, 2, 1, 4, 3):
        native.set_threads(count)
        assert native.extension.threads() == count
        assert all(case.right() for case in cases)


def test_it_may_change_while_others_compute(cases: list[Case]) -> None:
    """Two models, each with threads of its own: a job that runs keeps those that it began with."""

    def run(first: int, second: int, mine: list[Case]) -> bool:
        for i in range(30):
            native.set_threads(second if i % 2 else first)
            if not all(case.right() for case in mine):
                return False
        return True

    assert all(together(lambda: run(1, 2, cases[:3]), lambda: run(3, 2, cases[3:])))


def test_more_threads_than_cores_and_than_rows(cases: list[Case]) -> None:
    native.set_threads(2 * (os.cpu_count() or 1) + 3)
    assert all(case.right() for case in cases)
    one_row = cases[0].weight.prefix(rows=1)
    native.set_threads(8)
    got = cpu.linear(cases[0].x, one_row)
    assert np.array_equal(got, cases[0].want[:, :1])


def test_sleeping_threads_wake_up(cases: list[Case]) -> None:
    native.set_threads(2)
    pause = threading.Event()
    for seconds in (0.0, 0.0005, 0.02, 0.1):  # still spinning, about to sleep, asleep
        for _ in range(3):
            pause.wait(seconds)
            assert all(case.right() for case in cases)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork_parent_and_child_both_compute() -> None:
    """In a process of its own, as forking one that has threads is warned of."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        env=os.environ | {"PYTHONPATH": _python_path()},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["child", "child", "parent"]


def _python_path() -> str:
    root = str(Path(__file__).parents[2])
    return os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])


FORKING = """
import os, threading
import numpy as np
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, pack

normal = np.random.default_rng(0).standard_normal
weight = pack(normal((64, 256)), FORMATS["q8_0"])
native.set_threads(2)
inputs = [normal((tokens, 256), np.float32) for tokens in (1, 33)]
want = [cpu.linear(x, weight) for x in inputs]

def right():
    return all(np.array_equal(cpu.linear(x, weight), y) for x, y in zip(inputs, want))

def keep_busy():  # a fork may come while a job runs
    while not over.is_set():
        right()

def forked(work):
    child = os.fork()
    if not child:
        os._exit(0 if work() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("child", flush=True)

over = threading.Event()
busy = threading.Thread(target=keep_busy)
busy.start()
forked(lambda: right() and all(right() for _ in range(20)))
def other_count():
    native.set_threads(3)
    return right()
forked(other_count)
over.set()
busy.join()
assert right()
print("parent")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_threads_that_the_system_refuses_are_done_without() -> None:
    """A thousand threads where there is room for a few: fewer of them, and the right result."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED],
        env=os.environ | {"PYTHONPATH": _python_path()},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


REFUSED = """
import resource
import numpy as np
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, pack

normal = np.random.default_rng(0).standard_normal
weight, x = pack(normal((64, 256)), FORMATS["q8_0"]), normal((33, 256), np.float32)
native.set_threads(1)
want = cpu.linear(x, weight)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), hard))
native.set_threads(1000)
assert 1 < native.extension.threads() < 1000  # starts them
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
assert np.array_equal(cpu.linear(x, weight), want)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("tokens", [3, 17], ids=["without a barrier", "with a barrier"])
def test_a_thread_without_memory_is_an_error_and_no_end(tokens: int) -> None:
    """The caller has its workspace already, so that the other thread alone finds none: the product
    is a MemoryError, nobody waits at a barrier, and the next product is right."""
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tokens)],
        env=os.environ | {"PYTHONPATH": _python_path(), "GEMELO_ISA": "generic"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["starved", "right"]


STARVED = """
import resource, sys
import numpy as np
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Packed

columns = 1 << 20
weight = Packed(np.ones((32, columns // 32 * 34), np.uint8), FORMATS["q8_0"])
x = np.random.default_rng(0).standard_normal((int(sys.argv[1]), columns), np.float32)
native.set_threads(1)
want = cpu.linear(x, weight)
native.set_threads(2)
cpu.linear(x[:, :64], weight.prefix(columns=64))  # starts the other thread
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), hard))
try:
    cpu.linear(x, weight)
except MemoryError:
    print("starved")
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
assert np.array_equal(cpu.linear(x, weight), want)
print("right")
"""
