"""The examples run as they stand."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def printed(name: str) -> str:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, check=False
    )
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


def test_submodels_write_what_they_say() -> None:
    said = dict(line.split(": ", 1) for line in printed("submodels").splitlines() if ": " in line)
    assert said["E2B"] != "''" and said["drafted"] != "''"
    assert said["sizes along one text"].count("'E2B'") == 6  # from the sixth of twelve tokens on
    assert said["after repair"].startswith("{'E4B'}")
    assert set(said["widths of E2.54B"].strip("{}").split(", ")) == {"8192", "16384"}


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
