"""Settings files as they were published: each is read without a word."""

from __future__ import annotations

from typing import Any

import pytest

from gemelo.config import Submodel, read_config, setting_notices
from gemelo.config.gemma3n import Gemma3nConfig
from gemelo.config.settings import check_kind, check_plain, generation_notices
from gemelo.errors import UnsupportedError
from tests.published_files import E2B, E4B, GENERATION, PUBLISHED, SAVED_AGAIN, SEEING, SMALL


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
