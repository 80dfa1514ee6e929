"""A fact in which the families differ is a property of the config, and nobody asks which it is.

Networks and configs know their own family; so do the programs, each of which writes one forward
down. Everywhere else a check for a family would be a second place for its facts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gemelo

ROOT = Path(gemelo.__file__).parent
FAMILIES = {
    f"{family}{kind}"
    for family in ("Gemma3", "Gemma3n")
    for kind in ("", "Config", "Towers", "Tree")
}
MAY_ASK = {ROOT / "models", ROOT / "config", ROOT / "engine" / "programs"}
CHECKS = {"isinstance", "issubclass", "type"}


def questions(source: str) -> Iterator[int]:
    """Lines that ask whether something is of a family: by a call, a pattern or a comparison."""
    for node in ast.walk(ast.parse(source)):
        asks = isinstance(node, ast.MatchClass | ast.Compare)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asks = node.func.id in CHECKS
        if asks and any(getattr(inner, "id", "") in FAMILIES for inner in ast.walk(node)):
            yield node.lineno


def test_only_networks_and_configs_ask_for_a_family() -> None:
    files = [path for path in ROOT.rglob("*.py") if not MAY_ASK & {path, *path.parents}]
    found = [f"{path}:{line}" for path in files for line in questions(path.read_text())]
    assert len(files) > 100 and not found


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(config, Gemma3Config)",
        "if isinstance(x, int) and not isinstance(decoder, Gemma3 | Gemma3n): pass",
        "assert issubclass(type(tree), (Gemma3Tree, Gemma3nTree))",
        "match config:\n    case Gemma3nConfig(): pass",
        "type(config) is Gemma3nConfig",
    ],
)
def test_a_question_is_seen(source: str) -> None:
    assert list(questions(source))


def test_what_is_no_question() -> None:
    assert not list(questions("config = Gemma3nConfig(num_hidden_layers=2)\nisinstance(x, str)"))
