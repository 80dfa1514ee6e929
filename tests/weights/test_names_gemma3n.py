"""Gemma 3n's names both ways: against the real models' own names and GGUF's own table."""

from __future__ import annotations

import gguf
import pytest
import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from gemelo.errors import UnsupportedError
from gemelo.weights.names import (
    STACKS,
    from_gguf,
    from_hf,
    is_tower_3n,
    norm_shift,
    parts_of,
    stack_of,
    to_gguf,
    to_hf,
)
from tests.gemma3n import vision_names

LAYERS = 12


@pytest.fixture(scope="module")
def text_names() -> list[str]:
    """Names of a text checkpoint, keys and values of borrowing layers among them."""
    config = Gemma3nTextConfig(
        hidden_size=8, num_hidden_layers=LAYERS, intermediate_size=8, num_kv_shared_layers=0
    )
    with torch.device("meta"):
        model = Gemma3nForCausalLM(config)
    return [name for name in model.state_dict() if name != "lm_head.weight"]


def test_every_name_goes_both_ways(text_names: list[str]) -> None:
    canonical = [from_hf(name) for name in text_names]
    assert len(set(canonical)) == len(text_names) == LAYERS * 24 + 11
    for name, written in zip(canonical, text_names, strict=True):
        assert to_hf(name, "text") == written
        hub = to_hf(name, "multimodal-3n")
        assert hub == written.replace("model.", "model.language_model.", 1)
        assert from_hf(hub) == from_hf(hub.removeprefix("model.")) == name
        if stack_of(name) is None:
            assert from_gguf(to_gguf(name, "gemma3n"), "gemma3n") == name


def test_gguf_names_are_those_of_its_own_table(text_names: list[str]) -> None:
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3N, LAYERS)
    own = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.GEMMA3N]}
    seen = set()
    for name in text_names:
        canonical = stack_of(from_hf(name)) or from_hf(name)
        hf = canonical.replace("language_model.", "model.", 1)
        suffixed = hf if hf.endswith(".weight") else f"{hf}.weight"  # as converters call the scale
        written = to_gguf(canonical, "gemma3n")
        assert written == mapping.get_name(suffixed, (".weight",)), name
        seen.add(written.removesuffix(".weight").replace("blk.3.", "blk.{bid}."))
    assert own - seen <= {"rope_freqs", "output"}


def test_stacks_and_their_parts() -> None:
    for stack in STACKS:
        parts = parts_of(stack, 3)
        assert [stack_of(part) for part in parts] == [stack] * 3
        assert from_gguf(to_gguf(stack, "gemma3n"), "gemma3n") == stack
        for call in (lambda s=stack: from_hf(s), lambda s=stack: to_hf(s, "text")):
            with pytest.raises(UnsupportedError, match="altup"):
                call()
        with pytest.raises(UnsupportedError, match="altup"):
            to_gguf(parts[0], "gemma3n")
    assert stack_of("language_model.norm.weight") is None


def test_towers_have_names_in_checkpoints_alone() -> None:
    names = [f"model.vision_tower.timm_model.{name}" for name in vision_names()]
    assert len(set(names)) == 548
    names += [
        "model.audio_tower.subsample_conv_projection.conv_1.norm.weight",
        "model.audio_tower.conformer.11.attention.attn.per_dim_scale",
        "model.embed_audio.hard_embedding_norm.weight",
        "model.embed_vision.embedding_projection.weight",
    ]
    for name in names:
        canonical = from_hf(name)
        assert is_tower_3n(canonical) and to_hf(canonical, "multimodal-3n") == name
        for call in (
            lambda c=canonical: to_hf(c, "text"),
            lambda c=canonical: to_gguf(c, "gemma3n"),
            lambda c=canonical: to_gguf(c, "clip"),
        ):
            with pytest.raises(UnsupportedError, match="no place"):
                call()
    assert not is_tower_3n("vision_tower.post_layernorm.bias")


def test_nothing_is_shifted(text_names: list[str]) -> None:
    assert not any(norm_shift(from_hf(name), "gemma3n") for name in text_names)


@pytest.mark.parametrize(
    "name",
    [
        "model.altup_projections.weight",
        "model.altup_projections.x.weight",
        "model.layers.0.altup.correct_output_scale.weight",
        "model.language_model.layers.0.laurel.linear_left.bias",
        "model.audio_tower.conformer.0.norm.bias",
        "model.vision_tower.timm_model.blocks.0.conv_exp.weight",
        "model.vision_tower.timm_model.blocks.{n}.{n}.bn1.weight",
        "model.embed_vision.weight",
    ],
)
def test_unknown_names_are_refused_and_named(name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        from_hf(name)
    assert repr(name) in str(caught.value)


def test_a_family_has_its_own_names() -> None:
    for name in ("blk.0.laurel_l.weight", "per_layer_token_embd.weight", "altup_proj.weight"):
        with pytest.raises(UnsupportedError, match="gemma3 does not have"):
            from_gguf(name, "gemma3")
        assert from_gguf(name, "gemma3n")
    with pytest.raises(UnsupportedError, match="gemma3 have no place"):
        to_gguf("language_model.layers.0.laurel.linear_left.weight", "gemma3")
