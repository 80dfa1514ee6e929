"""The examples run as they stand."""

from __future__ import annotations

import dataclasses
import math
import re
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


def printed(name: str, *words: str) -> str:
    run = started(name, *words)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_generate_goes_on_and_shows_five_candidates() -> None:
    lines = printed("generate").splitlines()
    text, speed, candidates = lines[:-6], lines[-6], lines[-5:]
    assert "France" in "".join(text)
    assert re.fullmatch(r"\d+\.\d tokens/s", speed)
    logprobs = [float(line.split()[-1]) for line in candidates]
    assert logprobs == sorted(logprobs, reverse=True)
    assert sum(map(math.exp, logprobs)) <= 1


def test_score_is_the_perplexity_of_its_logprobs() -> None:
    *tokens, last = printed("score").splitlines()
    logprobs = [float(line.split()[-1]) for line in tokens]
    found = re.fullmatch(r"perplexity (\d+\.\d\d) over (\d+) tokens", last)
    assert found and int(found[2]) == len(tokens) > 10
    assert float(found[1]) == pytest.approx(math.exp(-sum(logprobs) / len(tokens)), rel=0.005)
    assert float(found[1]) < 30  # a sentence that every model has read


def test_continuations_are_three_and_differ() -> None:
    lines = printed("continuations").splitlines()
    assert len(set(lines)) == 3
    assert all(re.fullmatch(r"(stop|length) +'.+'", line) for line in lines)


def test_submodels_write_what_they_say(tmp_path: Path) -> None:
    """On a random model as deep and as wide in its feed-forwards as E4B, and small elsewhere."""
    config = dataclasses.replace(
        Gemma3nConfig(),
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=16,
        head_dim=16,
        hidden_size_per_layer_input=32,
    )
    lines = printed("submodels", str(write_3n(tmp_path / "tiny", config))).splitlines()
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert said["E2B"] != "''" and said["drafted"] != "''"
    assert said["sizes along one text"].count("'E2B'") == 6  # from the sixth of twelve tokens on
    assert said["after a rebuild"].startswith("{'E4B'}")
    assert set(said["widths of E2.54B"].strip("{}").split(", ")) == {"8192", "16384"}


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
