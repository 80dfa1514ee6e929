"""The summary agrees with the cost model, with the bytes held, and with the caches allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from gemelo.checkpoints.load import load_checkpoint
from gemelo.config import FULL, Gemma3Config, ModelConfig, num_parameters
from gemelo.config.parameters import decoder_shapes, parameter_shapes
from gemelo.engine.engine import Engine
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from gemelo.inspection.summary import Summary, summarise
from gemelo.kernels.quants import FORMATS, Packed, pack
from gemelo.weights.tensors import Weights
from tests.conftest import TINY, TINY_VISION, tiny_vocabulary
from tests.gemma3n import TINY_3N
from tests.hollow import hollow, hollow_towers


@dataclasses.dataclass(frozen=True)
class Made:
    """A checkpoint by hand."""

    config: ModelConfig
    weights: Weights
    tower_weights: Mapping[str, Packed]
    tokenizer: PreTrainedTokenizer
    path: Path = Path("m")
    format: str = "f32"
    details: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizer:
    return PreTrainedTokenizer.from_gguf(tiny_vocabulary())


def made(config: ModelConfig, tokenizer: PreTrainedTokenizer, format: str = "f32") -> Made:
    """Its weights take no memory, and nobody may read them."""
    return Made(config, hollow(config, format), hollow_towers(config, format), tokenizer)


def summary_of(config: ModelConfig, tokenizer: PreTrainedTokenizer) -> Summary:
    return summarise(made(config, tokenizer))


def test_parameters_are_the_cost_models(
    config: Gemma3Config, tokenizer: PreTrainedTokenizer
) -> None:
    summary = summary_of(config, tokenizer)
    counted = num_parameters(config)
    assert summary.parameters == sum(counted.values())
    assert summary.parts["embed_tokens"].parameters == counted["embedding"]
    inside = sum(layer.parameters for layer in summary.layers)
    assert inside + summary.parts["norm"].parameters == counted["layers"]


def test_layers_tell_their_kind(config: Gemma3Config, tokenizer: PreTrainedTokenizer) -> None:
    summary = summary_of(config, tokenizer)
    assert [layer.type for layer in summary.layers] == list(config.layer_types)
    for layer in summary.layers:
        assert layer.window == (None if layer.type == FULL else config.sliding_window)
        assert layer.formats == ("f32",)
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        assert layer.weights["self_attn.q_proj"].shape == (heads, width)
        assert layer.weights["input_layernorm"].shape == (width,)


@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize(
    "config",
    [
        TINY["blocks-of-32"],
        dataclasses.replace(TINY["blocks-of-32"], head_dim=64),
        dataclasses.replace(TINY_3N, head_dim=64),
    ],
    ids=["narrow heads", "wide heads", "3n"],
)
def test_kv_bytes_are_those_that_a_session_allocates(
    config: ModelConfig, tokenizer: PreTrainedTokenizer, format: str
) -> None:
    weights = {name: _zeros(shape, format) for name, shape in decoder_shapes(config).items()}
    checkpoint = dataclasses.replace(made(config, tokenizer), weights=Weights(weights))
    cache = Engine(NativeDecoder(config, checkpoint.weights), tokenizer).cache()
    cache.make_room(1, config.max_position_embeddings)
    assert summarise(checkpoint).kv_bytes == {config.max_position_embeddings: cache.nbytes}


def _zeros(shape: tuple[int, ...], format: str) -> Packed:
    """Of a weight; the streams' coefficients, whose rows are no whole blocks, in float32."""
    whole = len(shape) == 2 and shape[1] % FORMATS[format].block == 0
    return pack(np.zeros(shape, np.float32), FORMATS[format if whole else "f32"])


def test_a_quantised_file_is_told_as_it_is_held(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    summary = summarise(checkpoint)
    assert summary.bytes == checkpoint.weights.nbytes
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


def test_an_untied_head_and_a_vision_tower_have_their_own_sums(
    tokenizer: PreTrainedTokenizer,
) -> None:
    config = dataclasses.replace(
        TINY["grouped-scaled"], tie_word_embeddings=False, vision=TINY_VISION
    )
    summary = summary_of(config, tokenizer)
    assert summary.parts["lm_head"].parameters == config.vocab_size * config.hidden_size
    assert summary.parameters == sum(num_parameters(config).values())
    everything = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    beside = sum(tower.parameters for tower in summary.towers.values())
    assert summary.parameters + beside == everything
    assert list(summary.towers) == ["vision_tower", "multi_modal_projector"]


def test_weights_are_in_the_order_of_the_network(tokenizer: PreTrainedTokenizer) -> None:
    """Whatever order a file has them in."""
    checkpoint = made(TINY_3N, tokenizer)
    mixed = Weights(dict(sorted(checkpoint.weights.items(), reverse=True)))
    said = summarise(dataclasses.replace(checkpoint, weights=mixed))
    assert said.to_json() == summarise(checkpoint).to_json()
    assert list(said.parts)[:2] == ["embed_tokens", "embed_tokens_per_layer"]
    assert list(said.layers[0].weights)[:2] == ["self_attn.q_proj", "self_attn.q_norm"]
    assert [*said.layers[0].weights] == [*summarise(checkpoint).layers[0].weights]


def test_json_has_a_layer_for_every_layer(
    config: Gemma3Config, tokenizer: PreTrainedTokenizer
) -> None:
    summary = summary_of(config, tokenizer)
    said = summary.to_json()
    assert [layer["index"] for layer in said["layers"]] == list(range(config.num_hidden_layers))
    assert said["parameters"] == summary.parameters
    assert said["kv_bytes"] == {str(k): v for k, v in summary.kv_bytes.items()}
