"""Settings files as they were published, in every form that the hub has."""

from __future__ import annotations

from typing import Any


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
