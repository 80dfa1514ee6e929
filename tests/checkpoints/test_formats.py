"""Weights in other formats and shapes: which become what, and what stays the file's own bytes."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.formats import as_format, format_of, reshaped
from gemelo.checkpoints.lm_head import EMBEDDING, with_head
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.slice import cut
from gemelo.checkpoints.source import PER_LAYER_EMBEDDING, shifted
from gemelo.config import Submodel
from gemelo.config.options import WeightFormat
from gemelo.errors import InputError
from gemelo.kernels.quants import FORMATS, Packed, pack, unpack
from gemelo.weights.mapped import behind
from gemelo.weights.names import HEAD
from tests.conftest import TINY
from tests.gemma3n import TINY_3N, write_3n


def matrix(*shape: int, seed: int = 0) -> Packed:
    return Packed.of(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize(
    ("name", "asked", "got"),
    [
        ("language_model.layers.3.mlp.up_proj.weight", "q4_0", "q4_0"),
        ("language_model.layers.3.mlp.up_proj.weight", "native", "native"),
        ("language_model.embed_tokens.weight", "q4_0", "q8_0"),
        ("language_model.embed_tokens.weight", "bf16", "bf16"),
        ("language_model.altup_projections.1.weight", "q4_0", "q8_0"),
        ("language_model.layers.3.laurel.linear_left.weight", "q4_0", "q8_0"),
        ("language_model.layers.3.laurel.linear_left.weight", "f32", "f32"),
        ("language_model.layers.3.altup.modality_router.weight", "q4_0", "f32"),
        ("language_model.layers.3.altup.modality_router.weight", "native", "f32"),
        (PER_LAYER_EMBEDDING, "q4_0", "native"),
        (PER_LAYER_EMBEDDING, "f32", "native"),
    ],
)
def test_every_weight_has_its_format(name: str, asked: WeightFormat, got: WeightFormat) -> None:
    assert format_of(name, asked) == got


def test_what_is_in_its_format_is_handed_on() -> None:
    weight = pack(unpack(matrix(4, 64)), FORMATS["q8_0"])
    assert as_format(weight, "native") is weight is as_format(weight, "q8_0")
    again = as_format(weight, "q4_0")
    assert np.array_equal(again.blocks, pack(unpack(weight), FORMATS["q4_0"]).blocks)
    with pytest.raises(InputError, match="33 columns cannot be q8_0"):
        as_format(matrix(4, 33), "q8_0")


@pytest.mark.parametrize("shape", [(24,), (1, 24, 1, 1), (2, 3, 4), (6, 4), (8, 3)])
@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_floats_of_another_shape_are_the_same_bytes(shape: tuple[int, ...], format: str) -> None:
    weight = pack(unpack(matrix(4, 3, 2)), FORMATS[format])
    other = reshaped(weight, shape)
    assert other.shape == shape and other.format == weight.format
    assert other.address == weight.address and other.nbytes == weight.nbytes
    assert np.array_equal(unpack(other), unpack(weight).reshape(shape))
    assert reshaped(other, shape) is other


def test_blocks_of_another_shape_become_floats() -> None:
    weight = pack(unpack(matrix(2, 64)), FORMATS["q8_0"])
    other = reshaped(weight, (2, 2, 32))
    assert other.format == FORMATS["f32"]
    assert np.array_equal(unpack(other), unpack(weight).reshape(2, 2, 32))


def test_norms_are_shifted_in_float32_and_matrices_are_not() -> None:
    norm = pack(np.float32([0.5, -0.25, 2]), FORMATS["bf16"])
    assert shifted(norm, 0.0) is norm
    one_more = shifted(norm, 1.0)
    assert one_more.format == FORMATS["f32"] and one_more.shape == (3,)
    assert unpack(one_more).tolist() == [1.5, 0.75, 3]
    blocks = pack(unpack(matrix(2, 32)), FORMATS["q8_0"])
    assert shifted(blocks, 1.0) is blocks


# ---- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (matrix(5000, 8), False),
        (pack(unpack(matrix(5000, 8)), FORMATS["f16"]), True),
        (matrix(5000, 8, seed=1), True),
        (matrix(4999, 8), True),
        (pack(unpack(matrix(1250, 32)), FORMATS["q8_0"]), True),
    ],
)
def test_a_head_that_repeats_the_embedding_is_dropped(head: Packed, kept: bool) -> None:
    tensors = {EMBEDDING: matrix(5000, 8), HEAD: head}
    shapes = {name: weight.shape for name, weight in tensors.items()}
    config, left, _ = with_head(Path("m"), {}, TINY["blocks-of-32"], shapes, tensors.__getitem__)
    assert (HEAD in left) == kept == (not config.tie_word_embeddings)


@pytest.mark.parametrize(("value", "kept"), [(0.5, False), (0.501, True)])
def test_the_same_numbers_in_two_types_are_the_same(value: float, kept: bool) -> None:
    values = np.full((5000, 8), 0.5, np.float32)
    values[-1, -1] = value  # 0.501 is rounded in bfloat16
    tensors = {EMBEDDING: pack(values, FORMATS["bf16"]), HEAD: Packed.of(values)}
    shapes = {name: weight.shape for name, weight in tensors.items()}
    _, left, _ = with_head(Path("m"), {}, TINY["blocks-of-32"], shapes, tensors.__getitem__)
    assert (HEAD in left) == kept


# ---- cutting -------------------------------------------------------------------------------------

PART = Submodel((64,) * 10, (0, 2))


@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0"])
def test_what_is_cut_out_is_the_wholes_numbers(tmp_path: Path, format: str) -> None:
    """Rows and columns of kept layers, put together anew; in blocks as they lie."""
    whole = open_source(convert(write_3n(tmp_path / "hub"), tmp_path / "w.gguf", format).path)  # type: ignore[arg-type]
    small, width = cut(whole, PART), TINY_3N.hidden_size_per_layer_input
    kept = np.concatenate(
        [
            np.arange(layer * width, (layer + 1) * width)
            for layer in range(12)
            if layer not in (0, 2)
        ]
    )
    table, projection = PER_LAYER_EMBEDDING, "language_model.per_layer_model_projection.weight"
    for name, rows, columns in ((table, slice(None), kept), (projection, kept, slice(None))):
        weight = small.tensor(name)
        assert weight.format == whole.tensor(name).format and weight.shape == small.shapes[name]
        assert np.array_equal(unpack(weight), unpack(whole.tensor(name))[rows][:, columns])
    up = "language_model.layers.0.mlp.up_proj.weight"
    first = whole.tensor("language_model.layers.1.mlp.up_proj.weight")  # the first that is kept
    assert small.tensor(up).address == first.address and behind([small.tensor(up)])
    assert all(small.tensor(name).shape == shape for name, shape in small.shapes.items())


def test_part_of_a_block_is_not_cut_out(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY_3N, hidden_size_per_layer_input=8)
    source = open_source(write_3n(tmp_path / "hub", config))
    table = pack(unpack(source.tensor(PER_LAYER_EMBEDDING)), FORMATS["q8_0"])
    packed = dataclasses.replace(
        source,
        tensor=lambda name: table if name == PER_LAYER_EMBEDDING else source.tensor(name),
    )
    with pytest.raises(InputError, match="8 columns cannot be q8_0"):
        cut(packed, PART).tensor(PER_LAYER_EMBEDDING)


# ---- what is not needed --------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["out.gguf", "out"])
def test_converting_imports_no_torch(tiny_checkpoint: Path, tmp_path: Path, target: str) -> None:
    code = (
        "import sys; from gemelo.checkpoints.convert import convert\n"
        f"done = convert({str(tiny_checkpoint)!r}, {str(tmp_path / target)!r}, 'f16')\n"
        "print(done.size_bytes, *{'torch', 'PIL', 'av', 'transformers'} & sys.modules.keys())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"GEMELO_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    shapes = open_source(tiny_checkpoint).shapes.values()
    norms = 4 if target.endswith(".gguf") else 2
    sizes = (math.prod(shape) * (2 if len(shape) == 2 else norms) for shape in shapes)
    assert ran.stdout.split() == [str(sum(sizes))]
