"""The examples run as they stand."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from gemelo.config import Gemma3nConfig
from tests.gemma3n import write_3n

EXAMPLES = Path(__file__).parent.parent / "examples"


def started(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["generate", "score", "continuations"])
def test_it_runs(name: str) -> None:
    run = started(name)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_submodels_run_in_every_size(tmp_path: Path) -> None:
    """On a random model as deep and as wide in its feed-forwards as E4B, and small elsewhere."""
    config = dataclasses.replace(
        Gemma3nConfig(),
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=16,
        head_dim=16,
        hidden_size_per_layer_input=32,
    )
    run = started("submodels", str(write_3n(tmp_path / "tiny", config)))
    assert run.returncode == 0, run.stderr
    assert "after repair: {'E4B'}" in run.stdout
    assert "widths of E2.54B: {8192, 16384}" in run.stdout


@pytest.mark.parametrize("name", ["chat", "submodels"])
def test_what_needs_a_model_says_so(name: str) -> None:
    run = started(name)
    assert run.returncode == 1 and "PATH_OR_HUB_ID" in run.stderr
    assert "Traceback" not in run.stderr


def test_none_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "generate",
        "score",
        "continuations",
        "submodels",  # needs a Gemma 3n
        "chat",  # needs an instruction-tuned model
    }
