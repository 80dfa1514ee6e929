"""Gemma 3n's config.json: alone and with towers, and the list that slicing leaves too long."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3nConfig as TheirConfig
from transformers import Gemma3nTextConfig as TheirTextConfig

from gemelo.config import Gemma3nConfig, read_config
from gemelo.config.gemma3n import spare_layer_types
from gemelo.errors import FileFormatError, UnsupportedError
from tests.gemma3n import MIXED_3N

PUBLISHED: dict[str, Any] = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "model_type": "gemma3n",
    "text_config": {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 30,
        "intermediate_size": [8192] * 30,
        "num_kv_shared_layers": 10,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": None,
        "query_pre_attn_scalar": 256,
    },
    "vision_config": {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc"},
    "audio_config": {"model_type": "gemma3n_audio", "conf_num_hidden_layers": 12},
    "eos_token_id": [1, 106],
    "audio_soft_tokens_per_image": 188,
    "image_token_id": 262145,
}


def test_a_multimodal_config_is_read_and_written_whole() -> None:
    config = read_config(PUBLISHED)
    assert isinstance(config, Gemma3nConfig)
    assert config.is_multimodal and config.model_type == "gemma3n"
    assert config.ffn_widths == (8192,) * 30 and config.kv_layers == range(20)
    written = config.to_hf()
    assert read_config(written) == config and hash(read_config(written)) == hash(config)
    for key in PUBLISHED.keys() - {"text_config"}:
        assert written[key] == PUBLISHED[key], key
    assert written["boa_token_id"] == 256000 and written["audio_token_id"] == 262273
    assert "vision_config" not in written["text_config"]


def test_the_reference_reads_what_we_write() -> None:
    raw = {k: v for k, v in read_config(PUBLISHED).to_hf().items() if k != "architectures"}
    theirs = TheirConfig(**raw)
    assert theirs.text_config.intermediate_size == [8192] * 30
    assert theirs.audio_config.conf_num_hidden_layers == 12
    back = read_config(theirs.to_dict())
    assert isinstance(back, Gemma3nConfig) and back.vision_config and back.audio_config
    assert back.to_hf()["text_config"] == raw["text_config"]
    alone = {k: v for k, v in MIXED_3N.to_hf().items() if k != "architectures"}
    assert read_config(TheirTextConfig(**alone).to_dict()) == MIXED_3N


def test_towers_that_are_missing_or_null() -> None:
    bare = read_config({"model_type": "gemma3n"})
    assert bare.is_multimodal and bare.to_hf()["vision_config"] == {}
    deaf = read_config(PUBLISHED | {"audio_config": None})
    assert deaf.is_multimodal and deaf.to_hf()["audio_config"] is None
    neither = read_config(PUBLISHED | {"audio_config": None, "vision_config": None})
    assert neither.model_type == "gemma3n_text"
    with pytest.raises(FileFormatError, match="vision_config = 3"):
        read_config(PUBLISHED | {"vision_config": 3})
    with pytest.raises(FileFormatError, match="boi_token_id"):
        read_config(PUBLISHED | {"boi_token_id": "x"})


def sliced(types: list[str]) -> dict[str, Any]:
    return PUBLISHED | {"text_config": PUBLISHED["text_config"] | {"layer_types": types}}


def test_types_that_slicing_left_are_dropped_where_nobody_can_err() -> None:
    pattern = ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(35)]
    assert spare_layer_types(sliced(pattern)) == 5
    assert read_config(sliced(pattern)) == read_config(PUBLISHED)
    assert spare_layer_types(sliced(pattern[:30])) == spare_layer_types(PUBLISHED) == 0
    for types in (pattern[1:] + pattern[:1], pattern[:29], ["full_attention"] * 35):
        assert spare_layer_types(sliced(types)) == 0
        with pytest.raises(FileFormatError, match=f"{len(types)} layer_types"):
            read_config(sliced(types))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"altup_active_idx": 1}, "altup_active_idx = 1"),
        ({"altup_correct_scale": False}, "altup_correct_scale = False"),
    ],
)
def test_what_it_cannot_run_it_names(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_config(PUBLISHED["text_config"] | change)
