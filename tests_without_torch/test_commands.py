"""The commands on text, as a new user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from gemelo import TargetFormat
from tests_without_torch.conftest import Command

FEW = ("--max-tokens", 4, "--temperature", 0)


def test_the_readme_s_command(gemelo: Command) -> None:
    ran = gemelo("generate", "The capital of France is", "--temperature", 0, "--max-tokens", 12)
    assert ran.code == 0 and ran.out.strip() == (
        "the capital of the country of France. It is the capital"
    )


def test_chat_with_the_embedded_model(gemelo: Command) -> None:
    ran = gemelo("chat", *FEW, stdin="Hello\nAnd now?\n/stats\n")
    assert ran.code == 0 and "Traceback" not in ran.err and ran.out.strip()


@pytest.mark.parametrize("path", ["gemma3", "quantised", "gemma3n", "seeing_3n", "with_mmproj"])
class TestOnTinyModels:
    """Of both families, with towers that nothing is shown to and without."""

    @pytest.fixture
    def model(self, path: str, request: pytest.FixtureRequest) -> Path:
        found: Path = request.getfixturevalue(path)
        return found

    def test_tokenize(self, gemelo: Command, model: Path) -> None:
        ran = gemelo("tokenize", "-m", model, "the capital", "--json")
        assert ran.code == 0 and json.loads(ran.out)

    def test_generate(self, gemelo: Command, model: Path) -> None:
        ran = gemelo("generate", "-m", model, "the capital", "--json", *FEW)
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["text"]

    def test_turns_of_a_chat(self, gemelo: Command, model: Path, tmp_path: Path) -> None:
        saved = tmp_path / "chat.json"
        said = f"the\nof\nand\n/retry\n/save {saved}\n"
        ran = gemelo("chat", "-m", model, *FEW, stdin=said)
        assert ran.code == 0, ran.err
        roles = [message["role"] for message in json.loads(saved.read_text())]
        assert roles.count("user") == 3 == roles.count("assistant")

    def test_show_model(self, gemelo: Command, model: Path) -> None:
        ran = gemelo("show", "model", model)
        assert ran.code == 0 and "layers" in ran.out

    def test_bench(self, gemelo: Command, model: Path) -> None:
        words = ("--prompt-tokens", 16, "--new-tokens", 4)
        ran = gemelo("bench", "-m", model, *words)
        assert ran.code == 0, ran.err


def test_list(gemelo: Command) -> None:
    ran = gemelo("list")
    assert ran.code == 0 and re.search(r"^demo ", ran.out, re.M)


@pytest.mark.parametrize("format", get_args(TargetFormat))
@pytest.mark.parametrize("path", ["gemma3", "gemma3n"])
def test_convert_and_run(
    gemelo: Command, path: str, format: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, target = request.getfixturevalue(path), tmp_path / f"tiny-{format}.gguf"
    ran = gemelo("convert", source, target, "--format", format)
    assert ran.code == 0, ran.err
    assert gemelo("generate", "-m", target, "the", *FEW).code == 0
    back = gemelo("convert", target, tmp_path / "back", "--format", "bf16")
    assert back.code == 0, back.err
    assert gemelo("generate", "-m", tmp_path / "back", "the", *FEW).code == 0


def test_sizes(gemelo: Command, gemma3n: Path, tmp_path: Path) -> None:
    ran = gemelo("show", "sizes", gemma3n)
    assert ran.code == 0 and "half" in ran.out
    ran = gemelo("slice", gemma3n, tmp_path / "half", "--submodel", "half")
    assert ran.code == 0, ran.err
    assert gemelo("generate", "-m", tmp_path / "half", "the", *FEW).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--submodel", "half"),
        ("--speculate", "half"),
        ("--speculate", "half:int4"),
        ("--policy", "latency:1000000"),
        ("--policy", "memory:0.01", "--rebuild", "lazy"),
        ("--policy", "difficulty:1", "--rebuild", "now"),
        ("--ple", "ram"),
        ("--no-repack",),
        ("--format", "q8_0"),
        ("--kv-format", "int8"),
        ("--threads", 1),
        ("--device", "cpu"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_options_of_a_run(gemelo: Command, gemma3n: Path, words: tuple[str, ...]) -> None:
    ran = gemelo("generate", "-m", gemma3n, "the capital", *FEW, *words)
    assert ran.code == 0, ran.err
