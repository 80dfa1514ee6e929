"""The pages of docs/ are those of its index, and the command-line reference is the help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def test_the_page_on_the_library_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """On the embedded model, as it stands."""
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("Model(gemma-3-270m") and "the capital of" in printed
    assert names["session"].timings.reused_tokens >= len(names["tokens"])
    assert names["logits"].shape[1] == names["model"].config.vocab_size
