"""A source whose names and shapes are not its config's is one error that lists them."""

from __future__ import annotations

import dataclasses
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from gemelo.checkpoints.parameter_check import check_parameters
from gemelo.checkpoints.slice import without_padding
from gemelo.checkpoints.source import PER_LAYER_EMBEDDING, Source
from gemelo.config import Gemma3Config, Gemma3nConfig, ModelConfig, VisionConfig
from gemelo.config.parameters import parameter_shapes
from gemelo.errors import FileFormatError
from tests.conftest import TINY
from tests.gemma3n import TINY_3N
from tests.multimodal import AWAKE, EYED

NORM = "language_model.norm.weight"
QUERY = "language_model.layers.0.self_attn.q_proj.weight"
EYE = "vision_tower.post_layernorm.weight"
LARGEST = 1 << 24  # that a number of a config may be


def source_of(config: ModelConfig, mmproj: Path | None = None, **changed: Any) -> Source:
    """A source of a config's own shapes but for those changed; None for a name that is not there.

    Whoever asks for a weight itself fails.
    """
    shapes = parameter_shapes(config)
    for name, shape in changed.items():
        if shape is None:
            del shapes[name]
        else:
            shapes[name] = shape
    return Source(Path("m.gguf"), config, shapes, lambda name: pytest.fail(name), mmproj=mmproj)


@pytest.mark.parametrize("config", [*TINY.values(), TINY_3N, EYED, AWAKE])
def test_its_own_shapes_pass(config: ModelConfig) -> None:
    check_parameters(source_of(config))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({NORM: None}, f"m.gguf: 1 weights missing: {NORM}"),
        ({"language_model.bias": (3,)}, "m.gguf: 1 weights unknown: language_model.bias"),
        (
            {QUERY: (256, 95)},
            f"m.gguf: 1 weights of the wrong shape: {QUERY} (256, 95) instead of (256, 96)",
        ),
        ({QUERY: (256, 96, 1)}, f"{QUERY} (256, 96, 1) instead of (256, 96)"),
        ({QUERY: ()}, f"{QUERY} () instead of (256, 96)"),
        (
            {NORM: None, "a": (1,), QUERY: (1, 1), EYE: (7,)},
            f"m.gguf: 1 weights missing: {NORM}; 1 weights unknown: a; 2 weights of the wrong "
            f"shape: {QUERY} (1, 1) instead of (256, 96), {EYE} (7,) instead of (32,)",
        ),
    ],
)
def test_what_is_wrong_is_listed(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=re.escape(message)):
        check_parameters(source_of(EYED, **changed))


def test_the_file_that_the_towers_are_from_is_named() -> None:
    mmproj = Path("mmproj.gguf")
    with pytest.raises(FileFormatError, match=f"^mmproj.gguf: 1 weights missing: {EYE}"):
        check_parameters(source_of(EYED, mmproj, **{EYE: None}))
    with pytest.raises(FileFormatError, match="^m.gguf: 2 weights missing"):
        check_parameters(source_of(EYED, mmproj, **{EYE: None, NORM: None}))


def test_many_are_counted_and_a_few_named() -> None:
    deeper = dataclasses.replace(TINY_3N, tie_word_embeddings=False)
    source = dataclasses.replace(source_of(TINY_3N), config=deeper, shapes={})
    with pytest.raises(FileFormatError, match=r"\d{3} weights missing: .*embed_tokens") as found:
        check_parameters(source)
    assert len(str(found.value)) < 1000 and "\n" not in str(found.value)


HUGE_EYE = VisionConfig(
    hidden_size=LARGEST, patch_size=1 << 23, image_size=1 << 23, num_attention_heads=1
)
HUGE: dict[str, ModelConfig] = {
    "heads": Gemma3Config(
        hidden_size=LARGEST, num_attention_heads=LARGEST, head_dim=LARGEST, num_key_value_heads=1
    ),
    "an eye": dataclasses.replace(EYED, vision=HUGE_EYE),
    "an ear": dataclasses.replace(
        AWAKE,
        audio_config={
            "vocab_offset": 496,
            "input_feat_size": LARGEST,
            "hidden_size": 1536,
            "sscp_conv_kernel_size": [[LARGEST, 1 << 20], [LARGEST, 1]],
            "sscp_conv_stride_size": [[1, 1], [1, 1]],
            "sscp_conv_channel_size": [LARGEST, LARGEST],
        },
    ),
}


@pytest.mark.parametrize("config", HUGE.values(), ids=HUGE.keys())
def test_sizes_that_cannot_be_multiplied_are_an_error(config: ModelConfig) -> None:
    source = Source(Path("m.gguf"), config, {}, lambda name: pytest.fail(name))
    with pytest.raises(FileFormatError, match="m.gguf: its config describes weights of more num"):
        check_parameters(source)


@pytest.mark.parametrize(
    "config",
    [
        Gemma3nConfig(
            vocab_size=LARGEST,
            vocab_size_per_layer_input=LARGEST,
            hidden_size=LARGEST,
            num_hidden_layers=1024,
            num_kv_shared_layers=1000,
            hidden_size_per_layer_input=1 << 16,
            intermediate_size=(LARGEST,) * 1024,
            altup_num_inputs=16,
        ),
        dataclasses.replace(EYED, vision=dataclasses.replace(HUGE_EYE, num_hidden_layers=1024)),
    ],
    ids=["layers", "an eye"],
)
def test_the_largest_that_a_config_may_say_is_checked_at_once(config: ModelConfig) -> None:
    """As many names as a config may ask for: seconds, not minutes, and no memory for weights."""
    source = Source(Path("m.gguf"), config, {NORM: (4,)}, lambda name: pytest.fail(name))
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(FileFormatError):
        check_parameters(source)
    assert time.process_time() - started < 20
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(), (512,), (512, 3, 128)])
def test_a_table_of_other_dimensions_is_no_padded_one(shape: tuple[int, ...]) -> None:
    """It has as many rows as the embedding, or none to speak of."""
    config = dataclasses.replace(TINY_3N, vocab_size=512, vocab_size_per_layer_input=500)
    source = source_of(config, None, **{PER_LAYER_EMBEDDING: shape})
    with pytest.raises(FileFormatError, match=re.escape(f"{PER_LAYER_EMBEDDING} {shape} instead")):
        check_parameters(without_padding(source))
