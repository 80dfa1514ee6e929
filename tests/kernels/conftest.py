"""Every instruction set of this machine, and every format that the kernels know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Format


@pytest.fixture(params=native.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.isa()
    native.use(request.param)
    yield request.param
    native.use(before)


@pytest.fixture(params=sorted(cpu.FORMATS))
def format(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]
