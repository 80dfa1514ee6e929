"""The Python API reference, docs/api.md, is what the code says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import gemelo

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "dev" / "api_reference.py"


def test_the_page_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_every_public_name_once() -> None:
    assert sorted(re.findall(r"^### (\w+)$", PAGE, re.M)) == sorted(gemelo.__all__)


def test_signatures_are_those_that_python_reads() -> None:
    for function in (gemelo.load, gemelo.transcribe, gemelo.Model.generate, gemelo.Session.use):
        (text,) = re.findall(rf"^{function.__name__}\(\n?(?:.*\n)*?\)?.*-> .*$", PAGE, re.M)[:1]
        for name in inspect.signature(function).parameters:
            assert name == "self" or re.search(rf"\b{name}\b", text), name


def test_docstrings_are_whole() -> None:
    for value in (gemelo.load, gemelo.Sampling, gemelo.Model.stream):
        last = (inspect.getdoc(value) or "").splitlines()[-1]
        assert last and last in PAGE


def test_nothing_private_is_shown() -> None:
    code = "".join(re.findall(r"^```py\n(.*?)^```", PAGE, re.S | re.M))
    assert not re.search(r"(?:^|[\s(.])_\w+(?:\(|:)", code)
    assert "/tmp/" not in PAGE and str(ROOT) not in PAGE
