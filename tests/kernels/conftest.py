"""Every format that the kernels know."""

from __future__ import annotations

import pytest

from gemelo.kernels import cpu
from gemelo.kernels.quants import FORMATS, Format


@pytest.fixture(params=sorted(cpu.FORMATS))
def format(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]
