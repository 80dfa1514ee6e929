"""gemelo on systems that are not here: Windows and macOS, imitated in a process of its own.

The process imports all of gemelo once, so that every package of others is loaded. Then it takes
away what the other system has not (modules, names of os, signal and mmap, /proc), calls itself by
that system's name, imports gemelo again and runs `tests/other_system.py`. What it cannot imitate is
what such a system does differently with the same call; docs/platforms.md says what was run where.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from gemelo.kernels import native

ROOT = Path(__file__).parents[1]


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONIOENCODING", "GEMELO_ISA")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"} | environment,
        capture_output=True,
        timeout=240,
        encoding="utf-8",
    )


def said_on(system: str, folder: Path, model: Path) -> list[str]:
    """What the program says that runs as on `system`, line by line."""
    folder.mkdir(parents=True)
    words = ("-m", "tests.other_system", system, str(folder), str(model))
    done = python(*words, GEMELO_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_it_imports_converts_and_answers_elsewhere(
    system: str, tmp_path: Path, tiny_directory: Path
) -> None:
    here = said_on(sys.platform, tmp_path / "here", tiny_directory)
    there = said_on(system, tmp_path / "with a space" / "año", tiny_directory)
    assert here[0] == there[0] and int(there[0].removeprefix("modules imported: ")) > 200
    assert answer(there) == answer(here)
    assert there[-1] == ("Dvořák" if system == "win32" else r"Dvo\u0159\xe1k")


def answer(lines: list[str]) -> object:
    said = json.loads(next(line for line in lines if line.startswith("{")))
    return said["prompt_token_ids"], said["token_ids"]


def test_every_file_of_text_is_opened_with_an_encoding() -> None:
    done = python("-X", "warn_default_encoding", "-W", "error::EncodingWarning", "-c", OPENS)
    assert done.returncode == 0, done.stderr
    for path in (ROOT / "gemelo").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"\.(read_text|write_text)\(\)", line), f"{path}: {line}"


OPENS = """
from gemelo.cli import run
assert run(["--version", "-v"]) == 0
assert run(["list"]) == 0
"""


# ---- the extension of another Python, or none ----------------------------------------------------

ABSENCE = """
import importlib, sys
import gemelo.kernels
gemelo.kernels.__path__[:] = [sys.argv[1]]
own = ("BuiltinImporter", "FrozenImporter", "PathFinder")  # an editable install has a finder, too
sys.meta_path[:] = [one for one in sys.meta_path if getattr(one, "__name__", "") in own]
sys.path_importer_cache.clear()
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("gemelo.kernels.native", sys.argv[2])
native = module_from_spec(spec)
spec.loader.exec_module(native)
print(native.missing_kernels_notice())
"""


def notice(folder: Path, **environment: str) -> str:
    done = python("-c", ABSENCE, str(folder), str(native.__file__), **environment)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_no_extension_one_of_another_python_and_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    assert notice(tmp_path) == (
        "the native kernels were not built, so that NumPy computes, a hundred times slower; "
        "install a C++ compiler and install gemelo again"
    )
    (tmp_path / "_native.cpython-27-x86_64-linux-gnu.so").write_bytes(b"")
    this = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
    assert notice(tmp_path) == (
        "the native kernels are for another Python (_native.cpython-27-x86_64-linux-gnu.so), so "
        f"that NumPy computes, a hundred times slower; install gemelo again with this one, {this}"
    )
    assert "kernels are for another Python" in notice(tmp_path, GEMELO_ISA="generic")
    (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    broken = notice(tmp_path)
    assert broken.startswith("the native kernels cannot be loaded (") and "file too short" in broken
    assert broken.endswith("install gemelo again") and "\n" not in broken


def test_the_version_says_what_it_runs_on() -> None:
    done = python("-m", "gemelo", "--version", "-v")
    _, second = done.stdout.splitlines()
    numbers = ".".join(map(str, sys.version_info[:3]))
    assert second.startswith(f"Python {numbers} on {sys.platform} ")
    assert second.endswith(f"native kernels: {native.isa()}")


# ---- wheels --------------------------------------------------------------------------------------


def test_wheels_are_of_the_stable_abi_where_it_is_and_hold_the_kernels() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert settings["scikit-build"]["wheel"]["py-api"] == "cp312"
    wheels = settings["cibuildwheel"]
    assert wheels["build"] == ["cp311-*", "cp312-*"]
    assert any("assert native.module" in command for command in wheels["test-command"])


def test_what_the_docs_say_was_compiled_is_what_cross_compiles() -> None:
    script = (ROOT / ".ci/cross").read_text(encoding="utf-8")
    all_machines = re.search(r"^all=\((.*)\)$", script, re.M)
    page = (ROOT / "docs/platforms.md").read_text(encoding="utf-8")
    assert all_machines and all(f"`{name}`" in page for name in all_machines[1].split())
