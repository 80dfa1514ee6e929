"""Imports only go down, siblings never import each other, nothing goes round in a circle.

Text on a CPU takes no PyTorch, so few modules may import it, and what these are is a list here.
Also the house's few countable rules: a module opens with a docstring and ends by line 400.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
# What runs modules: these may import torch when they are imported, and whatever else does.
TORCH = {
    "models",
    "lab",
    "checkpoints/modules.py",
    "engine/modules",
    "engine/media/audio_stream.py",
}
# The doors to it, which import it when somebody asks for tensors, media or a device.
TORCH_WITHIN = {"engine/media/encoders.py", "engine/device.py", "api/model.py"}
# Packages that PyTorch, or the extra `media`, brings.
HEAVY = {"torch", "torchvision", "PIL", "av"}


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


# ---- torch ---------------------------------------------------------------------------------------


def statements(node: ast.AST, when: str = "at load") -> Iterator[tuple[ast.stmt, str]]:
    """Every import below a node, and when it happens: "at load", "within" a function, or "never",
    for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for inner in child.body:
                yield from statements(ast.Module([inner], []), "never")
            yield from statements(ast.Module(child.orelse, []), when)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(child, "within" if inside and when == "at load" else when)


def imported(source: str, when: str) -> set[str]:
    """Full names of what a module imports at a time, `from a import b` as a.b."""
    found = set()
    for node, then in statements(ast.parse(source)):
        if then == when and isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif then == when and isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def packages(source: str, when: str) -> set[str]:
    """The packages among them."""
    return {name.partition(".")[0] for name in imported(source, when)}


def listed(path: Path, among: set[str]) -> bool:
    own = path.relative_to(ROOT).as_posix()
    return any(own == name or own.startswith(f"{name}/") for name in among)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_only_what_runs_modules_imports_torch(path: Path) -> None:
    source = path.read_text()
    assert listed(path, TORCH) or "torch" not in packages(source, "at load")
    assert listed(path, TORCH | TORCH_WITHIN) or "torch" not in packages(source, "within")
    assert not packages(source, "at load") & (HEAVY - {"torch"}), "the extra media is opened late"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_else_loads_what_loads_torch(path: Path) -> None:
    with_torch = {module(file) for file in FILES if listed(file, TORCH)}
    loaded = imported(path.read_text(), "at load")
    loaded |= {name.rpartition(".")[0] for name in loaded}
    assert listed(path, TORCH) or not loaded & (
        with_torch - {"gemelo.models", "gemelo.engine.modules"}
    )


def test_the_list_of_torch_is_no_longer_than_it_has_to_be() -> None:
    """(lab is planned.)"""
    at_load = [p for p in FILES if "torch" in packages(p.read_text(), "at load")]
    within = [p for p in FILES if "torch" in packages(p.read_text(), "within")]
    assert all(any(listed(path, {name}) for path in at_load) for name in TORCH - {"lab"})
    assert all(any(listed(path, {name}) for path in within) for name in TORCH_WITHIN)


@pytest.mark.parametrize(
    ("source", "when"),
    [
        ("import torch.nn as nn", "at load"),
        ("try:\n    from torch import Tensor\nexcept ImportError:\n    pass", "at load"),
        ("class A:\n    import torch", "at load"),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import torch", "at load"),
        ("def f():\n    if x:\n        import torch", "within"),
        ("class A:\n    def f(self):\n        from torch.nn import functional", "within"),
        ("if TYPE_CHECKING:\n    import torch\n    from torch import Tensor", "never"),
    ],
)
def test_an_import_is_seen_for_what_it_is(source: str, when: str) -> None:
    times = {then for then in ("at load", "within", "never") if "torch" in packages(source, then)}
    assert times == {when}


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_is_one_noun_that_introduces_itself(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "every module opens with what it is"
    assert len(source.splitlines()) <= 400
    assert path.stem not in {"utils", "util", "common", "helpers", "misc", "base"}


def test_few_lines_are_kept_from_the_type_checker() -> None:
    lines = [line for path in FILES for line in path.read_text().splitlines()]
    assert sum("type: ignore" in line for line in lines) <= 5
