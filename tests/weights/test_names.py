"""Names both ways: against the real models' own names and GGUF's own table."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from gemelo.errors import UnsupportedError
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.names import from_gguf, from_hf, norm_shift, to_gguf, to_hf

TEXT = Gemma3TextConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=12,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
VISION = SiglipVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=11,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
    vision_use_head=False,
)
Q = "self_attn.q_proj.weight"


def model_names(multimodal: bool) -> list[str]:
    """The names in a checkpoint that transformers writes, without the tied head."""
    with torch.device("meta"):
        if multimodal:
            config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=1)
            model: torch.nn.Module = Gemma3ForConditionalGeneration(config)
        else:
            model = Gemma3ForCausalLM(TEXT)
    return [name for name in model.state_dict() if name != "lm_head.weight"]


@pytest.mark.parametrize(
    "name, canonical",
    [
        (f"model.layers.3.{Q}", f"language_model.layers.3.{Q}"),
        (f"layers.3.{Q}", f"language_model.layers.3.{Q}"),
        (f"language_model.model.layers.3.{Q}", f"language_model.layers.3.{Q}"),
        (f"model.language_model.layers.3.{Q}", f"language_model.layers.3.{Q}"),
        (f"language_model.layers.3.{Q}", f"language_model.layers.3.{Q}"),
        ("model.embed_tokens.weight", "language_model.embed_tokens.weight"),
        ("norm.weight", "language_model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
        ("model.vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
        ("model.vision_tower.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
        (
            "model.multi_modal_projector.mm_input_projection_weight",
            "multi_modal_projector.mm_input_projection_weight",
        ),
        (
            "multi_modal_projector.mm_soft_emb_norm.weight",
            "multi_modal_projector.mm_soft_emb_norm.weight",
        ),
    ],
)
def test_every_layout_has_one_canonical_name(name: str, canonical: str) -> None:
    assert from_hf(name) == canonical


@pytest.mark.parametrize("multimodal", [False, True])
def test_every_name_of_the_model_goes_both_ways(multimodal: bool) -> None:
    names = model_names(multimodal)
    canonical = [from_hf(name) for name in names]
    assert len(set(canonical)) == len(names) == 12 * 13 + 2 + (11 * 16 + 7 if multimodal else 0)
    for name in canonical:
        assert from_hf(to_hf(name, "multimodal")) == name
        if name.startswith("language_model."):
            assert from_hf(to_hf(name, "text")) == name
            assert from_gguf(to_gguf(name, "gemma3"), "gemma3") == name
        else:
            assert from_gguf(to_gguf(name, "clip"), "clip") == name


def test_text_names_are_written_as_transformers_has_them() -> None:
    for name in model_names(multimodal=False):
        assert to_hf(from_hf(name), "text") == name
    assert to_hf("language_model.lm_head.weight", "text") == "lm_head.weight"


def test_multimodal_names_are_written_in_the_oldest_spelling() -> None:
    for canonical, written in (
        ("language_model.norm.weight", "language_model.model.norm.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("vision_tower.post_layernorm.bias", "vision_tower.vision_model.post_layernorm.bias"),
        (
            "multi_modal_projector.mm_soft_emb_norm.weight",
            "multi_modal_projector.mm_soft_emb_norm.weight",
        ),
    ):
        assert to_hf(canonical, "multimodal") == written


def test_gguf_names_are_those_of_its_own_table() -> None:
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 12)
    for name in (*model_names(multimodal=False), "lm_head.weight"):
        assert to_gguf(from_hf(name), "gemma3") == mapping.get_name(name, (".weight",))
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 11)
    for name in model_names(multimodal=True):
        canonical = from_hf(name)
        if not canonical.startswith("language_model."):
            old = to_hf(canonical, "multimodal").replace("projection_weight", "projection.weight")
            assert to_gguf(canonical, "clip") == mapping.get_name(old, (".weight", ".bias"))


def test_the_real_file_has_these_names(real_gguf: Path) -> None:
    canonical = [from_gguf(name, "gemma3") for name in GGUFFile(real_gguf)]
    assert len(set(canonical)) == 236
    assert {to_hf(name, "text").split(".")[0] for name in canonical} == {"model"}
    assert sum(norm_shift(name, "gemma3") == 1 for name in canonical) == 109


def test_norms_of_the_decoder_and_the_projector_are_shifted() -> None:
    for name in map(from_hf, model_names(multimodal=True)):
        architecture = "gemma3" if name.startswith("language_model.") else "clip"
        is_norm = "norm" in name and not name.startswith("vision_tower.")
        assert norm_shift(name, architecture) == (1.0 if is_norm else 0.0), name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.00.mlp.up_proj.weight",
        "model.layers.x.mlp.up_proj.weight",
        "model.layers.{n}.mlp.up_proj.weight",
        "model.layers.٣.mlp.up_proj.weight",
        "model.layers.99999.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight.extra",
        "model.layers.0.mlp.up_proj.bias",
        "vision_tower.norm.weight",
        "audio_tower.norm.weight",
    ],
)
def test_unknown_names_are_refused_and_named(name: str) -> None:
    for ask in (
        lambda: from_hf(name),
        lambda: to_hf(name, "text"),
        lambda: to_gguf(name, "gemma3"),
        lambda: from_gguf(name, "gemma3"),
    ):
        with pytest.raises(UnsupportedError) as caught:
            ask()
        assert repr(name) in str(caught.value)


def test_what_a_layout_or_architecture_has_no_place_for() -> None:
    tower = "vision_tower.post_layernorm.bias"
    for call in (
        lambda: to_hf(tower, "text"),
        lambda: to_gguf(tower, "gemma3"),
        lambda: from_gguf("v.post_ln.bias", "gemma3"),
    ):
        with pytest.raises(UnsupportedError, match="post_l"):
            call()
    for call in (
        lambda: to_hf(tower, "new"),
        lambda: to_gguf(tower, "llama"),
        lambda: from_gguf("output.weight", "llama"),
        lambda: str(norm_shift(tower, "llama")),
    ):
        with pytest.raises(UnsupportedError, match="known|choose"):
            call()
