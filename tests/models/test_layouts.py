"""Every name and shape of the published checkpoints has a place, at real size, without a byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config as TheirConfig
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration
from transformers import Gemma3TextConfig as TheirTextConfig

from gemelo.checkpoints.parameter_check import check_parameters
from gemelo.checkpoints.source import Source
from gemelo.config import read_config
from gemelo.config.parameters import parameter_shapes
from gemelo.errors import FileFormatError
from gemelo.weights import names
from tests.published import SIZES, published

Shapes = dict[str, tuple[int, ...]]


def reference_shapes(size: str) -> Shapes:
    """Parameter names as transformers holds them in memory, and their shapes; the head is tied."""
    raw = published(size)
    with torch.device("meta"):
        if raw["model_type"] == "gemma3":
            model = Gemma3ForConditionalGeneration(TheirConfig(**raw))
        else:
            model = Gemma3ForCausalLM(TheirTextConfig(**raw))
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def hub_name(name: str) -> str:
    """The name in the files on the hub: the layout of transformers up to 4.51."""
    if not name.startswith(("model.language_model.", "model.vision_tower.", "model.multi_modal")):
        return name
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name.replace("language_model.", "language_model.model.", 1)


def source(size: str, shapes: Shapes) -> Source:
    config = read_config(published(size))
    found = {names.from_hf(name): shape for name, shape in shapes.items()}
    return Source(Path(size), config, found, lambda name: pytest.fail(name))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["hub", "memory"])
def test_every_tensor_is_consumed(size: str, layout: str) -> None:
    shapes = reference_shapes(size)
    if layout == "hub":
        shapes = {hub_name(name): shape for name, shape in shapes.items()}
    opened = source(size, shapes)
    check_parameters(opened)
    assert parameter_shapes(opened.config) == opened.shapes and len(opened.shapes) == len(shapes)


def test_what_is_missing_unknown_or_misshapen_is_listed() -> None:
    shapes = reference_shapes("270M")
    del shapes["model.layers.3.mlp.up_proj.weight"]
    shapes["model.layers.18.mlp.up_proj.weight"] = (2048, 640)
    shapes["model.norm.weight"] = (641,)
    with pytest.raises(FileFormatError) as caught:
        check_parameters(source("270M", shapes))
    text = str(caught.value)
    assert "1 weights missing: language_model.layers.3.mlp.up_proj.weight" in text
    assert "1 weights unknown: language_model.layers.18.mlp.up_proj.weight" in text
    assert "language_model.norm.weight (641,) instead of (640,)" in text
