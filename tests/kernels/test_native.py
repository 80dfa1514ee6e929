"""The extension: which instruction set runs, by the environment and by name, and none at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemelo.errors import InputError
from gemelo.kernels import native
from tests.native import needs_native

pytestmark = needs_native


def test_memory_of_any_size_is_read_and_left_alone(isa: str) -> None:
    memory = np.arange(5000, dtype=np.int32)
    for nbytes in (0, 4, 256, 20000):
        native.extension.read(memory.ctypes.data, nbytes)
    assert np.array_equal(memory, np.arange(5000))


# ---- which instruction set -----------------------------------------------------------------------


@pytest.mark.parametrize("name", native.instruction_sets())
def test_the_environment_chooses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.isa()
    monkeypatch.setenv("GEMELO_ISA", name)
    module = native._chosen(native.extension)
    assert module is not None and module.name() == name
    native.use(before)


def test_the_environment_may_ask_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMELO_ISA", "reference")
    assert native._chosen(native.extension) is None


def test_what_is_not_there_is_an_input_error() -> None:
    for threads in (0, -1, native.MAX_THREADS + 1):
        with pytest.raises(InputError, match="1 to 1024"):
            native.set_threads(threads)
    with pytest.raises(InputError, match="generic"):
        native.use("sse9")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Another interpreter with this tree."""
    root = Path(__file__).parents[2]
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_unknown_instruction_set_is_one_clear_line() -> None:
    command = "import sys; from gemelo.cli import run; sys.exit(run(['generate', 'Hi']))"
    done = python(command, GEMELO_ISA="sse9")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "GEMELO_ISA=sse9" in done.stderr and "generic" in done.stderr


WITHOUT_THE_EXTENSION = """
import sys
sys.modules["gemelo.kernels._native"] = None  # as if it had not been built: importing it fails
import numpy as np
from gemelo.errors import InputError
from gemelo.kernels import native, products, reference
from gemelo.kernels.quants import FORMATS, Packed, pack

generator = np.random.default_rng(0)
weight = pack(generator.standard_normal((6, 64)), FORMATS["q8_0"])
x, ids = generator.standard_normal((2, 64), np.float32), np.array([5, 0])
assert native.isa() == "reference" and native.instruction_sets() == []
assert np.array_equal(products.linear(x, weight), reference.linear(x, weight))
assert np.array_equal(products.linear(x, weight.prefix(3)), reference.linear(x, weight.prefix(3)))
picked = Packed(weight.blocks[ids], weight.format)
assert np.array_equal(products.linear(x, weight, ids), reference.linear(x, picked))
assert np.array_equal(products.embedding(ids, weight), reference.embedding(ids, weight))
assert "torch" not in sys.modules
native.set_threads(2)
for wrong in (lambda: native.use("generic"), lambda: native.set_threads(0),
              lambda: products.embedding(np.array([6]), weight),
              lambda: products.linear(x, weight, np.array([-1]))):
    try:
        wrong()
    except InputError as error:
        print(error)
    else:
        raise SystemExit("no error")
"""


def test_without_the_extension_everything_goes_through_the_reference() -> None:
    done = python(WITHOUT_THE_EXTENSION, GEMELO_ISA="")
    assert done.returncode == 0, done.stderr
    asked = python("import sys; sys.modules['gemelo.kernels._native'] = None; "
                   "import gemelo.kernels.native", GEMELO_ISA="avx2")  # fmt: skip
    assert "InputError: GEMELO_ISA=avx2, but the native kernels cannot be loaded" in asked.stderr
