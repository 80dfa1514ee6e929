"""The public surface is a list, and the list is true."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gemelo


@pytest.mark.parametrize("name", gemelo.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(gemelo, name).__doc__


def test_nothing_else_is_promised() -> None:
    assert sorted(gemelo.__all__) == gemelo.__all__
    assert set(dir(gemelo)) == {*gemelo.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'pull'"):
        gemelo.pull  # noqa: B018


def test_importing_gemelo_does_not_load_torch() -> None:
    code = "import sys, gemelo, gemelo.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
