"""Settings files as they were published: each is read without a word."""

from __future__ import annotations

from typing import Any

import pytest

from gemelo.config import Submodel, read_config, setting_notices
from gemelo.config.gemma3n import Gemma3nConfig
from gemelo.config.settings import check_kind, check_plain, generation_notices
from gemelo.errors import UnsupportedError


def kinds(layers: int, pattern: int) -> list[str]:
    return [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention"
        for layer in range(layers)
    ]


TEXT: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262144,
}
SMALLEST = TEXT | {
    "_sliding_window_pattern": 6,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": kinds(18, 6),
    "num_hidden_layers": 18,
    "transformers_version": "4.55.0.dev0",
    "use_bidirectional_attention": False,
}
SMALL = TEXT | {
    "cache_implementation": "hybrid",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "sliding_window_pattern": 6,
    "transformers_version": "4.50.0.dev0",
}
EYE = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
STRETCHED = {"factor": 8.0, "rope_type": "linear"}
SEEING: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": STRETCHED,
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": EYE,
}
LARGEST = SEEING | {
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": STRETCHED,
        "sliding_window": 1024,
    }
}
# As another program saves it: numbers of the decoder once more at the top.
SAVED_AGAIN = SEEING | {
    "bos_token_id": 2,
    "hidden_size": 2560,
    "num_attention_heads": 8,
    "pad_token_id": 0,
    "quantization": None,
    "unsloth_fixed": True,
    "vision_config": EYE | {"num_channels": 3, "skip_vision": False, "torch_dtype": "bfloat16"},
    "vocab_size": 262208,
}
EAR = {
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_invalid_logits_value": -1e9,
    "conf_attention_logit_cap": 50.0,
    "conf_conv_kernel_size": 5,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_positional_bias_size": 256,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "gradient_clipping": 10000000000.0,
    "hidden_size": 1536,
    "input_feat_size": 128,
    "model_type": "gemma3n_audio",
    "rms_norm_eps": 1e-06,
    "sscp_conv_channel_size": [128, 32],
    "sscp_conv_eps": 0.001,
    "sscp_conv_group_norm_eps": 0.001,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
    "torch_dtype": "bfloat16",
    "vocab_offset": 262272,
    "vocab_size": 128,
}


def elastic(layers: int, width: int, borrowers: int) -> dict[str, Any]:
    """E4B's and E2B's, which differ in three numbers."""
    text = {
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (layers - 10),
        "altup_active_idx": 0,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_lr_multiplier": 1.0,
        "altup_num_inputs": 4,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2048,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": [width] * layers,
        "laurel_rank": 64,
        "layer_types": kinds(layers, 5),
        "max_position_embeddings": 32768,
        "model_type": "gemma3n_text",
        "num_attention_heads": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": borrowers,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
    }
    eye = {
        "architecture": "mobilenetv5_300m_enc",
        "do_pooling": False,
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "label_names": ["LABEL_0", "LABEL_1"],
        "model_args": None,
        "model_type": "gemma3n_vision",
        "num_classes": 2,
        "rms_norm_eps": 1e-06,
        "torch_dtype": "bfloat16",
        "vocab_offset": 262144,
        "vocab_size": 128,
    }
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "audio_config": EAR,
        "audio_soft_tokens_per_image": 188,
        "audio_token_id": 262273,
        "boa_token_id": 256000,
        "boi_token_id": 255999,
        "eoa_token_id": 262272,
        "eoi_token_id": 262144,
        "eos_token_id": [1, 106],
        "image_token_id": 262145,
        "initializer_range": 0.02,
        "model_type": "gemma3n",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.0.dev0",
        "vision_config": eye,
        "vision_soft_tokens_per_image": 256,
    }


E4B, E2B = elastic(35, 16384, 15), elastic(30, 8192, 10)
PUBLISHED = {
    "270m": SMALLEST,
    "1b": SMALL,
    "4b": SEEING,
    "27b": LARGEST,
    "4b saved again": SAVED_AGAIN,
    "E4B": E4B,
    "E2B": E2B,
}
GENERATION: dict[str, dict[str, Any]] = {
    "google": {
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "eos_token_id": [1, 106],
        "pad_token_id": 0,
        "top_k": 64,
        "top_p": 0.95,
        "transformers_version": "4.50.0.dev0",
    },
    "unsloth": {"do_sample": True, "max_length": 131072, "top_k": 64, "top_p": 0.95},
    "made of a config": {"_from_model_config": True, "eos_token_id": 1, "use_cache": True},
}


def notices(raw: dict[str, Any]) -> tuple[str, ...]:
    check_kind(raw)
    check_plain(raw)
    return setting_notices(raw, read_config(raw))


@pytest.mark.parametrize("raw", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_a_published_config_needs_no_word(raw: dict[str, Any]) -> None:
    assert notices(raw) == ()
    again = read_config(raw).to_hf()
    assert read_config(again) == read_config(raw) and notices(again) == ()


def test_the_two_published_sizes_are_known_by_name() -> None:
    for raw, name in ((E4B, "E4B"), (E2B, "E2B")):
        config = read_config(raw)
        assert isinstance(config, Gemma3nConfig) and Submodel.whole(config).name == name


@pytest.mark.parametrize("raw", GENERATION.values(), ids=GENERATION.keys())
def test_a_published_generation_config_needs_no_word(raw: dict[str, Any]) -> None:
    assert generation_notices(raw) == ()


def test_other_values_than_the_published_are_told() -> None:
    for name, value in (("query_pre_attn_scalar", 16), ("altup_lr_multiplier", 2.0)):
        (notice,) = notices(E2B | {"text_config": E2B["text_config"] | {name: value}})
        assert f"'text_config.{name}'" in notice
    (notice,) = notices(SAVED_AGAIN | {"hidden_size": 2561, "num_attention_heads": 9})
    assert "'hidden_size', 'num_attention_heads'" in notice


def test_a_decoder_alone_that_holds_a_text_config_is_read_at_the_top() -> None:
    (notice,) = notices(SMALL | {"text_config": {"hidden_size": 4}})
    assert notice == "config.json has settings of no effect here: 'text_config'"


def test_the_decoder_of_a_whole_without_towers_is_in_its_text_config() -> None:
    deaf = E2B | {"vision_config": None, "audio_config": None}
    assert notices(deaf) == ()
    odd = deaf["text_config"] | {"sliding_window_pattern": 3}
    (notice,) = notices(deaf | {"text_config": odd})
    assert "sliding_window_pattern of 3" in notice


@pytest.mark.parametrize("raw", [SEEING, E2B], ids=["4b", "E2B"])
@pytest.mark.parametrize("kind", ["gemma2", "llama", "gemma3", ["gemma3_text"]])
def test_another_family_inside_is_refused(raw: dict[str, Any], kind: Any) -> None:
    with pytest.raises(UnsupportedError, match="text_config has model_type"):
        check_kind(raw | {"text_config": raw["text_config"] | {"model_type": kind}})


@pytest.mark.parametrize("part", ["text_config", "vision_config", "audio_config"])
def test_any_part_may_be_packed(part: str) -> None:
    packed = E2B[part] | {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(UnsupportedError, match="quantised .fp8"):
        check_plain(E2B | {part: packed})


def test_mlx_is_called_by_its_name() -> None:
    sizes = {"bits": 4, "group_size": 64}  # which it writes under both names
    with pytest.raises(UnsupportedError, match="quantised .MLX, 4 bits"):
        check_plain(SMALL | {"quantization_config": sizes, "quantization": sizes})


def test_an_unknown_setting_of_generation_is_told() -> None:
    asked = {"penalty_alpha": 0.6, "temprature": 0.1, "num_beam_groups": 2}
    first, second = generation_notices(GENERATION["google"] | asked)
    assert "penalty_alpha = 0.6, num_beam_groups = 2" in first
    assert "'temprature' (did you mean temperature?)" in second


def test_a_type_by_its_older_name_is_told() -> None:
    stretched = SMALL | {"rope_scaling": {"type": "linear", "factor": 8.0}}
    (notice,) = notices(stretched)
    assert "`type`" in notice and read_config(stretched).rope_scaling_factor == 8.0
