"""Tables of figures in the pages are what `benchmarks/tables.py` writes from the measured JSON."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "tables.py"
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_tables", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_figure_changed_by_hand_is_put_right(tables: ModuleType) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    changed = page.replace("(9.33x)", "(10.33x)")
    assert changed != page
    assert tables.filled(changed, tables.TABLES) == page


def test_a_marker_without_a_table_is_an_error(tables: ModuleType) -> None:
    with pytest.raises(KeyError, match="no-such"):
        tables.filled("<!-- table no-such -->\n<!-- /table -->\n", tables.TABLES)


def test_every_table_stands_on_a_page_and_every_result_is_shown(tables: ModuleType) -> None:
    """The README's own may wait for its marker; no other table is written for nobody."""
    pages = [path.read_text(encoding="utf-8") for path in tables.PAGES]
    asked = {name for page in pages for name in re.findall(r"<!-- table ([\w-]+) -->", page)}
    assert set(tables.TABLES) - {"readme"} <= asked
    readers = [*SCRIPT.parent.glob("*tables.py"), SCRIPT.parent.parent / "docs" / "figures.py"]
    scripts = "".join(path.read_text(encoding="utf-8") for path in readers)
    for path in RESULTS.glob("*.json"):
        name = path.name if not path.name.startswith("270m-") else "270m-{name}.json"
        assert name in scripts, f"{path.name} is in no table and no figure"


def test_the_readme_has_a_table_of_few_lines(tables: ModuleType) -> None:
    text = tables.TABLES["readme"]()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and "benchmarks/cpu_peers.py" in text and "Xeon" in text
    assert all(len(line) <= 100 for line in text.splitlines())
