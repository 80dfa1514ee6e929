"""Sub-models side by side: their sums are those of the models that slicing them makes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gemelo.checkpoints.load import load_checkpoint
from gemelo.config import Gemma3Config, Gemma3nConfig, Submodel, num_parameters
from gemelo.config.submodel import names
from gemelo.inspection.sizes import Size, size_of, sizes, smaller_than
from gemelo.inspection.summary import summarise
from gemelo.inspection.weights import Weights, held
from tests.gemma3n import TINY_3N, write_3n
from tests.hollow import hollow
from tests.matformer import CONFIG

E4B = Gemma3nConfig()


@pytest.fixture(scope="module")
def published() -> Weights:
    """E4B's weights, which take no memory."""
    return held(hollow(E4B))


@pytest.fixture(scope="module")
def table(published: Weights) -> list[Size]:
    return sizes(E4B, published)


def test_every_named_size_is_there_once_the_whole_first(table: list[Size]) -> None:
    assert [size.name for size in table] == [*names(), "half"]
    for size in table:
        assert Submodel.named(size.name, E4B) == size.submodel


def test_parameters_are_the_cost_models(table: list[Size]) -> None:
    for size in table:
        counted = num_parameters(size.submodel.config(E4B))
        assert size.parameters == sum(counted.values())
        assert size.effective_parameters == counted["layers"]


def test_bytes_of_a_token_and_of_memory(published: Weights, table: list[Size]) -> None:
    """float32: resident is all but the per-layer embeddings; a token reads one row of those, and of
    up and down in the ten sparse layers a twentieth."""
    for size in table:
        counted = num_parameters(size.submodel.config(E4B))
        assert size.resident_bytes == 4 * (counted["layers"] + counted["embedding"])
        kept = size.submodel.kept_layers(E4B)
        sparse = size.submodel.ffn_widths[:10]
        off = 0.95 * 2 * E4B.hidden_size * sum(sparse)
        row = len(kept) * E4B.hidden_size_per_layer_input
        assert size.read_bytes == pytest.approx(size.resident_bytes + 4 * (row - off), abs=64)


def test_widths_in_words(table: list[Size]) -> None:
    said = {size.name: size.widths for size in table}
    assert said["E4B"] == "16384 x 35" and said["E2B"] == "8192 x 30"
    assert said["E2.54B-layer"] == "8192 x 29, 16384 x 6"


def test_a_model_with_one_size_has_none() -> None:
    assert sizes(Gemma3Config(), {}) == [] and smaller_than(Gemma3Config(), {}) is None


def test_an_untied_head_leaves_a_row_of_the_embedding_to_read() -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    whole = size_of("whole", Submodel.whole(config), config, held(hollow(config)))
    tied = size_of("whole", Submodel.whole(CONFIG), CONFIG, held(hollow(CONFIG)))
    assert whole.effective_parameters == tied.effective_parameters
    assert whole.read_bytes == tied.read_bytes + 4 * 64  # the row


def test_a_sub_model_summed_up(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_3n(tmp_path / "tiny"))
    submodel = Submodel((64,) * 10, (7, 8), "small")
    summary = summarise(checkpoint, submodel)
    counted = num_parameters(submodel.config(TINY_3N))
    assert summary.parameters == sum(counted.values())
    assert summary.core.parameters == counted["layers"]
    assert [layer.kv_layer for layer in summary.layers] == [*range(7), 4, 6, 6]
    assert {(x.ffn_width, x.whole_width) for x in summary.layers} == {(64, 96)}
    assert [x.sparsity for x in summary.layers] == [0.95] * 4 + [0.75] + [0.0] * 5
    said = summary.to_json()
    assert said["submodel"] == "small" and said["core_parameters"] == counted["layers"]
    assert said["layers"][7]["kv_layer"] == 4 and said["layers"][0]["activation_sparsity"] == 0.95
