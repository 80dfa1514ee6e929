"""The facts of a layer, and those in which the two families differ."""

from __future__ import annotations

import dataclasses

import pytest

from gemelo.config import FULL, SLIDING, Gemma3Config, Gemma3nConfig, Modalities, VisionConfig
from gemelo.errors import UnsupportedError


def test_the_layers_of_a_gemma3() -> None:
    config = Gemma3Config(num_hidden_layers=6, rope_scaling_factor=8.0)
    local, full = config.layer(0), config.layer(5)
    assert (local.type, local.window) == (SLIDING, config.sliding_window)
    assert (full.type, full.window) == (FULL, None)
    assert full.rope == config.rope(FULL) != local.rope
    assert full.rope.frequencies(4)[0] == 1 / 8 and local.rope.frequencies(4)[0] == 1
    for layer in config.layer_configs:
        assert layer.owns_keys and layer.std_multiplier is None
        assert layer.intermediate_size == config.intermediate_size


def test_the_layers_of_e4b() -> None:
    config = Gemma3nConfig()
    donors = [layer.kv_donor for layer in config.layer_configs]
    assert donors == [None] * 20 + [18, 18, 18, 18, 19] * 3
    sparse = [layer.std_multiplier for layer in config.layer_configs]
    assert sparse[10:] == [None] * 25
    assert sparse[:10] == [pytest.approx(1.6449, abs=1e-4)] * 10  # 95 % of a normal lies below


def test_layers_are_those_of_the_config_that_is_asked() -> None:
    whole = Gemma3nConfig()
    assert whole.layer(0).intermediate_size == 16384  # made once, and not copied along
    half = dataclasses.replace(whole, intermediate_size=(8192,) * 35)
    assert half.layer(0).intermediate_size == 8192 and half != whole


def test_what_a_gemma3_takes_in() -> None:
    text, seeing = Gemma3Config(), Gemma3Config(vision=VisionConfig())
    assert text.modalities == Modalities() and text.bidirectional_image_tokens == 0
    image = seeing.modalities.image
    assert image is not None and seeing.modalities.audio is None
    assert (image.begin_token_id, image.token_id, image.end_token_id) == (255999, 262144, 256000)
    assert image.num_tokens == seeing.bidirectional_image_tokens == 256
    assert seeing.vision is not None
    assert (seeing.vision.image_mean, seeing.vision.image_std) == (0.5, 0.5)
    assert seeing.vision.image_sizes == (896,)


def test_what_a_gemma3n_takes_in() -> None:
    config = Gemma3nConfig(vision_config={}, audio_config={})
    image, audio = config.modalities.image, config.modalities.audio
    assert image is not None and audio is not None and config.vision is not None
    assert (image.begin_token_id, image.token_id, image.end_token_id) == (255999, 262145, 262144)
    assert (audio.begin_token_id, audio.token_id, audio.end_token_id) == (256000, 262273, 262272)
    assert (image.num_tokens, audio.num_tokens) == (256, 188)
    assert config.bidirectional_image_tokens == 0  # its images are causal
    assert (config.vision.image_mean, config.vision.image_std) == (0.0, 1.0)
    assert config.vision.image_sizes == (256, 512, 768)


def test_towers_can_be_left_out() -> None:
    config = Gemma3nConfig(vision_config={}, audio_config={})
    deaf = config.without_towers("audio_config")
    assert deaf.audio is None and deaf.vision == config.vision
    assert config.without_towers("vision_config", "audio_config").model_type == "gemma3n_text"
    seeing = Gemma3Config(vision=VisionConfig())
    assert seeing.without_towers("audio_config") == seeing
    assert seeing.without_towers("vision_config").model_type == "gemma3_text"


def test_what_only_a_gemma3n_has() -> None:
    text, nested = Gemma3Config(), Gemma3nConfig()
    assert (text.norm_offset, nested.norm_offset) == (1.0, 0.0)
    assert (text.is_matformer, nested.is_matformer) == (False, True)
    assert (text.altup_num_inputs, nested.altup_num_inputs) == (1, 4)
    assert (text.hidden_size_per_layer_input, text.vocab_size_per_layer_input) == (0, 0)
    assert (text.num_kv_shared_layers, text.laurel_rank) == (0, 0)
    with pytest.raises(UnsupportedError, match="gemma3_text has no sub-models; Gemma 3n has"):
        text.nested([0], (1,))
