"""Reading a config.json in all its generations, and the sums that follow from one."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3Config as TheirConfig
from transformers import Gemma3TextConfig as TheirTextConfig

from gemelo.config import (
    FULL,
    SLIDING,
    Gemma3Config,
    flops_per_token,
    num_parameters,
    read_config,
)
from gemelo.errors import FileFormatError, UnsupportedError
from tests.conftest import TINY
from tests.published import SIZES, published


@pytest.mark.parametrize(
    ("size", "embedding", "layers"),
    [
        ("270M", 167_772_160, 100_326_016),
        ("1B", 301_989_888, 697_896_064),
        ("4B", 671_252_480, 3_209_010_688),
        ("12B", 1_006_878_720, 10_759_155_456),
        ("27B", 1_409_630_208, 25_599_716_096),
    ],
)
def test_published_sizes(size: str, embedding: int, layers: int) -> None:
    config = read_config(published(size))
    assert num_parameters(config) == {"embedding": embedding, "layers": layers, "head": 0}
    assert config.layer_types[:6] == (SLIDING,) * 5 + (FULL,)
    assert len(config.layers_of(FULL)) == {"270M": 3, "1B": 4, "4B": 5, "12B": 8, "27B": 10}[size]
    assert config.rope_scaling_factor == (1.0 if size in ("270M", "1B") else 8.0)
    assert config.query_pre_attn_scalar == (168 if size == "27B" else 256)
    assert config.eos_token_id == ((1,) if size in ("270M", "1B") else (1, 106))


@pytest.mark.parametrize("size", SIZES)
def test_reading_what_we_write_changes_nothing(size: str) -> None:
    config = read_config(published(size))
    assert read_config(config.to_hf()) == config


def test_the_reference_reads_what_we_write(config: Gemma3Config) -> None:
    raw = {key: value for key, value in config.to_hf().items() if key != "architectures"}
    theirs = TheirTextConfig(**raw)
    assert read_config(theirs.to_dict()) == config
    assert theirs.rope_parameters["full_attention"].get("factor", 1.0) == config.rope_scaling_factor


def test_the_reference_reads_a_multimodal_one() -> None:
    config = read_config(published("4B"))
    raw = {key: value for key, value in config.to_hf().items() if key != "architectures"}
    assert read_config(TheirConfig(**raw).to_dict()) == config


def test_a_pattern_other_than_six() -> None:
    raw = published("270M") | {"sliding_window_pattern": 3}
    assert read_config(raw).layers_of(FULL) == [2, 5, 8, 11, 14, 17]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "rope_type 'longrope'"),
        ({"layer_types": ["chunked"] * 18}, "'chunked'"),
    ],
)
def test_what_it_cannot_run_it_names(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_config(published("270M") | change)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": "18"},
        {"hidden_size": 1.5},
        {"hidden_size": True},
        {"head_dim": 3},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": float("nan")},
        {"num_key_value_heads": 3},
        {"layer_types": ["full_attention"]},
        {"sliding_window_pattern": "x"},
        {"rope_scaling": {"rope_type": "linear", "factor": "8"}},
        {"rope_scaling": "linear"},
        {"rope_parameters": {"full_attention": 8}},
        {"layer_types": 18},
    ],
)
def test_absurd_numbers_are_one_clear_line(change: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError) as caught:
        read_config(published("270M") | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": [1]},
        {"vision_config": "siglip"},
        {"vision_config": {"layer_norm_eps": "small"}},
        {"vision_config": {"patch_size": 0}},
        {"vision_config": {"patch_size": 13}},
        {"vision_config": {"num_attention_heads": 17}},
        {"mm_tokens_per_image": 4097},
    ],
)
def test_an_eye_that_cannot_be_is_one_clear_line(change: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError) as caught:
        read_config(published("4B") | change)
    assert "\n" not in str(caught.value)


def test_flops_count_every_matrix_once() -> None:
    config = TINY["one-kv-head"]
    matrices = sum(num_parameters(config).values())
    seen = 11 * 5 + 2 * 100  # 13 layers in a pattern of 6: two see everything
    assert flops_per_token(config, 100) == 2 * matrices + 4 * seen * 4 * 16
