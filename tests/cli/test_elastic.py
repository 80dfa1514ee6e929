"""The elastic options, as a person types them: sizes, drafts, policies, slices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gemelo.cli.elastic import draft_in_words
from gemelo.config import Gemma3nConfig, Submodel
from gemelo.engine.elastic.speculative import Draft
from tests.cli.conftest import Command
from tests.gemma3n import write_3n

GREEDY = ("--temperature", "0", "--max-tokens", "12", "--ignore-eos", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_3n(tmp_path_factory.mktemp("elastic") / "tiny-3n")


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text('name = "small"\nffn_widths = 64\nskipped_layers = [8, 9]\n')
    return path


def test_a_size_for_one_run(gemelo: Command, model: Path, part: Path, tmp_path: Path) -> None:
    """--submodel says what the slice says."""
    words = ("generate", "-m", str(model), "the capital", *GREEDY)
    small = json.loads(gemelo(*words, "--submodel", str(part)).out)
    assert small["submodel"] == "small"
    assert gemelo("slice", str(model), str(tmp_path / "s"), "--submodel", str(part)).code == 0
    sliced = json.loads(gemelo("generate", "-m", str(tmp_path / "s"), "the capital", *GREEDY).out)
    assert sliced["token_ids"] == small["token_ids"]
    assert json.loads(gemelo(*words).out)["submodel"] == "whole"


@pytest.mark.parametrize("bits", ["", ":int4"])
def test_drafting_changes_nothing(gemelo: Command, model: Path, part: Path, bits: str) -> None:
    words = ("generate", "-m", str(model), "the capital", *GREEDY)
    plain = json.loads(gemelo(*words).out)
    ran = gemelo(*words, "--speculate", f"{part}{bits}", "--verbose")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["token_ids"] == plain["token_ids"]
    told = said["speculation"]
    name = "small (q4_0)" if bits else "small"
    assert told["draft"] == name and 0 <= told["accepted"] <= told["drafted"]
    guesses = f"{told['accepted']} of {told['drafted']} guesses right"
    assert f"draft {name}: {guesses if told['rounds'] else 'no guess yet'}" in ran.err
    assert plain["speculation"] is None


def draft_of(accepted: int, drafted: int, cost: float, acceptance_rate: float) -> Draft:
    draft = Draft(None, name="E2B", rounds=4, drafted=drafted, accepted=accepted)  # type: ignore[arg-type]
    draft.full_s, draft.draft_s, draft.acceptance_rate = 1.0, cost, acceptance_rate
    draft.verify_s = dict.fromkeys(range(1, 9), 1.0)
    return draft


def test_a_draft_is_told_in_words() -> None:
    assert draft_in_words(draft_of(12, 16, 0.15, 0.8)) == (
        "draft E2B: 12 of 16 guesses right (75 %); a guess costs 0.15 of a step; "
        "it pays: about 2.1 times as fast as without"
    )
    few = draft_in_words(draft_of(0, 2, 0.15, 0.8))
    assert few.endswith("0.15 of a step; under 16 guesses do not tell yet whether it pays")
    off = draft_of(1, 40, 0.9, 0.1)
    assert draft_in_words(off).endswith("; it does not pay: 1.00 times as fast as without")
    assert off.gamma == 0
    assert draft_in_words(off).endswith("; it does not pay, and is off until it is tried again")
    assert "no guess yet" in draft_in_words(Draft(off.decoder, name="E2B"))


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("latency:1000000", "latency 1e+06 tokens/s"),
        ("memory:0.001", "memory 0.001 GiB"),
        ("difficulty:3", "difficulty 3 nats"),
    ],
)
def test_policies_run_and_tell(gemelo: Command, model: Path, policy: str, name: str) -> None:
    ran = gemelo("generate", "-m", str(model), "the", *GREEDY, "--policy", policy, "--verbose")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert len(said["token_ids"]) == 12
    sizes = said["sizes"]
    assert sizes["policy"] == name and sum(sizes["answered_tokens"].values()) == 12
    assert re.search(rf"{re.escape(name)}: (whole|half) \d+ tokens(, (whole|half) \d+)?; ", ran.err)
    if not policy.startswith("difficulty"):
        assert "half" in sizes["answered_tokens"] and sizes["switches"] == 1
        assert "; 1 switch\n" in ran.err


@pytest.mark.parametrize("where", ["disk", "ram", "device"])
def test_the_table_lies_anywhere(gemelo: Command, model: Path, where: str) -> None:
    words = ("generate", "-m", str(model), "the capital", *GREEDY)
    ran = gemelo(*words, "--ple", where)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["token_ids"] == json.loads(gemelo(*words).out)["token_ids"]


@pytest.mark.parametrize(
    ("rebuild", "expected"), [("off", "; 1 switch\n"), ("now", "tokens of the KV cache rebuilt\n")]
)
def test_rebuild_on_a_switch(
    gemelo: Command, model: Path, part: Path, rebuild: str, expected: str
) -> None:
    said = f"the capital\n/submodel {part}\n/stats\n/bye\n"
    words = ("chat", "-m", str(model), "--max-tokens", "4", "--seed", "1", "--rebuild", rebuild)
    ran = gemelo(*words, stdin=said.encode())
    assert ran.code == 0 and expected in ran.err
    assert ("rebuilt" in ran.err) == (rebuild == "now")


def test_in_chat(gemelo: Command, model: Path, part: Path) -> None:
    said = f"the\n/submodel\n/submodel {part}\nof\n/stats\n/submodel nonsense\n/bye\n"
    ran = gemelo("chat", "-m", str(model), "--max-tokens", "4", "--seed", "1", stdin=said.encode())
    assert ran.code == 0, ran.err
    rows = [line.split()[:2] for line in ran.err.splitlines()]
    assert ["whole", "*"] in rows and ["half", "12"] in rows
    assert "answers by sub-model: whole 4 tokens, small 4; 1 switch\n" in ran.err
    assert "'nonsense' is unknown; closest: " in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--submodel", "E2B"), "cut from 35 layers and this model has 12"),
        (("--submodel", "nowhere.toml"), "nowhere.toml"),
        (("--policy", "latency"), "expected latency:TOKENS_PER_S"),
        (("--policy", "latency:-1"), "latency target of -1.0"),
        (("--policy", "mood:3"), "expected latency:TOKENS_PER_S"),
        (("--speculate", "E2B:int3"), "expected NAME or NAME:int4"),
        (("--speculate", "E4B", "--policy", "latency:3"), "exclude each other"),
        (("--submodel", "half", "--policy", "latency:3"), "--submodel half does nothing beside"),
        (("--submodel", "half", "--speculate", "half"), "cannot draft for itself"),
        (("--speculate", "whole"), "--speculate whole: this is what runs"),
        (("--rebuild", "now"), "--rebuild now does nothing without --policy"),
        (("--rebuild", "lazy", "--submodel", "half"), "does nothing without --policy"),
    ],
)
def test_wrong_choices_are_one_line(
    gemelo: Command, model: Path, words: tuple[str, ...], message: str
) -> None:
    ran = gemelo("generate", "-m", str(model), "x", *words)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1


def test_a_copy_in_four_bits_may_draft_for_its_own(gemelo: Command, model: Path) -> None:
    ran = gemelo("generate", "-m", str(model), "the", *GREEDY, "--speculate", "whole:int4")
    assert ran.code == 0, ran.err


def test_what_does_nothing_in_a_chat_is_refused(gemelo: Command, model: Path) -> None:
    lines = ["/speculate whole", "/speculate half", "/speculate", "/submodel half"]
    lines += ["/speculate off", "/policy latency:5", "/policy", "/submodel half", "/policy off"]
    lines += ["/policy", "/submodel half", "/speculate whole", "/bye"]
    ran = gemelo("chat", "-m", str(model), "-q", stdin="\n".join(lines).encode())
    assert ran.code == 0
    assert ran.err.splitlines() == [
        "error: /speculate whole: this is what runs, and it cannot draft for itself; name a "
        "smaller sub-model, or whole:int4",
        "from the next answer on half drafts; the text stays what whole says alone",
        "half drafts; /speculate off ends it",
        "error: half drafts, and cannot draft for itself; /speculate off ends it",
        "no draft from the next answer on",
        "from the next token on: latency:5",
        "latency 5 tokens/s chooses the sub-model; /policy off ends it",
        "error: a policy chooses the sub-model; /policy off ends it",
        "no policy; whole stays",
        "no policy; /policy KIND:N begins one",
        "from the next token on: half",
        "from the next answer on whole drafts; the text stays what half says alone",
    ]


def test_a_gemma3_has_one_size(gemelo: Command) -> None:
    for words in (("--submodel", "E2B"), ("--policy", "latency:3"), ("--speculate", "E2B")):
        ran = gemelo("generate", "x", "--quiet", *words)
        assert ran.code == 2 and "no sub-models" in ran.err


def test_force_replaces(gemelo: Command, model: Path, part: Path, tmp_path: Path) -> None:
    words = ("slice", str(model), str(tmp_path / "s.gguf"), "--submodel", str(part))
    assert gemelo(*words).code == 0
    assert gemelo(*words).code == 2
    again = gemelo(*words, "--force", "--json")
    assert again.code == 0 and json.loads(again.out)["path"].endswith("s.gguf")


def test_a_refusal_names_the_option_that_allows_it(
    gemelo: Command, model: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.toml"
    mixed.write_text(f"ffn_widths = {[96] * 6 + [64] * 6}", encoding="utf-8")
    words = ("slice", str(model), str(tmp_path / "s.gguf"), "--submodel", str(mixed))
    ran = gemelo(*words)
    assert ran.code == 2 and f"this sub-model of {model} has feed-forwards of 64, 96" in ran.err
    assert ran.err.endswith("or --mixed-widths writes a file for gemelo alone\n")
    assert gemelo(*words, "--mixed-widths").code == 0


def test_what_policies_choose_among() -> None:
    config = Gemma3nConfig()
    assert [part.name for part in Submodel.by_size(config)][0] == "E2B"
    easy = Submodel.easy(config)
    assert easy.same_keys(Submodel.whole(config), config) and easy != Submodel.whole(config)
    assert easy.ffn_widths == (16384,) * 19 + (8192,) * 16
