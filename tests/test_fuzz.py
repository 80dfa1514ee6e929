"""Fuzzing: 200 broken files of every kind, and that the fuzzer would see what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

DEV = Path(__file__).parent.parent / "dev"
sys.path.append(str(DEV))

from fuzzing.mutations import mutated_bytes, mutated_json  # noqa: E402
from fuzzing.workers import run  # noqa: E402

from gemelo.errors import InputError  # noqa: E402


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEV / "fuzz.py"), *words], capture_output=True, text=True, timeout=280
    )


def test_nothing_but_ok_and_refused_comes_out() -> None:
    done = fuzz("--cases", "200", "--runs", "60", "--json")
    tables = json.loads(done.stdout)
    assert {name: table["found"] for name, table in tables.items() if table["found"]} == {}
    assert done.returncode == 0
    assert len(tables) >= 20
    for name, table in tables.items():
        assert sum(table["counts"].values()) in (60, 200), name
        assert table["counts"].get("ok", 0) > 0, f"no case of {name} was read: its seed is broken"
        assert table["counts"].get("refused", 0) > 0, f"no case of {name} was broken"


def test_a_reader_that_is_none_is_named() -> None:
    done = fuzz("nonsense")
    assert done.returncode == 2 and "no reader 'nonsense'" in done.stderr


# ---- the fuzzer itself ---------------------------------------------------------------------------


def fails_at_three(how: Callable[[], object]) -> Callable[[int, Path], None]:
    def case(number: int, folder: Path) -> None:
        if number == 3:
            how()
        if number == 5:
            raise InputError("refused")

    return case


def raise_many_lines() -> None:
    error = InputError("x")
    error.args = ("two\nlines",)
    raise error


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
        (lambda: os._exit(3), "crash"),
        (lambda: time.sleep(60), "hang"),
        (lambda: bytearray(700 << 20), "blow-up"),
        (lambda: bytearray(8 << 30), "blow-up"),
        (lambda: 1 // 0, "other"),
        (raise_many_lines, "other"),
    ],
    ids=["signal", "exit", "hang", "resident", "address-space", "exception", "two-lines"],
)
def test_what_goes_wrong_is_seen_and_the_rest_goes_on(
    how: Callable[[], object], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuzzing.workers.HANG_S", 1.0)
    table = run(fails_at_three(how), range(10), 2, lambda done: None)
    assert dict(table.counts) == {"ok": 8, "refused": 1, outcome: 1}
    assert [(number, what) for number, what, _ in table.found] == [(3, outcome)]


def test_a_number_is_the_same_case_every_time() -> None:
    content = bytes(range(256)) * 8
    assert mutated_bytes(Random("a:7"), content) == mutated_bytes(Random("a:7"), content)
    assert mutated_bytes(Random("a:7"), content) != mutated_bytes(Random("a:8"), content)
    value = {"a": [1, 2, {"b": "c"}], "d": None}
    assert mutated_json(Random("j:1"), value) == mutated_json(Random("j:1"), value)
    assert len({mutated_json(Random(f"j:{n}"), value) for n in range(100)}) > 50
