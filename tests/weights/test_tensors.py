"""Weights by name: what lies in which file, in which formats, and what of it is broken or gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from gemelo.engine.memory.pages import PAGE_BYTES
from gemelo.kernels.quants import FORMATS, Packed, pack
from gemelo.weights.mapped import check, map_file, tensor_in
from gemelo.weights.tensors import Weights
from tests.kernels.matrices import normal
from tests.native import needs_native

MATRIX = normal(64, 256, seed=1)
linux = pytest.mark.skipif(sys.platform != "linux", reason="maps are watched on Linux")


def packed(name: str, rows: int = 64) -> Packed:
    return pack(MATRIX[:rows], FORMATS[name])


def test_it_is_a_mapping_in_the_order_of_the_file() -> None:
    tensors = {"b.weight": packed("q8_0"), "a.weight": packed("f32"), "norm": Packed.of(MATRIX[0])}
    weights = Weights(tensors)
    assert isinstance(weights, Mapping) and list(weights) == list(tensors) and len(weights) == 3
    assert all(weights[name] is tensors[name] for name in tensors)
    assert "a.weight" in weights and "a" not in weights
    assert weights.nbytes == sum(weight.nbytes for weight in tensors.values())
    assert repr(weights) == "Weights(3 tensors, 0 MB)"
    tensors.clear()  # what it was made of is the caller's
    assert len(weights) == 3


def test_formats_are_those_of_matrices_most_bytes_first() -> None:
    weights = Weights(
        {
            "a": packed("q8_0", 8),
            "b": packed("bf16"),
            "c": packed("q4_0"),
            "d": packed("q4_0"),
            "norm": Packed.of(np.ones(100_000, np.float32)),
        }
    )
    assert weights.formats == ("bf16", "q4_0", "q8_0")
    assert Weights({"norm": Packed.of(MATRIX[0])}).formats == ()


def test_a_replaced_weight_is_found_by_its_name() -> None:
    weights = Weights({"a": packed("f32"), "b": packed("f32")})
    other = packed("q8_0")
    weights.replaced("a", other)
    assert weights["a"] is other and list(weights) == ["a", "b"]
    assert weights.nbytes == other.nbytes + weights["b"].nbytes


def in_file(path: Path, count: int = 3, pages: int = 4) -> tuple[Weights, Packed]:
    """So many matrices of some pages each in one file, between them a prefix of one; and one that
    is in memory."""
    rows, columns = 16, pages * PAGE_BYTES // 16 // 4
    values = normal(count * rows, columns, seed=2)
    path.write_bytes(values.tobytes())
    mapped, nbytes = map_file(path), pages * PAGE_BYTES
    found = {
        f"layers.{index}": tensor_in(
            mapped, index * nbytes, nbytes, FORMATS["f32"], (rows, columns)
        )
        for index in range(count)
    }
    found["part"] = found["layers.1"].prefix(rows, columns // 2)
    memory = Packed.of(np.ones((2, 32), np.float32))
    return Weights({**found, "memory": memory}), memory


def test_files_are_the_maps_behind(tmp_path: Path) -> None:
    weights, memory = in_file(tmp_path / "a.bin")
    assert [file.path for file in weights.files] == [str(tmp_path / "a.bin")]
    assert Weights({"memory": memory}).files == []
    other, _ = in_file(tmp_path / "b.bin")
    both = Weights({**weights, **{f"b.{name}": weight for name, weight in other.items()}})
    assert {Path(file.path).name for file in both.files} == {"a.bin", "b.bin"}
    for name in list(weights):
        weights.replaced(name, memory)
    check(weights.files)  # the files that it came from stay its files
    assert [file.path for file in weights.files] == [str(tmp_path / "a.bin")]


@linux
@needs_native
def test_weights_of_a_cut_file_have_their_names(tmp_path: Path) -> None:
    weights, memory = in_file(tmp_path / "a.bin")
    assert list(weights.lost()) == []
    os.truncate(tmp_path / "a.bin", PAGE_BYTES)
    assert list(weights.lost()) == []  # nobody has looked yet
    assert not weights["layers.2"].blocks[0, :4].any()  # zeros, where there was a number
    assert list(weights.lost()) == ["layers.2"]
    assert not weights["layers.1"].blocks[-1, -4:].any()
    assert list(weights.lost()) == ["layers.1", "layers.2", "part"]  # which is half of the page
    weights["layers.0"].blocks.sum()
    assert list(weights.lost()) == ["layers.0", "layers.1", "layers.2", "part"]
    weights.replaced("layers.0", memory)
    assert list(weights.lost()) == ["layers.1", "layers.2", "part"]


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize(
    ("number", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
def test_broken_numbers_are_found_in_every_format(name: str, number: float, kind: str) -> None:
    weight = packed(name)
    blocks = weight.blocks.copy()
    scale = {"f32": np.float32, "q8_0": np.float16, "f16": np.float16}.get(name)
    if scale is None:
        number_bytes = np.array([number], np.float32).view(np.uint8)[2:]
    else:
        number_bytes = np.array([number], scale).view(np.uint8)
    blocks[40, -weight.format.block_bytes :][: len(number_bytes)] = number_bytes
    weights = Weights({"fine": weight, "spoilt": Packed(blocks, weight.format)})
    (found,) = weights.broken()
    assert found[0] == "spoilt"
    # A block whose scale is infinite has zeros in it, which times infinity are no numbers.
    assert found[1] == kind or (name == "q8_0" and found[1] == "NaN")


def test_vectors_and_tables_can_be_broken_too() -> None:
    norm = np.ones(9, np.float32)
    norm[3] = np.nan
    weights = Weights({"a": packed("q4_0"), "norm.weight": Packed.of(norm)})
    assert list(weights.broken()) == [("norm.weight", "NaN")]
    assert list(Weights({"a": packed("q4_0")}).broken()) == []


def test_small_tensors_are_widened_once() -> None:
    scale = np.linspace(0, 1, 8, dtype=np.float32)
    weights = Weights({"norm.weight": pack(scale, FORMATS["f16"])})
    assert np.array_equal(weights.floats("norm.weight"), scale.astype(np.float16))
    assert weights.floats("norm.weight") is weights.floats("norm.weight")
