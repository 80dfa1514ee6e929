"""The pages of docs/ are those of its index, and the command-line reference is the help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemelo.config import Gemma3Config, Gemma3nConfig
from tests.multimodal import AWAKE, EYED, photograph, recording, write, write_wave

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SCRIPT = ROOT / "dev" / "cli_reference.py"


def test_the_index_has_every_page_and_no_other() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| \[([\w.]+)\]\(\1\) \|", index, re.M)
    assert sorted(named) == sorted(
        page.name for page in DOCS.glob("*.md") if page.name != "README.md"
    )


def test_the_command_line_reference_is_the_help() -> None:
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_has_every_command() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for name in ("generate", "chat", "transcribe", "convert", "slice", "show model", "show crops"):
        assert f"\n## gemelo {name}\n" in text
    assert "--help" in text and "eye and ear" not in text


# ---- Python on the pages -------------------------------------------------------------------------

# What the pages call models, and the tiny ones that stand for them, as folders of these names. The
# embedded model stands for itself.
E4B = Gemma3nConfig(
    vocab_size=512,
    vocab_size_per_layer_input=512,
    hidden_size=16,
    head_dim=16,
    hidden_size_per_layer_input=32,
)
MODELS: dict[str, Gemma3Config | Gemma3nConfig] = {
    "gemma-3-1b-it": EYED,
    "gemma-3-4b-it": EYED,
    "gemma-3n-E2B-it": AWAKE,
    "gemma-3n-E4B-it": E4B,
}
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
    if "```python" in page.read_text(encoding="utf-8")
]


def named(source: str) -> list[str]:
    """The models that a page loads by name."""
    return re.findall(r"\bload\(\s*[\"']([^\"']+)[\"']", source)


def run_blocks(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page's blocks define, run one after the other in a folder with what they name."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    for name in {*named("".join(blocks))}:
        owner, _, model = name.rpartition("/")
        assert owner in ("", "google") and model in MODELS, f"{page.name} loads {name}"
        write(folder / name, MODELS[model])
    photograph().save(folder / "cat.jpg")
    photograph(1200, 300).save(folder / "panorama.png")
    write_wave(folder / "talk.wav", recording(1.0))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": page.name}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "python.md"], ids=lambda p: p.name)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_blocks(page, tmp_path, monkeypatch)


def test_the_page_on_the_library_says_what_is_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_blocks(DOCS / "python.md", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    config, tokens = names["model"].config, len(names["ids"])
    assert printed.startswith("Model(gemma-3-270m") and "the capital of" in printed
    assert names["session"].timings.reused_tokens >= len(names["tokens"])
    assert names["logits"].shape == (tokens, config.vocab_size)
    assert "<start_of_turn>user\nName a planet.<end_of_turn>" in printed
    outputs = names["outputs"]
    assert len(outputs.hidden_states) == config.num_hidden_layers + 1 == len(names["between"]) + 2
    assert len(outputs.attentions) == config.num_hidden_layers
    assert names["normalised"].equal(outputs.last_hidden_state)
    assert names["normalised"].shape == (tokens, config.hidden_size)
