"""The summary agrees with the cost model, with the bytes held, and with the caches allocated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from gemelo.checkpoints.load import Checkpoint, load_checkpoint
from gemelo.config import FULL, Gemma3Config, num_parameters
from gemelo.engine.engine import Engine
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inspection.summary import Summary, summarise
from gemelo.models.multimodal import Gemma3Tree
from tests.conftest import TINY, TINY_VISION, randomise


def summary_of(config: Gemma3Config, tokenizer: Tokenizer) -> tuple[Checkpoint, Summary]:
    tree = Gemma3Tree(config)
    randomise(tree)
    checkpoint = Checkpoint(Path("m"), config, tree, tokenizer, "f32")
    return checkpoint, summarise(checkpoint)


def test_parameters_are_the_cost_models(config: Gemma3Config, tiny_tokenizer: Tokenizer) -> None:
    _, summary = summary_of(config, tiny_tokenizer)
    counted = num_parameters(config)
    assert summary.parameters == sum(counted.values())
    assert summary.parts["embed_tokens"].parameters == counted["embedding"]
    inside = sum(layer.parameters for layer in summary.layers)
    assert inside + summary.parts["norm"].parameters == counted["layers"]


def test_layers_tell_their_kind(config: Gemma3Config, tiny_tokenizer: Tokenizer) -> None:
    _, summary = summary_of(config, tiny_tokenizer)
    assert [layer.type for layer in summary.layers] == list(config.layer_types)
    for layer in summary.layers:
        assert layer.window == (None if layer.type == FULL else config.sliding_window)
        assert layer.formats == ("f32",)
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        assert layer.weights["self_attn.q_proj"].shape == (heads, width)
        assert layer.weights["input_layernorm"].shape == (width,)


def test_kv_bytes_are_those_that_a_session_allocates(
    config: Gemma3Config, tiny_tokenizer: Tokenizer
) -> None:
    checkpoint, summary = summary_of(config, tiny_tokenizer)
    cache = Engine(checkpoint.decoder, tiny_tokenizer).cache()
    cache.reserve(config.max_position_embeddings)
    assert summary.kv_bytes == {config.max_position_embeddings: cache.nbytes}


def test_a_quantised_file_is_told_as_it_is_held(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    summary = summarise(checkpoint)
    assert summary.bytes == checkpoint.weights_bytes
    assert summary.parameters == sum(num_parameters(checkpoint.config).values())
    query = summary.layers[0].weights["self_attn.q_proj"]
    assert query.format == "q8_0" and query.bytes == query.parameters * 34 // 32
    assert summary.layers[0].weights["input_layernorm"].format == "f32"
    assert summary.parts["embed_tokens"].formats == ("q8_0",)
    assert "lm_head" not in summary.parts and not summary.chat_template


def test_a_widened_file_is_told_as_it_is_held(tiny_checkpoint: Path) -> None:
    summary = summarise(load_checkpoint(tiny_checkpoint, "bf16"))
    query = summary.layers[0].weights["self_attn.q_proj"]
    assert query.format == "bf16" and query.bytes == 2 * query.parameters


def test_an_untied_head_and_a_vision_tower_have_their_own_sums(tiny_tokenizer: Tokenizer) -> None:
    config = dataclasses.replace(
        TINY["grouped-scaled"], tie_word_embeddings=False, vision=TINY_VISION
    )
    checkpoint, summary = summary_of(config, tiny_tokenizer)
    assert summary.parts["lm_head"].parameters == config.vocab_size * config.hidden_size
    assert summary.parameters == sum(num_parameters(config).values())
    everything = sum(p.numel() for p in checkpoint.tree.parameters())
    beside = sum(tower.parameters for tower in summary.towers.values())
    assert summary.parameters + beside == everything
    assert set(summary.towers) == {"vision_tower", "multi_modal_projector"}


def test_json_has_a_layer_for_every_layer(config: Gemma3Config, tiny_tokenizer: Tokenizer) -> None:
    _, summary = summary_of(config, tiny_tokenizer)
    said = summary.to_json()
    assert [layer["index"] for layer in said["layers"]] == list(range(config.num_hidden_layers))
    assert said["parameters"] == summary.parameters
    assert said["kv_bytes"] == {str(k): v for k, v in summary.kv_bytes.items()}


def test_no_weight_is_read(tiny_tokenizer: Tokenizer) -> None:
    config = TINY["one-kv-head"]
    with torch.device("meta"):
        tree = Gemma3Tree(config)
    summary = summarise(Checkpoint(Path("m"), config, tree, tiny_tokenizer, "f32"))
    assert summary.parameters == sum(num_parameters(config).values())
