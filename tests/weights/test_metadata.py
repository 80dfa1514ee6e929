"""Facts both ways: the five published sizes, the dirty files, and the absurd ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Gemma3TextConfig

from gemelo.errors import FileFormatError, InputError, UnsupportedError
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf
from gemelo.weights.metadata import config_from_gguf, config_to_gguf
from tests.text_configs import SIZES, bare, published

# ---- the published sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_bare_file_gives_the_published_config(size: str) -> None:
    assert config_from_gguf(bare(size)) == published(size)


@pytest.mark.parametrize("size", SIZES)
def test_to_gguf_and_back(size: str) -> None:
    entries = config_to_gguf(published(size))
    assert config_from_gguf(entries) == published(size)
    for key, value in bare(size).items():
        if key in entries:
            assert entries[key] == value


@pytest.mark.parametrize("size", SIZES)
def test_to_gguf_and_back_through_a_file(size: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "facts.gguf", config_to_gguf(published(size)), [])
    assert config_from_gguf(GGUFFile(tmp_path / "facts.gguf").metadata) == published(size)


@pytest.mark.parametrize("size", SIZES)
def test_transformers_reads_the_same_facts(size: str) -> None:
    config = config_from_gguf(bare(size))
    theirs = Gemma3TextConfig(**config)
    for field, value in config.items():
        assert getattr(theirs, field) == value, field


def test_the_real_file(real_gguf: Path) -> None:
    metadata = GGUFFile(real_gguf).metadata
    assert config_from_gguf(metadata) == published("270m")
    written = config_to_gguf(published("270m"))
    shared = written.keys() & metadata.keys()
    assert len(shared) == 15
    for key in shared:
        same = pytest.approx(metadata[key]) if isinstance(written[key], float) else metadata[key]
        assert written[key] == same, key


# ---- what differs from the usual -----------------------------------------------------------------


def rope(metadata: dict[str, Any]) -> tuple[float, float, float]:
    """(global base, global factor, local base)"""
    both = config_from_gguf(metadata)["rope_parameters"]
    full, local = both["full_attention"], both["sliding_attention"]
    assert local.keys() == {"rope_type", "rope_theta"} and local["rope_type"] == "default"
    assert (full["rope_type"] == "linear") == ("factor" in full)
    return full["rope_theta"], full.get("factor", 1.0), local["rope_theta"]


@pytest.mark.parametrize("size", SIZES)
def test_rope_keys_of_all_converters(size: str) -> None:
    usual = SIZES[size][-1]
    for extra, want in (
        ({}, (1e6, usual, 1e4)),
        ({"rope.freq_base": 5e5}, (5e5, usual, 1e4)),
        ({"rope.freq_base_swa": 2e4}, (1e6, usual, 2e4)),
        ({"rope.global.freq_base": 3e5, "rope.local.freq_base": 3e4}, (3e5, usual, 3e4)),
        ({"rope.global.freq_base": 3e5, "rope.freq_base": 5e5}, (5e5, usual, 1e4)),
        ({"rope.scaling.type": "linear"}, (1e6, usual, 1e4)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, (1e6, 4, 1e4)),
        ({"rope.scaling.factor": 4.0}, (1e6, 4, 1e4)),
        ({"rope.scaling.factor": 1.0}, (1e6, 1, 1e4)),
        ({"rope.scaling.type": "none"}, (1e6, 1, 1e4)),
    ):
        assert rope(bare(size) | {f"gemma3.{key}": value for key, value in extra.items()}) == want


def test_a_long_model_without_scaling_says_so() -> None:
    config = published("4b")
    config["rope_parameters"]["full_attention"] = {"rope_type": "default", "rope_theta": 1e6}
    entries = config_to_gguf(config)
    assert entries["gemma3.rope.scaling.type"] == "none"
    assert config_from_gguf(entries) == config


def sliding(metadata: dict[str, Any]) -> list[bool]:
    return [kind == "sliding_attention" for kind in config_from_gguf(metadata)["layer_types"]]


def test_patterns() -> None:
    key = "gemma3.attention.sliding_window_pattern"
    usual = [i % 6 != 5 for i in range(18)]
    assert sliding(bare("270m")) == sliding(bare("270m") | {key: 6}) == usual
    assert sliding(bare("270m") | {key: 3}) == [i % 3 != 2 for i in range(18)]
    assert sliding(bare("270m") | {key: 1}) == [False] * 18
    irregular = np.random.default_rng(0).random(18) < 0.5
    assert sliding(bare("270m") | {key: irregular}) == irregular.tolist()


@pytest.mark.parametrize("period", [1, 2, 6, 7, 19, None])
def test_patterns_go_both_ways(period: int | None) -> None:
    config = published("270m")
    if period is None:
        full = [i in (2, 3, 11) for i in range(18)]
    else:
        full = [(i + 1) % period == 0 for i in range(18)]
    config["layer_types"] = [
        "full_attention" if is_full else "sliding_attention" for is_full in full
    ]
    entries = config_to_gguf(config)
    assert ("gemma3.attention.sliding_window_pattern" in entries) == (period != 6)
    assert config_from_gguf(entries) == config


def test_token_ids() -> None:
    ids = {"bos": 5, "eos": 106, "padding": 7}
    config = config_from_gguf(
        bare("270m") | {f"tokenizer.ggml.{key}_token_id": id for key, id in ids.items()}
    )
    assert [config[f"{key}_token_id"] for key in ("bos", "eos", "pad")] == [5, 106, 7]
    listed = published("270m") | {
        "eos_token_id": [106, 1],
        "pad_token_id": None,
        "bos_token_id": [],
    }
    entries = config_to_gguf(listed)
    ids_written = [entries[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "padding")]
    assert ids_written == [2, 106, 0]


def test_the_vocabulary_is_the_tokenizers_or_the_key() -> None:
    metadata = bare("270m") | {"gemma3.vocab_size": 99}
    assert config_from_gguf(metadata)["vocab_size"] == 262144
    del metadata["tokenizer.ggml.tokens"]
    assert config_from_gguf(metadata)["vocab_size"] == 99


def test_a_final_softcap_is_kept_unless_it_is_a_known_leftover() -> None:
    metadata = bare("270m") | {"gemma3.final_logit_softcapping": 30.0}
    config = config_from_gguf(metadata)
    assert config["final_logit_softcapping"] == 30
    assert config_from_gguf(config_to_gguf(config)) == config
    leftover = config_from_gguf(metadata | {"gemma3.rope.global.freq_base": 1e6})
    assert "final_logit_softcapping" not in leftover


def test_an_epsilon_is_the_decimal_it_was() -> None:
    metadata = bare("1b") | {"gemma3.attention.layer_norm_rms_epsilon": float(np.float32(1e-5))}
    assert config_from_gguf(metadata)["rms_norm_eps"] == 1e-5


# ---- refusals ------------------------------------------------------------------------------------


def test_other_architectures_are_named() -> None:
    with pytest.raises(UnsupportedError, match="'llama' model; gemelo reads gemma3"):
        config_from_gguf({"general.architecture": "llama"})
    for metadata in ({}, {"general.architecture": 3}):
        with pytest.raises(FileFormatError, match="general.architecture"):
            config_from_gguf(metadata)


ABSURD: list[tuple[str, Any]] = [
    *[("block_count", value) for value in (0, -1, 1 << 31, 1 << 63, 2.0, "18", True, None)],
    ("block_count", np.array([18])),
    ("embedding_length", 0),
    ("embedding_length", 1 << 40),
    ("feed_forward_length", np.array([2048] * 17 + [1024])),
    ("feed_forward_length", np.array([2048] * 17)),
    ("attention.head_count", 0),
    ("attention.head_count_kv", 3),
    ("attention.key_length", 1 << 20),
    ("attention.value_length", 128),
    ("attention.sliding_window", 0),
    ("attention.sliding_window_pattern", 0),
    ("attention.sliding_window_pattern", -6),
    ("attention.sliding_window_pattern", np.array([True])),
    ("attention.sliding_window_pattern", np.arange(18)),
    ("attention.layer_norm_rms_epsilon", 0.0),
    ("attention.layer_norm_rms_epsilon", float("nan")),
    ("attention.layer_norm_rms_epsilon", b"x"),
    ("rope.freq_base", -1.0),
    ("rope.freq_base_swa", float("inf")),
    ("rope.global.freq_base", "1e6"),
    ("rope.scaling.factor", 0.0),
    ("final_logit_softcapping", -30.0),
]


@pytest.mark.parametrize("key, value", ABSURD, ids=lambda value: str(value)[:30])
def test_absurd_values_are_refused_and_named(key: str, value: Any) -> None:
    metadata = bare("270m")
    metadata[f"gemma3.{key}"] = value
    with pytest.raises(FileFormatError) as caught:
        config_from_gguf(metadata)
    message = str(caught.value)
    assert len(message) < 300 and any(part in message for part in (key, "key/value heads"))


@pytest.mark.parametrize("value", [-1, 1 << 40, 0.5, "2"])
def test_absurd_token_ids_are_refused(value: Any) -> None:
    with pytest.raises(FileFormatError, match="bos_token_id"):
        config_from_gguf(bare("270m") | {"tokenizer.ggml.bos_token_id": value})


def test_a_missing_vocabulary_is_named() -> None:
    metadata = bare("270m") | {"tokenizer.ggml.tokens": []}
    with pytest.raises(FileFormatError, match="gemma3.vocab_size"):
        config_from_gguf(metadata)


@pytest.mark.parametrize("key", [k for k in bare("270m") if k.startswith("gemma3.")])
def test_missing_values_are_named(key: str) -> None:
    metadata = bare("270m")
    del metadata[key]
    with pytest.raises(FileFormatError, match=key):
        config_from_gguf(metadata)


def test_other_rope_scalings_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="yarn"):
        config_from_gguf(bare("1b") | {"gemma3.rope.scaling.type": "yarn"})


def test_configs_that_gguf_cannot_hold() -> None:
    config = published("1b")
    with pytest.raises(UnsupportedError, match="query_pre_attn_scalar 168"):
        config_to_gguf(config | {"query_pre_attn_scalar": 168})
    plain = {"rope_type": "default", "rope_theta": 1e4}
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    for full, local in ((yarn, plain), (plain, linear)):
        parameters = {"full_attention": full, "sliding_attention": local}
        with pytest.raises(UnsupportedError, match="rope"):
            config_to_gguf(config | {"rope_parameters": parameters})
    for field in ("head_dim", "rope_parameters", "layer_types", "vocab_size"):
        with pytest.raises(InputError, match=field):
            config_to_gguf({key: value for key, value in config.items() if key != field})
