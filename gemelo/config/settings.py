"""Settings of a config.json beside a model's numbers: `model_type`, quantisation, idle ones.

A setting that changes the mathematics and that nobody honours is refused by name; one that training
or other programs left behind is passed over; whatever remains, a misspelt name among it, is put in
one notice, because a setting that has no effect here may have been meant to have one.

    check_kind(raw);  check_plain(raw);  notices = setting_notices(raw, config)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from gemelo.config.config_json import PATTERN_KEYS, REFUSED, section
from gemelo.config.gemma3 import ALIASES
from gemelo.config.gemma3_vision import VisionConfig
from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.layers import LAYER_TYPES, alternating
from gemelo.config.model import ModelConfig
from gemelo.config.rope import unknown_keys
from gemelo.errors import UnsupportedError, listed

MODEL_TYPES = ("gemma3_text", "gemma3", "gemma3n_text", "gemma3n")
PARTS = ("text_config", "vision_config", "audio_config")
_LONGEST = 64  # characters of a name that is looked up among the known ones

# What other models of the family call themselves.
_RELATIVES = {
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma4": "Gemma 4",
    "recurrent_gemma": "RecurrentGemma",
    "t5gemma": "T5Gemma, an encoder and a decoder",
    "t5gemma2": "T5Gemma 2, an encoder and a decoder",
    "paligemma": "PaliGemma",
    "shieldgemma2": "ShieldGemma 2, which judges pictures and writes no text",
    "vaultgemma": "VaultGemma",
    "siglip": "SigLIP, a vision tower without a language model",
    "siglip_vision_model": "SigLIP, a vision tower without a language model",
    "gemma3n_audio": "the audio encoder of a Gemma 3n alone",
    "gemma3n_vision": "the vision tower of a Gemma 3n alone",
}
_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
_WRITERS = ("ForCausalLM", "ForConditionalGeneration")

# Of no effect on what a model computes: where it came from, how it was trained, how others run it.
_IDLE = {
    *("architectures", "model_type", "transformers_version", "auto_map", "name_or_path"),
    *("torch_dtype", "dtype", "use_bfloat16", "torchscript", "tf_legacy_loss", "pretraining_tp"),
    *("use_cache", "cache_implementation", "attn_implementation", "gradient_checkpointing"),
    *("initializer_range", "initializer_factor", "attention_dropout", "dropout", "hidden_dropout"),
    *("output_attentions", "output_hidden_states", "return_dict", "tie_last_hidden_states"),
    *("chunk_size_feed_forward", "is_decoder", "tie_encoder_decoder", "problem_type"),
    *("id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params"),
    *("tokenizer_class", "processor_class", "prefix", "sep_token_id", "decoder_start_token_id"),
    *("unsloth_version", "unsloth_fixed", "unsloth_tiled_mlp", "model_name", "license"),
    *("transformers.js_config", "hidden_act", "quantization_config", "quantization"),
    *("compression_config", "bos_token_id", "eos_token_id", "pad_token_id"),
}
# Defaults of generation that old files keep here, and transformers takes out unread.
_GENERATION = {
    *("do_sample", "temperature", "top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "min_length", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids"),
    *("num_return_sequences", "output_scores", "return_dict_in_generate", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "num_assistant_tokens"),
}
# What a generation_config.json may ask for, and the value that it has for the family or for none.
_USUAL: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "force_words_ids": [],
    "constraints": [],
    "sequence_bias": {},
    "watermarking_config": None,
    "dola_layers": None,
    "stop_strings": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}
# What it may hold besides: ids that are read elsewhere, lengths, and how others run a generation.
_GENERATION_IDLE = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("transformers_version", "cache_implementation", "cache_config", "use_cache", "max_length"),
    *("max_new_tokens", "max_time", "length_penalty", "early_stopping", "renormalize_logits"),
    *("remove_invalid_values", "token_healing", "low_memory", "num_return_sequences"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "return_legacy_cache", "prefill_chunk_size", "compile_config"),
    *("disable_compile", "continuous_batching_config", "is_assistant", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit"),
    *("assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens"),
    *("max_matching_ngram_size", "use_model_defaults", "trust_remote_code", "generation_kwargs"),
    *("speculation_type", "max_cache_len", "assistant_ensemble_weight", "use_mtp"),
}
_ROPE = {"rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"}
_VISION_IDLE = {"num_channels", "vision_use_head", "projection_dim", "projector_hidden_act"}
_VISION_IDLE |= {"num_image_tokens", "skip_vision"}
_VISION_3N_IDLE = {"model_args", "do_pooling", "num_classes", "label_names", "pretrained_cfg"}
_VISION_3N_IDLE |= {"num_features", "global_pool"}
# What published Gemma 3n files speak of beside their networks, and the value that they all have.
_PUBLISHED = {
    "altup_lr_multiplier": 1.0,
    "query_pre_attn_scalar": 256,
    "conf_positional_bias_size": 256,
    "conf_attention_invalid_logits_value": -1e9,
    "sscp_conv_eps": 1e-3,
}
_INNER = {"vision", "rope_scaling_factor", "rope_local_scaling"}  # fields that no file has


def check_kind(raw: Mapping[str, Any]) -> None:
    """Raise UnsupportedError, with the model's name where it is known, for what is not run."""
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        known = _RELATIVES.get(kind) if isinstance(kind, str) else None
        raise UnsupportedError(
            f"model_type {kind!r:.60}{f' ({known})' if known else ''} is not one that gemelo runs "
            f"({', '.join(MODEL_TYPES)})"
        )
    inner = section(raw, "text_config").get("model_type")
    if _is_whole(raw) and inner not in (None, f"{kind}_text"):
        raise UnsupportedError(
            f"text_config has model_type {inner!r:.60}; gemelo runs a {kind} with {kind}_text"
        )
    for name in _architectures(raw):
        if name.endswith(_HEADS):
            raise UnsupportedError(
                f"config has architectures = {name!r:.60}, which judges texts and writes none; "
                "gemelo runs models that write"
            )


def writes(raw: Mapping[str, Any]) -> bool:
    """Whether the architecture that a file names has a head to write with."""
    return any(name.endswith(_WRITERS) for name in _architectures(raw))


def check_plain(raw: Mapping[str, Any]) -> None:
    """Raise UnsupportedError if the weights are packed in a way that only other programs read."""
    for part in (raw, *(section(raw, key) for key in PARTS)):
        for key in ("quantization", "quantization_config", "compression_config"):
            if part.get(key):
                raise UnsupportedError(
                    f"config has {key}: the weights are quantised ({_packing(key, part[key])}), "
                    "and gemelo reads f32, f16 and bf16 in safetensors; take the model as it was "
                    "before, or a GGUF of it"
                )


def setting_notices(raw: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """A sentence on all settings that nobody here knows, and one on each that another overrules."""
    text = section(raw, "text_config") if _is_whole(raw) else raw
    unknown = [*_unknown(raw, config)]
    notices = []
    if unknown:
        known = {*_fields(type(config)), *_ROPE, *PATTERN_KEYS, *REFUSED} - _INNER
        notices.append(_of_no_effect("config.json", unknown, known))
    every = next((text[key] for key in PATTERN_KEYS if text.get(key) is not None), None)
    if text.get("layer_types") is not None and isinstance(every, int) and every > 0:
        if config.layer_types != alternating(config.num_hidden_layers, every):
            notices.append(
                f"config.json has layer_types and a sliding_window_pattern of {every}, which they "
                "contradict; layer_types count"
            )
    scaling = text.get("rope_scaling")
    if isinstance(scaling, Mapping) and "type" in scaling and "rope_type" not in scaling:
        notices.append(
            "config.json has a rope_scaling with a `type`, which is honoured; transformers 5 wants "
            "it called rope_type, and passes it over"
        )
    for part in (scaling, *_rope_parts(text)):
        if isinstance(part, Mapping) and "dynamic" in (part.get("rope_type"), part.get("type")):
            notices.append(
                "config.json has a dynamic rope, which changes nothing up to the context of "
                f"{config.max_position_embeddings} tokens, and gemelo goes no further"
            )
    return tuple(notices)


def generation_notices(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence on what a generation_config.json asks for that gemelo does not do unasked, and one
    on what nobody here knows."""
    notices = []
    asked = [
        f"{name} = {raw[name]!r:.40}"
        for name, usual in _USUAL.items()
        if raw.get(name) is not None and raw[name] != usual
    ]
    if asked:
        notices.append(
            f"generation_config.json asks for {', '.join(asked)}; defaults here are the family's, "
            "and options change them"
        )
    known = {*_USUAL, *_GENERATION_IDLE}
    if unknown := [*_strangers(raw, known, "")]:
        notices.append(_of_no_effect("generation_config.json", unknown, known))
    return tuple(notices)


def _is_whole(raw: Mapping[str, Any]) -> bool:
    """Whether a file is of a model with parts, whose decoder stands in `text_config`."""
    return not str(raw["model_type"]).endswith("_text")


def _architectures(raw: Mapping[str, Any]) -> list[str]:
    given = raw.get("architectures")
    return [name for name in given if isinstance(name, str)] if isinstance(given, list) else []


def _packing(key: str, value: Any) -> str:
    """What packed them: a method and its bits."""
    facts = value if isinstance(value, Mapping) else {}
    method = facts.get("quant_method") or facts.get("format")
    method = method or ("MLX" if key == "quantization" else "no method named")
    bits = facts.get("bits") or facts.get("w_bit")
    for size in (4, 8):
        bits = size if facts.get(f"load_in_{size}bit") else bits
    return f"{method!s:.40}, {bits!s:.8} bits" if bits else f"{method!s:.40}"


def _unknown(raw: Mapping[str, Any], config: ModelConfig) -> Iterator[str]:
    """Names of settings that are not known in the part of the file where they stand."""
    is_3n = config.model_type.startswith("gemma3n")
    fields = _fields(type(config)) - _INNER
    common = _IDLE | _GENERATION
    text = fields | common | _ROPE | set(REFUSED) | set(PATTERN_KEYS)
    if not _is_whole(raw):
        yield from _strangers(raw, text, "")
        yield from _rope_strangers(raw, "")
        return
    decoder, vision, audio = (section(raw, key) for key in PARTS)
    outer = {name for name in fields if name.endswith(("_id", "_index", "_per_image"))}
    # Some programs repeat the decoder's numbers at the top, where nobody reads them.
    outer |= {name for name in fields if raw.get(name) == vars(config)[name]}
    yield from _strangers(raw, common | {*PARTS, "tie_word_embeddings", *ALIASES} | outer, "")
    yield from _strangers(decoder, text, "text_config.")
    yield from _rope_strangers(decoder, "text_config.")
    seen = (
        _fields(Vision3nConfig) | _VISION_3N_IDLE if is_3n else _fields(VisionConfig) | _VISION_IDLE
    )
    yield from _strangers(vision, common | seen, "vision_config.")
    yield from _strangers(audio, common | _fields(AudioConfig), "audio_config.")


def _fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _strangers(part: Mapping[str, Any], known: set[str], where: str) -> Iterator[str]:
    for name, value in part.items():
        is_known = name in known or name.startswith("_") or value in (None, _PUBLISHED.get(name))
        if not is_known:
            yield where + name


def _rope_parts(text: Mapping[str, Any]) -> list[Any]:
    given = section(text, "rope_parameters")
    return [given.get(kind) for kind in LAYER_TYPES]


def _rope_strangers(text: Mapping[str, Any], where: str) -> Iterator[str]:
    parts = (section(text, "rope_scaling"), *_rope_parts(text))
    labels = ("rope_scaling", *(f"rope_parameters.{kind}" for kind in LAYER_TYPES))
    for label, part in zip(labels, parts, strict=True):
        if isinstance(part, Mapping):
            yield from (f"{where}{label}.{key}" for key in unknown_keys(part))


def _of_no_effect(file: str, unknown: list[str], known: set[str]) -> str:
    """The notice of settings that nobody knows, with known ones that they may be meant as."""
    names = listed(unknown, show=lambda name: _guessed(name, known))
    return f"{file} has settings of no effect here: {names}"


def _guessed(name: str, known: set[str]) -> str:
    """A name for the notice, with the known one that it looks like."""
    own = name.rpartition(".")[2]
    like = get_close_matches(own, sorted(known), 1, 0.8) if len(own) <= _LONGEST else []
    return f"{name!r:.60}" + (f" (did you mean {like[0]}?)" if like and like[0] != own else "")
