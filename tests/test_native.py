"""No run is green without the native kernels where they are required, nor silent where not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "without_kernels")
NEEDY = ("tests/kernels/test_repacked.py", "tests/weights/test_mapped.py")


@pytest.fixture
def without_kernels(tmp_path: Path) -> dict[str, str]:
    """The environment of a run that finds no compiled module, and asks for nothing."""
    (tmp_path / "without_kernels.py").write_text(
        "import sys\nsys.modules['gemelo.kernels._native'] = None\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GEMELO_")}
    return kept | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def run(environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run([*RUN, *NEEDY], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_required_kernels_that_are_missing_end_the_run(without_kernels: dict[str, str]) -> None:
    code, said = run(without_kernels | {"GEMELO_NATIVE_REQUIRED": "1"})
    assert code == pytest.ExitCode.USAGE_ERROR
    assert re.search("ERROR: GEMELO_NATIVE_REQUIRED is set, but the native kernels were not", said)
    assert "passed" not in said and "skipped" not in said


def test_without_them_a_run_counts_what_it_skipped(without_kernels: dict[str, str]) -> None:
    code, said = run(without_kernels)
    assert code == pytest.ExitCode.OK
    counted = re.search(r"^(\d+) tests skipped: the native kernels were not built$", said, re.M)
    assert counted and int(counted[1]) > 20
    assert f"{counted[1]} skipped" in said and re.search(r"\d+ passed", said)


def test_ci_requires_them() -> None:
    for script in ("run", "sanitize"):
        assert "export GEMELO_NATIVE_REQUIRED=1" in (ROOT / ".ci" / script).read_text()


def test_nobody_has_a_rule_of_their_own() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name not in ("native.py", "test_native.py"):
            text = path.read_text()
            assert not re.search(r"skipif\([^)]*(native|extension|module) is None", text), path
            assert "GEMELO_NATIVE_REQUIRED" not in text, path
