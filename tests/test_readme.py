"""The README's tree is the tree: every file, with the first line of what it says of itself."""

from __future__ import annotations

import ast
from pathlib import Path

import gemelo

ROOT = Path(gemelo.__file__).parent
README = (ROOT.parent / "README.md").read_text(encoding="utf-8")


def test_every_file_is_in_the_tree_as_it_introduces_itself() -> None:
    for path in ROOT.rglob("*.py"):
        opening = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        line = opening.splitlines()[0].rstrip(".")
        assert line in README, f"README.md does not say of {path.relative_to(ROOT)}: {line}"


def test_the_two_commands_are_those_that_ci_runs() -> None:
    ci = (ROOT.parent / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in README
    assert "pip install -q -c constraints.txt -e '.[test]'" in ci and "\npytest\n" in ci
