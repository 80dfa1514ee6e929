"""Every instruction set of this machine, and every format that the kernels know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gemelo.kernels import cpu
from gemelo.kernels.formats import FORMATS, Format


@pytest.fixture(params=cpu.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu.isa()
    cpu.use(request.param)
    yield request.param
    cpu.use(before)


@pytest.fixture(params=sorted(cpu.FORMATS))
def format(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]
