"""What a config.json says beside the numbers: kinds that are not run, packing, idle settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gemelo.checkpoints.load import load_checkpoint
from gemelo.config import Gemma3nConfig, read_config, setting_notices
from gemelo.config.settings import generation_notices
from gemelo.errors import FileFormatError, GemeloError, UnsupportedError
from tests.conftest import TINY
from tests.gemma3n import TINY_3N
from tests.multimodal import AWAKE, EYED
from tests.published import SIZES, published

TEXT = TINY["blocks-of-32"].to_hf()
# What training and other programs leave in published files.
LEFT_BEHIND = {
    "_name_or_path": "google/gemma-3-1b-it",
    "_attn_implementation_autoset": True,
    "attention_dropout": 0.1,
    "cache_implementation": "hybrid",
    "dtype": "bfloat16",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.0",
    "unsloth_version": "2025.3.1",
    "unsloth_fixed": True,
    "use_cache": False,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "problem_type": None,
    "bad_words_ids": None,
    "top_k": 50,
    "num_beams": 1,
    "return_dict": True,
    "output_attentions": False,
    "attn_logit_softcapping": None,
    "anything_at_all": None,
}


def notices(raw: dict[str, Any]) -> tuple[str, ...]:
    return setting_notices(raw, read_config(raw))


@pytest.mark.parametrize("raw", [TEXT, TINY_3N.to_hf(), EYED.to_hf(), AWAKE.to_hf()])
def test_what_is_written_and_what_is_left_behind_is_known(raw: dict[str, Any]) -> None:
    assert notices(raw) == ()
    assert notices(raw | LEFT_BEHIND) == ()
    if "text_config" in raw:
        inner = {"text_config": raw["text_config"] | LEFT_BEHIND}
        assert notices(raw | inner) == ()


@pytest.mark.parametrize("size", SIZES)
def test_published_files_have_nothing_unknown(size: str) -> None:
    assert notices(published(size)) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slidng_window": 12}, "'slidng_window' (did you mean sliding_window?)"),
        ({"rms_norm_epsilon": 1e-5}, "'rms_norm_epsilon' (did you mean rms_norm_eps?)"),
        ({"rope_thet": 5}, "(did you mean rope_theta?)"),
        ({"mlp_bias": True}, "'mlp_bias'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2, "short_mscale": 1}}, "short_mscale"),
        ({"vision": 3}, "'vision'"),
    ],
)
def test_what_nobody_knows_is_told_in_one_notice(change: dict[str, Any], said: str) -> None:
    (notice,) = notices(TEXT | change | {"logit_scale": 2})
    assert "no effect here" in notice and said in notice and "'logit_scale'" in notice


def test_a_setting_in_the_wrong_part_is_told() -> None:
    raw = EYED.to_hf()
    raw["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    raw["vision_config"] = raw["vision_config"] | {"patch_sise": 3}
    (notice,) = notices(raw)
    assert "'rope_scaling'" in notice and "'vision_config.patch_sise'" in notice
    (notice,) = notices(TINY_3N.to_hf() | {"query_pre_attn_scalar": 4})
    assert "'query_pre_attn_scalar'" in notice
    (notice,) = notices(TEXT | {f"x{i}": i for i in range(30)})
    assert notice.endswith("and 22 more")


def test_settings_that_others_overrule_are_told() -> None:
    (notice,) = notices(TEXT | {"sliding_window_pattern": 3})
    assert "pattern of 3" in notice and "layer_types count" in notice
    (notice,) = notices(TEXT | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})
    assert "up to the context of 256 tokens" in notice


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": None, "hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ({"num_experts": 8}, "num_experts = 8"),
        ({"num_local_experts": 4}, "num_local_experts = 4"),
        ({"enable_moe_block": True}, "enable_moe_block = True"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        ({"pruned_heads": {"1": [0]}}, "pruned_heads"),
        ({"use_bidirectional_attention": True}, "an embedding model, which writes no text"),
        ({"layer_types": None, "_sliding_window_pattern": 4}, "_sliding_window_pattern = 4"),
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "judges texts and writes none"),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_config(TEXT | change)


def test_an_eye_of_another_kind_is_refused_by_name() -> None:
    for change in ({"hidden_act": "quick_gelu"}, {"num_channels": 1}, {"model_type": "clip"}):
        raw = EYED.to_hf()
        raw["vision_config"] = raw["vision_config"] | change
        with pytest.raises(UnsupportedError, match=next(iter(change))):
            read_config(raw)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gemma", "Gemma 1"),
        ("gemma2", "Gemma 2"),
        ("gemma4", "Gemma 4"),
        ("t5gemma", "T5Gemma"),
        ("paligemma", "PaliGemma"),
        ("shieldgemma2", "ShieldGemma 2"),
        ("llama", "'llama' is not"),
        (None, "None is not"),
        (["gemma3"], "is not one"),
        ({}, "is not one"),
    ],
)
def test_relatives_are_called_what_they_are(kind: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        read_config(TEXT | {"model_type": kind})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "awq, 4 bits"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "bitsandbytes, 8 bits",
        ),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": {}}}, "torchao"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits"),
        ({"quantization_config": "int8"}, "no method named"),
        ({"compression_config": {"format": "pack-quantized"}}, "pack-quantized"),
    ],
)
@pytest.mark.parametrize("part", ["top", "text"])
def test_packed_weights_are_told_by_the_config(
    change: dict[str, Any], said: str, part: str
) -> None:
    raw = EYED.to_hf()
    raw = raw | change if part == "top" else raw | {"text_config": raw["text_config"] | change}
    with pytest.raises(UnsupportedError, match=rf"the weights are quantised \(.*{said}.*GGUF"):
        read_config(raw)
    assert read_config(EYED.to_hf() | {"quantization_config": None}) == EYED


def test_ids_of_markers_have_two_names() -> None:
    raw = EYED.to_hf()
    raw["image_token_id"] = raw.pop("image_token_index")
    assert read_config(raw) == EYED
    assert notices(raw) == ()


@pytest.mark.parametrize("value", ["30", True, 0, -5, [], {}, float("nan"), 1e300, 10**400])
@pytest.mark.parametrize(
    "name", ["final_logit_softcapping", "query_pre_attn_scalar", "rms_norm_eps"]
)
def test_factors_are_numbers_above_zero(name: str, value: Any) -> None:
    with pytest.raises(FileFormatError, match=name):
        read_config(TEXT | {name: value})


@pytest.mark.parametrize("value", ["30", True, 0, -5, [], float("inf")])
def test_caps_of_gemma_3n_are_too(value: Any) -> None:
    for name in ("final_logit_softcapping", "altup_coef_clip"):
        with pytest.raises(FileFormatError, match=name):
            read_config(TINY_3N.to_hf() | {name: value})


def test_a_null_is_no_default() -> None:
    config = read_config(TINY_3N.to_hf() | {"final_logit_softcapping": None})
    assert isinstance(config, Gemma3nConfig) and config.final_logit_softcapping is None
    for name in ("sliding_window", "rms_norm_eps", "hidden_size", "num_hidden_layers"):
        with pytest.raises(FileFormatError, match=f"{name} = null"):
            read_config(TEXT | {name: None})
    assert read_config(TEXT | {"pad_token_id": None}).pad_token_id == 0


@pytest.mark.parametrize("value", ["false", 0, 1, "yes", []])
def test_switches_are_true_or_false(value: Any) -> None:
    with pytest.raises(GemeloError, match="tie_word_embeddings"):
        read_config(TEXT | {"tie_word_embeddings": value})


@pytest.mark.parametrize("value", [-1, "1", True, [1, "x"], [[1]], {}, 1.0, 10**30])
def test_ids_that_end_a_text_are_whole_numbers(value: Any) -> None:
    with pytest.raises(FileFormatError, match="eos_token_id"):
        read_config(TEXT | {"eos_token_id": value})


def test_a_generation_config_says_what_ends_a_text(tiny_directory: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_directory, tmp_path / "m")
    assert load_checkpoint(folder).tokenizer.stop_ids == (1, 106)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"eos_token_id": [1, 300]}))
    assert load_checkpoint(folder).tokenizer.stop_ids == (1, 106, 300)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7, 99999]}')
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.eos_token_id == (1, 7, 99999)
    assert checkpoint.tokenizer.stop_ids == (1, 7, 106)
    assert checkpoint.notices == ("an answer is to end with id 99999, which is none of the 512",)
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    with pytest.raises(FileFormatError, match=r"generation_config\.json: .*eos_token_id = 'end'"):
        load_checkpoint(folder)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(FileFormatError, match=r"generation_config\.json"):
        load_checkpoint(folder)


def test_sampling_that_is_asked_for_and_not_done_is_told() -> None:
    usual = {"do_sample": True, "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"}
    assert generation_notices(usual) == ()
    (notice,) = generation_notices(usual | {"temperature": 0.6, "suppress_tokens": [7]})
    assert "temperature = 0.6, suppress_tokens = [7]" in notice
