"""Conversions killed at random moments: the old model or the new one, never half of either."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.open import open_source

LONGEST_S = 0.15  # more than a conversion of so small a model takes


def test_a_dozen_kills(tiny_directory: Path, tmp_path: Path) -> None:
    check(tiny_directory, tmp_path, kills=6)


@pytest.mark.slow
def test_three_hundred_kills(tiny_directory: Path, tmp_path: Path) -> None:
    check(tiny_directory, tmp_path, kills=150)


def check(source: Path, folder: Path, kills: int) -> None:
    """So many for a file and for a folder, in a process that forks and so must have no threads."""
    module = "tests.checkpoints.test_killed"
    ran = subprocess.run(
        [sys.executable, "-m", module, str(source), str(folder), str(kills)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GEMELO_CACHE": str(folder.parent / "cache")},
    )
    assert ran.returncode == 0, ran.stderr


def kill_often(target: Path, sources: list[Path], kills: int) -> None:
    generator = random.Random(0)
    convert(sources[0], target)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            for source in sources * 1000:
                convert(source, target, overwrite=True)
            os._exit(0)
        time.sleep(generator.uniform(0, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert any(same(target, source) for source in sources)
    convert(sources[0], target, overwrite=True)
    assert os.listdir(target.parent) == [target.name]


def same(one: Path, other: Path) -> bool:
    a, b = open_source(one), open_source(other)
    return set(a.shapes) == set(b.shapes) and all(
        np.array_equal(a.tensor(name).blocks, b.tensor(name).blocks)
        for name in a.shapes
        if not name.endswith("norm.weight")  # one more or less rounds
    )


def two_sources(source: Path, folder: Path) -> list[Path]:
    """A model, and another whose every weight differs."""
    other = folder / "other"
    shutil.copytree(source, other)
    raw = bytearray((other / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + 2 :: 4] = bytes(byte ^ 0x40 for byte in raw[start + 2 :: 4])
    (other / "model.safetensors").write_bytes(raw)
    return [source, other]


if __name__ == "__main__":
    source, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    both = two_sources(source, folder)
    for name in ("model.gguf", "model"):
        (folder / f"with-{name}").mkdir()
        kill_often(folder / f"with-{name}" / name, both, kills)
