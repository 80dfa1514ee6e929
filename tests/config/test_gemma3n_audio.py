"""The ear's config: the reference's defaults, what is refused, what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import Gemma3nAudioConfig

from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.errors import FileFormatError, GemeloError, UnsupportedError


def test_defaults_are_the_reference_class_s() -> None:
    theirs = Gemma3nAudioConfig().to_dict()
    for field in dataclasses.fields(AudioConfig):
        wanted = theirs[field.name]
        wanted = tuple(map(tuple, wanted)) if "sscp_conv_kernel" in field.name else wanted
        wanted = tuple(map(tuple, wanted)) if "sscp_conv_stride" in field.name else wanted
        wanted = tuple(wanted) if field.name == "sscp_conv_channel_size" else wanted
        assert getattr(AudioConfig(), field.name) == wanted, field.name


def test_a_file_s_lists_and_unknown_words_are_read() -> None:
    config = AudioConfig.from_hf(
        Gemma3nAudioConfig().to_dict()
        | {"hidden_size": 64, "sscp_conv_kernel_size": [[5, 3], [3, 3]], "torch_dtype": "bfloat16"}
    )
    assert config == AudioConfig(hidden_size=64, sscp_conv_kernel_size=((5, 3), (3, 3)))


def test_derived() -> None:
    config = AudioConfig()
    assert (config.head_dim, config.num_past, config.num_bands) == (192, 12, (64, 32))
    assert config.frames_per_token == 16
    frames = {1: 1, 48: 3, 97: 7, 248: 16, 497: 32, 997: 63, 2997: 188}
    assert {count: config.num_tokens(count) for count in frames} == frames


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": True},
        {"hidden_size": "1536"},
        {"hidden_size": 1 << 40},
        {"hidden_size": 1540},
        {"conf_num_hidden_layers": -1},
        {"conf_attention_context_left": 0},
        {"conf_attention_context_right": -1},
        {"conf_attention_logit_cap": 0.0},
        {"conf_residual_weight": float("nan")},
        {"sscp_conv_group_norm_eps": -1e-3},
        {"sscp_conv_channel_size": [128]},
        {"sscp_conv_channel_size": [[128, 1], 32]},
        {"sscp_conv_channel_size": 128},
        {"sscp_conv_kernel_size": [3, 3]},
        {"sscp_conv_kernel_size": [[3, 3], [3, 0]]},
        {"sscp_conv_kernel_size": [[3, 300], [3, 3]]},
        {"sscp_conv_kernel_size": [[3, 3], [3, [3]]]},
        {"sscp_conv_stride_size": {"a": 2}},
    ],
)
def test_nonsense_is_told_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError) as caught:
        AudioConfig.from_hf(change)
    assert "\n" not in str(caught.value) and next(iter(change)) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "whisper"}, "whisper"),
        ({"conf_attention_context_right": 2}, "context_right"),
        ({"sscp_conv_stride_size": [[4, 2], [2, 2]]}, "steps 4"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        AudioConfig.from_hf(change)
    assert issubclass(UnsupportedError, GemeloError)
