"""How products reach the kernels: torch's operators, the environment, and without the extension."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import library
from torch._subclasses.fake_tensor import FakeTensorMode

from gemelo.errors import InputError
from gemelo.kernels import cpu, reference
from gemelo.kernels.formats import FORMATS, Packed
from tests.kernels.matrices import random_input, random_weight
from tests.native import needs_native

pytestmark = needs_native

# ---- torch's operators ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=["f32", "bf16"])
def test_the_operators_are_what_torch_expects(dtype: torch.dtype) -> None:
    weight = random_weight(FORMATS["q4_k"], 6, 512)
    number, x = weight.format.ggml_id, random_input(2, 3, 512, dtype=dtype)
    index = torch.tensor([5, 0])
    linear = torch.ops.gemelo.linear.default
    library.opcheck(linear, (x, weight.blocks, number, None))
    library.opcheck(linear, (x, weight.blocks, number, index))
    embedding = torch.ops.gemelo.embedding.default
    library.opcheck(embedding, (index, weight.blocks, number, dtype))
    assert torch.equal(linear(x, weight.blocks, number, index), cpu.linear(x, weight, index))
    assert torch.equal(
        embedding(index, weight.blocks, number, dtype), cpu.embedding(index, weight, dtype)
    )


def test_operators_called_directly_refuse_or_fall_back() -> None:
    """Nothing in front of them has looked at the format, the types or the index."""
    weight = random_weight(FORMATS["q8_0"], 5, 64)
    number = weight.format.ggml_id
    linear, embedding = torch.ops.gemelo.linear, torch.ops.gemelo.embedding
    doubled = random_input(2, 64).double()
    assert torch.equal(linear(doubled, weight.blocks, number), reference.linear(doubled, weight))
    ids = torch.tensor([4, 0])
    rows = embedding(ids, weight.blocks, number, torch.float16)
    assert torch.equal(rows, reference.embedding(ids, weight, torch.float16))
    with pytest.raises(InputError, match="one dimension"):
        linear(random_input(2, 64), weight.blocks, number, ids[None])
    with pytest.raises(InputError, match="999"):
        linear(random_input(2, 64), weight.blocks, 999)


def test_shapes_are_known_without_numbers() -> None:
    weight = random_weight(FORMATS["q4_k"], 6, 512)
    with FakeTensorMode() as mode:
        fake = Packed(mode.from_tensor(weight.blocks), weight.format)
        y = cpu.linear(torch.empty(2, 3, 512, dtype=torch.bfloat16), fake)
        assert y.shape == (2, 3, 6) and y.dtype == torch.bfloat16
        index = torch.empty(4, dtype=torch.int64)
        assert cpu.linear(torch.empty(2, 512), fake, index).shape == (2, 4)
        rows = cpu.embedding(torch.empty(3, 1, dtype=torch.int64), fake, torch.bfloat16)
        assert rows.shape == (3, 1, 512) and rows.dtype == torch.bfloat16


def test_memory_of_any_size_is_read_and_left_alone(isa: str) -> None:
    memory = torch.arange(5000, dtype=torch.int32).view(torch.uint8)
    for nbytes in (0, 4, 256, 20000):
        cpu.read(memory[:nbytes])
    assert torch.equal(memory.view(torch.int32), torch.arange(5000, dtype=torch.int32))


# ---- which instruction set -----------------------------------------------------------------------


@pytest.mark.parametrize("name", cpu.instruction_sets())
def test_the_environment_chooses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cpu.isa()
    monkeypatch.setenv("GEMELO_ISA", name)
    module = cpu._chosen(cpu.extension)
    assert module is not None and module.name() == name
    cpu.use(before)


def test_the_environment_may_ask_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMELO_ISA", "reference")
    assert cpu._chosen(cpu.extension) is None


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
import torch
from gemelo.errors import InputError
from gemelo.kernels import cpu, reference
from gemelo.kernels.formats import FORMATS, Packed, pack
from gemelo.kernels.linear import QuantEmbedding, QuantLinear

weight = pack(torch.randn(6, 64), FORMATS["q8_0"])
x, ids = torch.randn(2, 64), torch.tensor([5, 0])
assert cpu.isa() == "reference" and cpu.instruction_sets() == []
assert torch.equal(cpu.linear(x, weight), reference.linear(x, weight))
assert torch.equal(QuantLinear(weight)(x, rows=3), reference.linear(x, weight.prefix(3)))
picked = Packed(weight.blocks[ids], weight.format)
assert torch.equal(QuantLinear(weight).rows_at(x, ids), reference.linear(x, picked))
assert torch.equal(QuantEmbedding(weight, torch.float32)(ids), reference.embedding(ids, weight))
cpu.set_threads(2)
for wrong in (lambda: cpu.use("generic"), lambda: cpu.set_threads(0),
              lambda: cpu.embedding(torch.tensor([6]), weight),
              lambda: cpu.linear(x, weight, torch.tensor([-1]))):
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
                   "import gemelo.kernels.cpu", GEMELO_ISA="avx2")  # fmt: skip
    assert "InputError: GEMELO_ISA=avx2, but the native kernels were not built" in asked.stderr
