"""The examples run as they stand."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gemelo.checkpoints.open import open_source
from gemelo.cli import run
from gemelo.inspection.weights import stored
from tests.gemma3n import write_3n
from tests.multimodal import recording, write_wave

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = ("elastic.md", "media.md")
RANDOM = "random3n"  # what the pages call the model of random_gemma3n


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
    assert all(re.fullmatch(r"(stop|length) +(['\"]).+\2", line) for line in lines)


def test_submodels_write_what_they_say() -> None:
    """On the random model that the example makes itself, as deep and wide as E4B."""
    lines = printed("submodels").splitlines()
    assert lines[0].startswith("Model(random: gemma3n, 35 layers, ")
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert said["E2B"] != "''" and said["drafted"] != "''"
    assert said["sizes along one text"].count("'E2B'") == 6  # from the sixth of twelve tokens on
    assert said["after a rebuild"].startswith("{'E4B'}")
    assert set(said["widths of E2.54B"].strip("{}").split(", ")) == {"8192", "16384"}


@pytest.fixture(scope="module")
def random_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random model, and what the pages show and play to it."""
    folder = tmp_path_factory.mktemp("random")
    assert printed("random_gemma3n", str(folder / RANDOM)) == f"wrote {folder / RANDOM}\n"
    write_wave(folder / "talk.wav", recording(1.0))
    return folder


def page_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def on_random() -> list[list[str]]:
    """The commands of the pages on the random model."""
    lines = [line.strip() for name in PAGES for line in page_of(name).splitlines()]
    return [shlex.split(x) for x in dict.fromkeys(lines) if x.startswith("gemelo ") and RANDOM in x]


@pytest.mark.parametrize("words", on_random(), ids=" ".join)
def test_the_pages_commands_run_on_the_random_model(
    words: list[str],
    random_place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(random_place)
    few = ["--max-tokens", "2"] if words[1] in ("generate", "transcribe") else []
    assert run([*words[1:], *few]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    if words[1] == "slice":
        assert "of weights" in said.err and (random_place / "my-E2B" / "config.json").is_file()
    else:
        assert said.out.strip()


def test_they_show_the_random_model_whole() -> None:
    """Sizes, a sub-model, a slice and a sound."""
    said = " ".join(" ".join(words) for words in on_random())
    for wanted in ("show sizes", "--submodel E2B", "slice", "--audio", "transcribe"):
        assert wanted in said
    for name in PAGES:
        assert "python examples/random_gemma3n.py random3n" in " ".join(page_of(name).split())


def test_the_random_model_is_of_blocks_and_of_the_size_it_says(random_place: Path) -> None:
    """Every matrix of the decoder can be quantised: its rows are multiples of 32."""
    weights = stored(open_source(random_place / RANDOM))
    rows = {name: one.shape[-1] for name, one in weights.items() if len(one.shape) == 2}
    odd = {name for name, width in rows.items() if width % 32}
    assert all(".altup." in name for name in odd), odd
    held = sum(path.stat().st_size for path in (random_place / RANDOM).iterdir())
    assert f"{held / 1e6:.0f} MB" in (EXAMPLES / "random_gemma3n.py").read_text()
    assert f"{held / 1e6:.0f} MB" in page_of("elastic.md")


@pytest.mark.parametrize("words", [("--speculate", "E2B:int4"), ("--format", "q8_0")])
def test_the_random_model_quantised(
    words: tuple[str, ...], random_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(random_place / RANDOM)
    code = run(["generate", "the", "-m", model, "--max-tokens", "2", "--submodel", "E2B", *words])
    assert code == 0, capsys.readouterr().err


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
    said = printed("chat", str(eyed_directory), said=f"{'the ' * 80}\nof\n\n")
    turns = re.findall(r"\[read (\d+) tokens, reused (\d+)\]", said)
    assert (
        len(turns) == 2
        and turns[0][1] == "0"
        and int(turns[1][1]) >= int(turns[0][0]) // 64 * 64 > 0
    )
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
