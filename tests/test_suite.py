"""The test suite itself: what tests share lies in no test, and every marker marks something."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every name that a module imports, with the module it is from; inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_test_module(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        is_test = parts[0] == "tests" and any(part.startswith("test_") for part in parts)
        assert not is_test, f"{path.relative_to(ROOT)} imports {name}"


def test_every_marker_marks_a_test_and_none_is_unknown() -> None:
    """Those of pyproject.toml, beside those of pytest and of its plugins."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    options = project["tool"]["pytest"]["ini_options"]
    declared = {line.partition(":")[0] for line in options["markers"]}
    others = {"parametrize", "skipif", "skip", "xfail", "usefixtures", "filterwarnings", "timeout"}
    used = {mark for path in MODULES for mark in marks(path)}
    assert declared == used - others


def marks(path: Path) -> Iterator[str]:
    """Every x of a `pytest.mark.x` in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            if ast.unparse(node.value) == "pytest.mark":
                yield node.attr
