"""A Gemma 3n wide enough that what a nested model leaves out fills pages, in both formats.

The native kernels take its widths.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from gemelo.checkpoints.convert import convert
from gemelo.config import Submodel
from tests.gemma3n import SOFT_3N, write_3n

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of pages and files")

WIDE_3N = dataclasses.replace(SOFT_3N, intermediate_size=(4096,) * 12, head_dim=64)
NARROW = Submodel((2048,) * 10, (8, 9), "narrow")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_3n(tmp_path_factory.mktemp("hub") / "wide", WIDE_3N)


@pytest.fixture(scope="session")
def gguf(folder: Path) -> Path:
    path = folder.parent / "wide-q8_0.gguf"
    convert(folder, path, "q8_0")
    return path
