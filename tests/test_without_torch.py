"""`tests_without_torch`, in a process of its own: PyTorch cannot be imported there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_text_on_a_cpu_takes_no_torch() -> None:
    command = [sys.executable, "-m", "pytest", "tests_without_torch", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
