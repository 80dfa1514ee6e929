"""README and ARCHITECTURE say what is there: the two commands, and every file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_is_in_the_tree_as_it_introduces_itself() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "dev" / "tree.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_two_commands_are_those_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in README
    assert "pip install -q -c constraints.txt -e '.[test]'" in ci and "\npytest\n" in ci
