"""The examples run as they stand."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gemma3n import write_3n

EXAMPLES = Path(__file__).parent.parent / "examples"


def started(name: str, *words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *words]
    # One thread: on a busy machine two wait for each other at every small product.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, input=said, capture_output=True, text=True, check=False, env=alone
    )


def printed(name: str, *words: str, said: str = "") -> str:
    run = started(name, *words, said=said)
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
    """On the random model that the example makes itself, as deep and wide as E4B."""
    lines = printed("submodels").splitlines()
    assert lines[0].startswith("Model(random: gemma3n_text, 35 layers, ")
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert said["E2B"] != "''" and said["drafted"] != "''"
    assert said["sizes along one text"].count("'E2B'") == 6  # from the sixth of twelve tokens on
    assert said["after a rebuild"].startswith("{'E4B'}")
    assert set(said["widths of E2.54B"].strip("{}").split(", ")) == {"8192", "16384"}


def test_attention_of_both_families(tmp_path: Path) -> None:
    for layers, words in ((18, ()), (12, (str(write_3n(tmp_path / "tiny")),))):
        lines = printed("attention", *words).splitlines()
        looks = [re.fullmatch(r"  layer +\d+ (sliding|full) +\S+ +(\d\.\d\d)", x) for x in lines]
        assert [float(found[2]) <= 1 for found in looks if found] == [True] * layers
        turns = [re.fullmatch(r"  layer +\d+ (-?\d\.\d\d\d)", line) for line in lines]
        cosines = [float(found[1]) for found in turns if found]
        assert len(cosines) == layers - 1 and all(-1 <= one <= 1 for one in cosines)
        likeliest = [float(line.split()[-1]) for line in lines[-3:]]
        assert likeliest == sorted(likeliest, reverse=True)


def test_chat_goes_on_and_ends_with_its_input(eyed_directory: Path) -> None:
    """With an empty line, and with the end of the input; the second turn reads only what is new."""
    said = printed("chat", str(eyed_directory), said="the\nof\n\n")
    turns = re.findall(r"\[read (\d+) tokens, reused (\d+)\]", said)
    assert len(turns) == 2 and turns[0][1] == "0" and int(turns[1][1]) >= int(turns[0][0])
    assert "[read" in printed("chat", str(eyed_directory), said="the")


@pytest.mark.parametrize("name", ["chat", "random_gemma3n"])
def test_what_needs_something_says_so_in_one_line(name: str) -> None:
    run = started(name)
    assert run.returncode == 1
    assert re.fullmatch(rf"usage: python examples/{name}.py [A-Z_]+.*\n", run.stderr)


def test_none_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "generate",
        "score",
        "continuations",
        "attention",
        "submodels",
        "random_gemma3n",  # which submodels runs
        "chat",  # needs an instruction-tuned model
    }
