"""Names and shapes told by a config are those of the networks, in their order."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from gemelo.config import Gemma3Config, ModelConfig, Submodel, num_parameters, read_config
from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.parameters import decoder_shapes, parameter_shapes
from gemelo.config.parameters_mobilenet import mobilenet_shapes
from gemelo.models.mobilenet import MobileNetTower
from gemelo.models.multimodal import tree_of
from tests import matformer
from tests.conftest import TINY, TINY_VISION
from tests.gemma3n import MIXED_3N, SOFT_3N, TINY_3N, VARIANTS
from tests.mobilenet import TINY_STAGES
from tests.multimodal import AWAKE, EYED
from tests.published import SIZES, published
from tests.published_files import E2B, E4B

Items = list[tuple[str, tuple[int, ...]]]
SMALLER = {"model_args": {"channel_multiplier": 0.35}}
WIDER = {"model_args": {"channel_multiplier": 1.7, "msfa_output_resolution": 8}}
CONFIGS: dict[str, ModelConfig] = {
    **TINY,
    "untied": dataclasses.replace(TINY["one-kv-head"], tie_word_embeddings=False),
    "eyed": EYED,
    "eyed, untied": dataclasses.replace(EYED, tie_word_embeddings=False),
    "another eye": dataclasses.replace(
        EYED,
        vision=dataclasses.replace(TINY_VISION, num_hidden_layers=3, patch_size=8, hidden_size=24),
    ),
    **VARIANTS,
    "tiny 3n": TINY_3N,
    "mixed": MIXED_3N,
    "soft": SOFT_3N,
    "untied 3n": dataclasses.replace(TINY_3N, tie_word_embeddings=False),
    "one stream": dataclasses.replace(TINY_3N, altup_num_inputs=1),
    "matformer": matformer.CONFIG,
    "nested": matformer.SMALL.config(matformer.CONFIG),
    "wide heads": dataclasses.replace(TINY["blocks-of-32"], head_dim=64, hidden_size=64),
    "wide heads 3n": dataclasses.replace(TINY_3N, vocab_size_per_layer_input=500, head_dim=64),
    "awake": AWAKE,
    "eyes alone": AWAKE.without_towers("audio_config"),
    "ears alone": AWAKE.without_towers("vision_config"),
    "a narrow eye": dataclasses.replace(
        AWAKE, vision_config={"vocab_offset": 480} | SMALLER, audio_config=None
    ),
    "a wide eye": dataclasses.replace(
        AWAKE, vision_config={"vocab_offset": 480} | WIDER, audio_config=None
    ),
    "another ear": dataclasses.replace(
        AWAKE,
        vision_config=None,
        audio_config={
            "vocab_offset": 496,
            "hidden_size": 48,
            "conf_num_attention_heads": 3,
            "conf_num_hidden_layers": 1,
            "conf_conv_kernel_size": 7,
            "input_feat_size": 80,
            "sscp_conv_channel_size": [6, 10],
            "sscp_conv_kernel_size": [[3, 5], [4, 3]],
            "sscp_conv_stride_size": [[2, 2], [2, 1]],
        },
    ),
    **{size: read_config(published(size)) for size in SIZES},
    "E4B": read_config(E4B),
    "E2B": read_config(E2B),
}


def of_network(config: ModelConfig) -> Items:
    """The oracle: the network itself, which takes no memory; its decoder's weights first."""
    with torch.device("meta"):
        network = tree_of(config)
    found = [(name, tuple(weight.shape)) for name, weight in network.named_parameters()]
    return sorted(found, key=lambda one: not one[0].startswith("language_model."))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_they_are_the_networks(config: ModelConfig) -> None:
    assert list(parameter_shapes(config).items()) == of_network(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_decoders_are_those_of_the_whole_by_shorter_names(config: ModelConfig) -> None:
    prefix = "language_model."
    whole = parameter_shapes(config)
    own = {name.removeprefix(prefix): whole[name] for name in whole if name.startswith(prefix)}
    assert decoder_shapes(config) == own


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_their_sum_is_the_cost_models(config: ModelConfig) -> None:
    counted = sum(torch.Size(shape).numel() for shape in decoder_shapes(config).values())
    assert counted == sum(num_parameters(config).values())


@pytest.mark.parametrize("name", ["E2B", "E2.49B-block", "E3.39B-layer"])
def test_a_sub_models_are_what_its_config_says(name: str) -> None:
    config = read_config(E4B)
    nested = Submodel.named(name, config).config(config)
    assert list(parameter_shapes(nested).items()) == of_network(nested)


def test_the_published_vision_tower_has_548_weights() -> None:
    shapes = mobilenet_shapes(Vision3nConfig())
    assert len(shapes) == 548
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 294_126_912


def test_a_stage_may_have_other_blocks() -> None:
    config = Vision3nConfig()
    with torch.device("meta"):
        network = MobileNetTower(config, TINY_STAGES)
    expected = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    assert mobilenet_shapes(config, TINY_STAGES) == expected


def test_borrowed_keys_have_no_maps() -> None:
    shapes = decoder_shapes(read_config(E4B))
    last_owner, borrower = "layers.19.self_attn.", "layers.20.self_attn."
    assert f"{last_owner}k_proj.weight" in shapes and f"{borrower}q_proj.weight" in shapes
    assert not [name for name in shapes if name.startswith((f"{borrower}k_", f"{borrower}v_"))]


def test_a_layer_more_is_its_names_more() -> None:
    config = TINY["scalar-168"]
    longer = dataclasses.replace(config, num_hidden_layers=4, layer_types=())
    assert isinstance(longer, Gemma3Config)
    assert set(parameter_shapes(longer)) - set(parameter_shapes(config)) == {
        name.replace("layers.0.", "layers.3.")
        for name in parameter_shapes(config)
        if ".layers.0." in name
    }


@pytest.mark.parametrize("raw", [published("4B"), E4B], ids=["4B", "E4B"])
def test_they_are_told_without_pytorch(raw: dict[str, Any]) -> None:
    script = (
        "import json, sys\n"
        "from gemelo.config import read_config\n"
        "from gemelo.config.parameters import parameter_shapes\n"
        "print(len(parameter_shapes(read_config(json.load(sys.stdin)))), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(raw), capture_output=True, text=True
    )
    assert done.stdout.split() == [str(len(parameter_shapes(read_config(raw)))), "False"], (
        done.stderr
    )
