"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("name", ["generate", "score", "continuations", "submodels"])
def test_it_runs(name: str) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_the_chat_says_what_it_needs() -> None:
    command = [sys.executable, str(EXAMPLES / "chat.py")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "PATH_OR_HUB_ID" in run.stderr
    assert "Traceback" not in run.stderr


def test_none_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "generate",
        "score",
        "continuations",
        "submodels",
        "chat",  # needs an instruction-tuned model
    }
