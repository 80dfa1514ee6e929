"""Weights by name: what is held in memory, what a header tells, and the parts of a sub-model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemelo.checkpoints.convert import convert, slice
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.open import open_source
from gemelo.config import Submodel
from gemelo.config.parameters import decoder_shapes
from gemelo.inspection.weights import Group, Weight, held, part, running, stored
from gemelo.kernels.quants import FORMATS, Packed, pack
from tests.gemma3n import TINY_3N, write_3n
from tests.hollow import hollow
from tests.matformer import CONFIG, SMALL


def test_a_weight_is_its_shape_format_and_bytes() -> None:
    ones = np.ones((4, 64), np.float32)
    found = held(
        {
            "layers.0.mlp.up_proj.weight": pack(ones, FORMATS["q8_0"]),
            "layers.0.altup.correct_output_scale": Packed.of(np.ones(3, np.float32)),
            "timm_model.conv.weight": Packed.of(np.ones((2, 3, 1, 1), np.float32)),
            "half.weight": pack(ones, FORMATS["bf16"]).prefix(rows=2, columns=32),
        }
    )
    assert found == {
        "layers.0.mlp.up_proj": Weight((4, 64), "q8_0", 256, 4 * 2 * 34),
        "layers.0.altup.correct_output_scale": Weight((3,), "f32", 3, 12),
        "timm_model.conv": Weight((2, 3, 1, 1), "f32", 6, 24),
        "half": Weight((2, 32), "bf16", 64, 128),
    }
    group = Group(found)
    assert (group.parameters, group.bytes) == (329, 272 + 12 + 24 + 128)
    assert set(group.formats) == {"q8_0", "f32", "bf16"}
    assert Group({"norm": found["layers.0.altup.correct_output_scale"]}).formats == ("f32",)


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_a_part_is_what_slicing_writes(tmp_path: Path, format: str) -> None:
    """Names, shapes, formats and bytes, from the whole's header alone."""
    folder = write_3n(tmp_path / "whole")
    submodel = Submodel((64,) * 10, (8, 9), "small")
    convert(folder, tmp_path / "whole.gguf", format)  # type: ignore[arg-type]
    slice(tmp_path / "whole.gguf", tmp_path / "small.gguf", submodel)
    whole, small = (open_source(tmp_path / f"{x}.gguf") for x in ("whole", "small"))
    assert part(stored(whole), whole.config, submodel) == stored(small)


def test_the_header_and_what_is_loaded_tell_the_same(tmp_path: Path) -> None:
    folder = write_3n(tmp_path / "tiny")
    assert stored(open_source(folder)) == held(load_checkpoint(folder).weights)


def test_what_runs_is_the_part_also_of_a_part(tmp_path: Path) -> None:
    """By the numbers of the whole's layers, which a nested model counts anew."""
    weights = load_checkpoint(write_3n(tmp_path / "tiny")).weights
    small, inner = Submodel((64,) * 10, (8, 9)), Submodel((32,) * 9, (8,))
    parts = part(held(weights), TINY_3N, small)
    config = small.config(TINY_3N)
    assert running(weights, TINY_3N, TINY_3N.layers) == held(weights)
    assert running(weights, config, (*range(8), 10, 11)) == parts
    innermost = running(weights, inner.config(config), (*range(8), 11))
    assert innermost == part(parts, config, inner)


def test_no_weight_is_read() -> None:
    small = part(held(hollow(CONFIG)), CONFIG, SMALL)
    assert small["layers.9.mlp.gate_proj"] == Weight((64, 64), "f32", 64 * 64, 4 * 64 * 64)
    names = {name.removesuffix(".weight") for name in decoder_shapes(SMALL.config(CONFIG))}
    assert small.keys() == names


def test_reading_a_hollow_weight_fails() -> None:
    """Or the test above could not."""
    weight = hollow(CONFIG)["norm.weight"]
    for read in (
        lambda: weight.blocks[0],
        lambda: weight.blocks.view(np.float32),
        lambda: weight.blocks + 1,
        lambda: np.sum(weight.blocks),
    ):
        with pytest.raises(AssertionError, match="read"):
            read()
