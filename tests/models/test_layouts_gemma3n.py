"""Every name and shape of E4B and E2B has a place, at real size, without a byte."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from transformers import Gemma3nForCausalLM
from transformers import Gemma3nTextConfig as TheirTextConfig
from transformers.models.gemma3n import (
    Gemma3nAudioConfig,
    Gemma3nAudioEncoder,
    Gemma3nVisionConfig,
)
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

from gemelo.checkpoints.modality_embeddings import ModalityEmbeddings
from gemelo.checkpoints.parameter_check import check_parameters
from gemelo.checkpoints.slice import dead_keys, without_dead_keys
from gemelo.checkpoints.source import Source
from gemelo.config import read_config
from gemelo.config.parameters import parameter_shapes
from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.weights import names
from tests.gemma3n import vision_names

Shapes = dict[str, tuple[int, ...]]
SIZES = {
    "E4B": {"num_hidden_layers": 35, "intermediate_size": 16384, "num_kv_shared_layers": 15},
    "E2B": {"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10},
}


def text_shapes(size: str) -> Shapes:
    """What transformers holds of the decoder, by its own names; the head is tied."""
    with torch.device("meta"):
        model = Gemma3nForCausalLM(TheirTextConfig(**SIZES[size]))
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def dead_shapes(size: str) -> Shapes:
    layers = SIZES[size]["num_hidden_layers"]
    kinds = {"k_proj": (512, 2048), "v_proj": (512, 2048), "k_norm": (256,)}
    return {
        f"model.layers.{layer}.self_attn.{leaf}.weight": shape
        for layer in range(20, layers)
        for leaf, shape in kinds.items()
    }


@cache
def tower_shapes() -> Shapes:
    """Names and shapes beside the decoder."""
    text, audio = TheirTextConfig(), Gemma3nAudioConfig()
    with torch.device("meta"):
        modules = {
            "audio_tower": Gemma3nAudioEncoder(audio),
            "embed_audio": Gemma3nMultimodalEmbedder(audio, text),
            "embed_vision": Gemma3nMultimodalEmbedder(Gemma3nVisionConfig(), text),
            "vision_tower.timm_model": timm.create_model("mobilenetv5_300m_enc"),
        }
    found = {
        f"model.{part}.{name}": tuple(p.shape)
        for part, module in modules.items()
        for name, p in module.state_dict().items()
    }
    assert {f"model.vision_tower.timm_model.{name}" for name in vision_names()} <= found.keys()
    return found


def in_hub_layout(shapes: Shapes) -> Shapes:
    return {name.replace("model.", "model.language_model.", 1): s for name, s in shapes.items()}


def source(size: str, shapes: Shapes, multimodal: bool) -> Source:
    text = {"model_type": "gemma3n_text"} | SIZES[size]
    config = read_config({"model_type": "gemma3n", "text_config": text} if multimodal else text)
    found = {names.from_hf(name): shape for name, shape in shapes.items()}
    assert len(found) == len(shapes)
    return Source(Path(size), config, found, lambda name: pytest.fail(name))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dead", [True, False], ids=["with dead keys", "without"])
@pytest.mark.parametrize("multimodal", [True, False], ids=["multimodal", "text"])
def test_every_tensor_is_consumed(size: str, dead: bool, multimodal: bool) -> None:
    shapes = text_shapes(size)
    count = len(shapes)
    if dead:
        shapes |= dead_shapes(size)
    if multimodal:
        shapes = in_hub_layout(shapes) | tower_shapes()
    if dead and multimodal:
        assert len(shapes) == {"E4B": 1676, "E2B": 1556}[size]
    opened = without_dead_keys(source(size, shapes, multimodal))
    assert opened.notices == () and len(opened.details) == int(dead)
    check_parameters(opened)
    assert parameter_shapes(opened.config) == opened.shapes
    assert len(opened.shapes) == count + (len(tower_shapes()) if multimodal else 0)
    assert (ModalityEmbeddings.of(opened) is not None) == multimodal


def test_parameters_are_those_published() -> None:
    for size, count in (("E4B", 6_835_235_568), ("E2B", 4_435_182_688)):
        opened = source(size, text_shapes(size), multimodal=False)
        check_parameters(opened)
        assert sum(map(math.prod, parameter_shapes(opened.config).values())) == count
        assert len(dead_keys(opened.config)) == len(dead_shapes(size))


def test_what_is_missing_unknown_or_misshapen_is_listed() -> None:
    shapes = text_shapes("E2B")
    del shapes["model.layers.3.altup.correct_output_scale"]
    shapes["model.layers.3.self_attn.k_proj.weight"] = (512, 1024)
    shapes["model.layers.30.laurel.linear_left.weight"] = (64, 2048)
    with pytest.raises(FileFormatError) as caught:
        check_parameters(source("E2B", shapes, multimodal=False))
    text = str(caught.value)
    assert "1 weights missing: language_model.layers.3.altup.correct_output_scale" in text
    assert "1 weights unknown: language_model.layers.30.laurel.linear_left.weight" in text
    assert "layers.3.self_attn.k_proj.weight (512, 1024) instead of (512, 2048)" in text


def test_a_text_model_has_no_towers() -> None:
    shapes = text_shapes("E2B") | tower_shapes()
    with pytest.raises(FileFormatError, match="825 weights unknown"):
        check_parameters(source("E2B", shapes, multimodal=False))


def test_names_of_another_eye_are_unknown() -> None:
    shapes = in_hub_layout(text_shapes("E2B")) | tower_shapes()
    shapes["model.vision_tower.vision_model.post_layernorm.weight"] = (8,)
    with pytest.raises(FileFormatError, match="1 weights unknown: vision_tower.post_layernorm"):
        check_parameters(source("E2B", shapes, multimodal=True))
    for name in ("blocks.0.bn1.weight", "blocks.2.9.attn.query.down_conv.weight", "head.weight"):
        with pytest.raises(UnsupportedError, match=name):
            names.from_hf(f"model.vision_tower.timm_model.{name}")
