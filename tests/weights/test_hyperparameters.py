"""Settings of a GGUF file beyond those of a plain Gemma: harmless, honoured, refused by name, or
listed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from gemelo.errors import GemeloError
from gemelo.string_table import Strings
from gemelo.weights.gguf_other_files import refuse_other_kinds
from gemelo.weights.metadata import config_from_gguf, config_to_gguf, read_facts
from tests.text_configs import bare, published, published_3n

HARMLESS: dict[str, Any] = {
    "attention.causal": True,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "expert_count": 0,
    "expert_used_count": np.int32(0).item(),
    "rope.dimension_count": 256,
    "rope.dimension_count_swa": 256,
    "attention.key_length_swa": 256,
    "attention.value_length_swa": 256,
    "attention.scale": 0.0625,
    "attention.layer_norm_epsilon": 1e-6,
    "attention.shared_kv_layers": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.original_context_length": 32768,
    "rope.scaling.finetuned": True,
    "rope.freq_scale": 1.0,
    "pooling_type": 0,
    "leading_dense_block_count": 0,
    "tensor_data_layout": "reference",
    "vocab_size": 262144,
    "vision.block_count": 27,
    "mm.tokens_per_image": 256,
    "feed_forward_length": np.full(18, 2048, np.int32),
    "attention.head_count": np.full(18, 4, np.uint32),
    "attention.head_count_kv": np.full(18, 1, np.uint16),
    "rope.scale_linear": 1.0,
}


@pytest.mark.parametrize("key", HARMLESS)
def test_what_changes_nothing_is_let_pass(key: str) -> None:
    config, notices = read_facts(bare("270m") | {f"gemma3.{key}": HARMLESS[key]})
    assert config == published("270m") and notices == ()


REFUSED: list[tuple[str, Any]] = [
    ("attention.causal", False),
    ("attention.causal", 2),
    ("attn_logit_softcapping", 50.0),
    ("attn_logit_softcapping", "50"),
    ("router_logit_softcapping", 30.0),
    ("expert_count", 8),
    ("expert_used_count", 2),
    ("expert_feed_forward_length", 64),
    ("expert_weights_scale", 2.5),
    ("expert_of_another_day", 1),
    ("rope.dimension_count", 128),
    ("rope.dimension_count_swa", 64),
    ("attention.key_length_swa", 128),
    ("attention.value_length_swa", 128),
    ("attention.scale", 0.05),
    ("attention.scale", "x"),
    ("attention.layer_norm_epsilon", 1e-5),
    ("attention.shared_kv_layers", 3),
    ("attention.clamp_kqv", 8.0),
    ("attention.max_alibi_bias", 8.0),
    ("attention.output_scale", 0.5),
    ("logit_scale", 0.0625),
    ("residual_scale", 0.5),
    ("embedding_scale", 12.0),
    ("use_parallel_residual", True),
    ("pooling_type", 1),
    ("leading_dense_block_count", 1),
    ("nextn_predict_layers", 1),
    ("decoder_block_count", 4),
    ("tensor_data_layout", "Meta AI original pth"),
    ("rope.freq_scale", 0.125),
    ("rope.scaling.attn_factor", 1.2),
    ("rope.scaling.yarn_ext_factor", 1.0),
    ("rope.scaling.yarn_attn_factor", 0.5),
    ("rope.scaling.type", "yarn"),
    ("rope.scaling.type", "longrope"),
    ("rope.scaling.type", 3),
    ("embedding_length_per_layer_input", 256),
    ("attention.head_count", np.array([4] * 17 + [8], np.int32)),
    ("attention.head_count_kv", np.array([1] * 17 + [2], np.int32)),
    ("attention.key_length", np.full(18, 256, np.int32)),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_makes_another_model_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(GemeloError, match=f"gemma3.{key}"):
        config_from_gguf(bare("270m") | {f"gemma3.{key}": value})


def test_an_attention_scale_is_that_of_the_size() -> None:
    for size, scale in (("4b", 256**-0.5), ("27b", 168**-0.5)):
        told = bare(size) | {"gemma3.attention.scale": float(np.float32(scale))}
        assert config_from_gguf(told) == published(size)
    with pytest.raises(GemeloError, match="attention.scale"):
        config_from_gguf(bare("27b") | {"gemma3.attention.scale": 128**-0.5})


def test_the_old_name_of_a_factor() -> None:
    read = config_from_gguf(bare("1b") | {"gemma3.rope.scale_linear": 4.0})
    assert read["rope_parameters"]["full_attention"]["factor"] == 4
    both = bare("1b") | {"gemma3.rope.scale_linear": 4.0, "gemma3.rope.scaling.factor": 2.0}
    assert config_from_gguf(both)["rope_parameters"]["full_attention"]["factor"] == 2


def test_flags_of_layers_may_be_integers() -> None:
    flags = np.array([1, 0] * 9, np.int32)
    kinds = config_from_gguf(bare("270m") | {"gemma3.attention.sliding_window_pattern": flags})
    assert kinds["layer_types"] == ["sliding_attention", "full_attention"] * 9


def test_leftovers_of_one_converter_are_no_facts() -> None:
    left = {"gemma3.attn_logit_softcapping": 50.0, "gemma3.rope.global.freq_base": 1e6}
    assert config_from_gguf(bare("270m") | left) == published("270m")


def test_unknown_settings_are_one_notice() -> None:
    many = {f"gemma3.new.{number}": number for number in range(12)}
    others = {"general.x": 1, "tokenizer.ggml.x": 1, "quantize.imatrix.file": "f", "llama.x": 2}
    _, (notice,) = read_facts(bare("270m") | many | others)
    assert notice.startswith("12 settings") and notice.endswith("gemma3.new.7 and 4 more")


ODD: list[Any] = [
    *(0, -1, 1 << 40, (1 << 64) - 1, True, 2.5, 1e-60, 1e300, float("nan"), float("inf"), "x", ""),
    *(np.zeros(0, np.int32), np.full(18, 3, np.int32), np.full(30, np.nan, np.float32)),
    *(np.array([True] * 18), Strings(b"a\0", np.array([1])), (np.ones(1), np.ones(1))),
]


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_whatever_a_setting_holds_ends_in_a_config_or_in_a_line(family: str) -> None:
    facts = bare("270m") if family == "gemma3" else entries()
    facts["tokenizer.ggml.tokens"] = [b"x"] * 99
    short = {key.removeprefix(f"{family}.") for key in facts if key.startswith(family)}
    short |= {*HARMLESS, *(key for key, _ in REFUSED), "head_dim", "altup.correct_scale"}
    full = [f"{family}.{key}" for key in sorted(short)]
    full += ["general.type", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.tokens"]
    for key, value in itertools.product(full, ODD):
        try:
            refuse_other_kinds(facts | {key: value}, "file")
            config_from_gguf(facts | {key: value})
        except GemeloError as error:
            assert "\n" not in str(error) and len(str(error)) <= 500


# ---- Gemma 3n ------------------------------------------------------------------------------------


def entries() -> dict[str, Any]:
    return config_to_gguf(published_3n("E2B"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.factor", 8.0),
        ("rope.scale_linear", 2.0),
        ("rope.scaling.type", "yarn"),
        ("attention.scale", 0.0625),
        ("attention.causal", False),
        ("expert_count", 4),
        ("rope.dimension_count", 128),
        ("altup.correct_scale", False),
        ("attn_logit_softcapping", 50.0),
    ],
)
def test_the_other_family_refuses_too(key: str, value: Any) -> None:
    with pytest.raises(GemeloError, match=f"gemma3n.{key.rpartition('.')[0]}"):
        config_from_gguf(entries() | {f"gemma3n.{key}": value})


def test_the_other_family_as_ollama_has_it() -> None:
    facts = entries()
    facts["gemma3n.head_dim"] = facts.pop("gemma3n.attention.key_length")
    facts["gemma3n.rope.freq_base_local"] = facts.pop("gemma3n.rope.freq_base_swa")
    del facts["gemma3n.attention.value_length"]
    facts |= {"gemma3n.altup.correct_scale": True, "gemma3n.altup.lr_multiplier": 1.0}
    facts |= {"gemma3n.attention.scale": 1.0, "gemma3n.rope.scaling.type": "none"}
    config, notices = read_facts(facts)
    assert config == published_3n("E2B") and notices == ()
