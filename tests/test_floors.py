"""Imports only go down, siblings never import each other, nothing goes round in a circle.

Also the house's few countable rules: a module opens with a docstring and ends by line 400.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gemelo

ROOT = Path(gemelo.__file__).parent
FLOORS = {
    "errors": 0,
    "extras": 0,
    "string_table": 0,
    "text_files": 0,
    "config": 0,
    "kernels": 0,
    "models": 1,
    "weights": 1,
    "inputs": 1,
    "checkpoints": 2,
    "engine": 3,
    "lab": 3,
    "api": 4,
    "transcription": 5,
    "inspection": 5,
    "evals": 5,
    "server": 6,
    "cli": 6,
}
# Floor 0 is one room with a bench: kernels may read config, everybody may raise errors.
ONE_ROOM = {0}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def module(path: Path) -> str:
    parts = ["gemelo", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every gemelo module that a file imports, at load or inside a function."""
    modules = {module(file) for file in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gemelo"):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= inner or {str(node.module)}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("gemelo")}
    return found - {"gemelo"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down(path: Path) -> None:
    if path.parent == ROOT and path.stem in ("__init__", "__main__"):
        return  # the front door names what is inside
    own = room(path)
    for name in imports(path):
        other = name.split(".")[1]
        below = FLOORS[other] < FLOORS[own]
        neighbour = FLOORS[other] == FLOORS[own] and FLOORS[own] in ONE_ROOM
        assert other == own or below or neighbour, f"{module(path)} imports {name}"


def test_no_cycles() -> None:
    graph = {
        module(path): imports(path)
        for path in FILES
        if path.parent != ROOT or path.stem not in ("__init__", "__main__")
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_is_one_noun_that_introduces_itself(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "every module opens with what it is"
    assert len(source.splitlines()) <= 400
    assert path.stem not in {"utils", "util", "common", "helpers", "misc", "base"}


def test_few_lines_are_kept_from_the_type_checker() -> None:
    lines = [line for path in FILES for line in path.read_text().splitlines()]
    assert sum("type: ignore" in line for line in lines) <= 5
