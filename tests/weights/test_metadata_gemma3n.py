"""Gemma 3n's facts both ways, through files of every age, and what runtimes have built in."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from transformers import Gemma3nTextConfig

from gemelo.errors import InputError, UnsupportedError
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf
from gemelo.weights.metadata import config_from_gguf, config_to_gguf
from gemelo.weights.metadata_gemma3n import built_in
from tests.text_configs import SIZES_3N, published_3n

SHAPES = ("laurel_rank", "vocab_size_per_layer_input")  # facts that no key holds


@pytest.mark.parametrize("size", SIZES_3N)
def test_to_gguf_and_back_through_a_file(size: str, tmp_path: Path) -> None:
    config = published_3n(size)
    entries = config_to_gguf(config)
    assert entries["gemma3n.feed_forward_length"] == SIZES_3N[size][1]
    assert config_from_gguf(entries) == config
    write_gguf(tmp_path / "facts.gguf", entries, [])
    assert config_from_gguf(GGUFFile(tmp_path / "facts.gguf").metadata) == config


@pytest.mark.parametrize("size", SIZES_3N)
def test_transformers_reads_the_same_facts(size: str) -> None:
    config = config_from_gguf(config_to_gguf(published_3n(size)))
    theirs = Gemma3nTextConfig(**config)
    for field, value in config.items():
        assert getattr(theirs, field) == value, field


@pytest.mark.parametrize(
    ("scale", "share"),
    [
        (1.6448536, 0.95),
        (1.6448533535003662, 0.95),  # as it comes out of a float32 quantile
        (0.6744898, 0.75),
        (0.0, 0.0),
        (-math.inf, 0.0),
        (-1.0, 0.0),
    ],
)
def test_sparsity_is_read_from_quantiles(scale: float, share: float) -> None:
    entries = config_to_gguf(published_3n("E2B"))
    entries["gemma3n.activation_sparsity_scale"] = np.full(30, scale, np.float32)
    assert config_from_gguf(entries)["activation_sparsity_pattern"] == [share] * 30


@pytest.mark.parametrize("share", [0.51, 0.75, 0.9, 0.95, 0.99, 0.123456 + 0.8])
def test_sparsity_comes_back(share: float) -> None:
    config = published_3n("E2B") | {"activation_sparsity_pattern": [share] * 4 + [0.0] * 26}
    assert config_from_gguf(config_to_gguf(config)) == config
    scalar = config_from_gguf(config_to_gguf(config | {"activation_sparsity_pattern": share}))
    assert scalar["activation_sparsity_pattern"] == [share] * 30


def test_a_share_up_to_a_half_cannot_be_told_from_a_dense_layer() -> None:
    for share in (0.5, 0.1):
        with pytest.raises(UnsupportedError, match=f"sparsity of {share}"):
            config_to_gguf(published_3n("E2B") | {"activation_sparsity_pattern": [share] * 30})


def test_widths_are_a_list_only_where_they_differ() -> None:
    config = published_3n("E4B") | {"intermediate_size": [16384] * 20 + [8192] * 15}
    entries = config_to_gguf(config)
    assert entries["gemma3n.feed_forward_length"] == config["intermediate_size"]
    entries["gemma3n.feed_forward_length"] = np.array(config["intermediate_size"], np.int32)
    assert config_from_gguf(entries) == config
    assert config_to_gguf(config | {"intermediate_size": 64})["gemma3n.feed_forward_length"] == 64


def test_no_size_of_gemma_3_is_mistaken_for_this_one() -> None:
    """34 layers stretch Gemma 3's rotary embedding; a sliced Gemma 3n of 34 layers is plain."""
    config = published_3n("E4B")
    for field in ("intermediate_size", "layer_types", "activation_sparsity_pattern"):
        config[field] = config[field][:34]
    config |= {"num_hidden_layers": 34, "num_kv_shared_layers": 14}
    entries = config_to_gguf(config)
    assert not any("scaling" in key for key in entries)
    assert config_from_gguf(entries) == config


def test_what_gguf_cannot_hold() -> None:
    config = published_3n("E2B")
    with pytest.raises(UnsupportedError, match="final_logit_softcapping"):
        config_to_gguf(config | {"final_logit_softcapping": None})
    full = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    rope = {"full_attention": full, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(UnsupportedError, match="'linear'"):
        config_to_gguf(config | {"rope_parameters": rope})
    for field in ("num_kv_shared_layers", "altup_num_inputs", "intermediate_size", "head_dim"):
        with pytest.raises(InputError, match=field):
            config_to_gguf({key: value for key, value in config.items() if key != field})


@pytest.mark.parametrize("size", SIZES_3N)
def test_published_models_are_what_runtimes_have_built_in(size: str) -> None:
    config = published_3n(size) | {"laurel_rank": 64}
    assert list(built_in(config)) == []
    layers = SIZES_3N[size][0]
    for change, words in (
        ({"laurel_rank": 32}, "laurel_rank 64 (here 32)"),
        ({"num_kv_shared_layers": 9}, f"here {layers - 9}"),
        ({"activation_sparsity_pattern": [0.95] * layers}, "first 10 layers"),
        ({"layer_types": ["full_attention"] * layers}, "multiple of 5"),
    ):
        (phrase,) = built_in(config | change)
        assert words in phrase
