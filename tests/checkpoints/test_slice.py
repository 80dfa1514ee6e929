"""Slices: what is cut out runs alone, in transformers too, and equals the view it was cut from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import gemelo
from gemelo.api import load
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.slice import cut
from gemelo.config import Submodel
from gemelo.errors import GemeloError, InputError, UnsupportedError
from gemelo.kernels.quants import FORMATS, Packed
from gemelo.weights.mapped import behind
from tests.gemma3n import IDS, TINY_3N, write_3n

# Layers 5 and 6 give their keys to 7..11.
PARTS = {
    "narrow": Submodel((64,) * 12),
    "mixed": Submodel((96,) * 4 + (32, 64, 96, 64) + (32,) * 4),
    "upper-skipped": Submodel((64,) * 10, (8, 9)),
    "lower-skipped": Submodel((64,) * 10, (0, 2)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_3n(tmp_path_factory.mktemp("whole") / "tiny-3n")


@pytest.fixture(params=PARTS.values(), ids=PARTS.keys())
def part(request: pytest.FixtureRequest) -> Submodel:
    value: Submodel = request.param
    return value


def test_a_slice_gives_the_references_logits(whole: Path, part: Submodel, tmp_path: Path) -> None:
    """Written, loaded by transformers, and by us: one and the same model."""
    convert(whole, tmp_path / "slice", submodel=part)
    ours = load(tmp_path / "slice").scores(IDS)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "slice", attn_implementation="eager")
    with torch.inference_mode():
        theirs = twin(torch.tensor([IDS]), use_cache=True).logits[0]
    assert np.abs(ours - theirs.numpy()).max() < 3e-4
    config = json.loads((tmp_path / "slice" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(part.ffn_widths) == len(config["layer_types"])
    assert config["intermediate_size"] == list(part.ffn_widths)


@pytest.mark.parametrize("name", ["narrow", "mixed", "upper-skipped"])
def test_a_slice_is_the_view(whole: Path, name: str, tmp_path: Path) -> None:
    convert(whole, tmp_path / "slice", submodel=PARTS[name])
    view = load(whole).submodel(PARTS[name])
    assert np.array_equal(load(tmp_path / "slice").scores(IDS), view.scores(IDS))


def test_quantised_slices_are_prefixes_of_blocks(whole: Path, tmp_path: Path) -> None:
    """A view of a quantised model, and the quantised model cut: the same bytes, the same logits."""
    convert(whole, tmp_path / "whole.gguf", "q8_0")
    part = PARTS["upper-skipped"]
    convert(tmp_path / "whole.gguf", tmp_path / "part.gguf", submodel=part)
    model = load(tmp_path / "whole.gguf")
    held, cut_out = open_source(tmp_path / "whole.gguf"), open_source(tmp_path / "part.gguf")
    for name, size in (("gate_proj", (64, None)), ("down_proj", (None, 64))):
        leaf = f"language_model.layers.0.mlp.{name}.weight"
        leading = held.tensor(leaf).prefix(*size)
        assert leading.format == FORMATS["q8_0"] == cut_out.tensor(leaf).format
        assert np.array_equal(cut_out.tensor(leaf).blocks, leading.blocks)
    sliced = load(tmp_path / "part.gguf")
    assert sliced.config == part.config(model.config)
    assert np.array_equal(sliced.scores(IDS), model.submodel(part).scores(IDS))


def test_views_of_a_quantised_model_copy_nothing(whole: Path, tmp_path: Path) -> None:
    convert(whole, tmp_path / "whole.gguf", "q8_0")
    model = load(tmp_path / "whole.gguf")
    weights, view = model.engine.decoder.weights, model.submodel(PARTS["narrow"])
    before = view.scores(IDS)
    assert view.engine.decoder.weights is weights
    for name in ("up_proj", "down_proj"):
        path = f"layers.11.mlp.{name}.weight"
        assert behind([weights[path]]), "mapped"
        assert np.shares_memory(weights[path].prefix(64, 64).blocks, weights[path].blocks)
    weights["layers.11.mlp.up_proj.weight"].blocks[:64] = 0
    assert np.abs(view.scores(IDS) - before).max() > 1e-3, "it reads the whole's own memory"


def test_cutting_reads_nothing_before_it_is_asked(whole: Path) -> None:
    source = open_source(whole)
    asked: list[str] = []

    def tensor(name: str) -> Packed:
        asked.append(name)
        return source.tensor(name)

    small = cut(dataclasses.replace(source, tensor=tensor), PARTS["narrow"])
    assert asked == []
    name = "language_model.layers.3.mlp.down_proj.weight"
    weight = small.tensor(name)
    assert asked == [name] and weight.shape == small.shapes[name] == (64, 64)
    assert weight.address == tensor(name).address and behind([weight]) == behind([tensor(name)])


def test_mixed_widths_are_not_written_for_llama_cpp_unasked(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=f"this sub-model of {whole} has .*mixed_widths=True"
    ):
        convert(whole, tmp_path / "m.gguf", submodel=PARTS["mixed"])
    convert(whole, tmp_path / "m.gguf", submodel=PARTS["mixed"], mixed_widths=True)
    view = load(whole).submodel(PARTS["mixed"])
    assert np.abs(load(tmp_path / "m.gguf").scores(IDS) - view.scores(IDS)).max() < 1e-5


def test_progress_and_tokenizer(whole: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = convert(
        whole, tmp_path / "s", submodel=PARTS["narrow"], progress=lambda n, of: seen.append((n, of))
    )
    assert seen[-1] == (done.size_bytes, done.size_bytes)
    assert load(tmp_path / "s").tokenizer.encode("the") == load(whole).tokenizer.encode("the")


def test_bad_requests(whole: Path, tiny_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="gemma3_text has no sub-models"):
        convert(tiny_directory, tmp_path / "x", submodel="E2B")
    with pytest.raises(InputError, match="cut from 35 layers"):
        convert(whole, tmp_path / "x", submodel="E2B")
    with pytest.raises(InputError, match="layer 6 cannot be skipped"):
        convert(whole, tmp_path / "x", submodel=Submodel((64,) * 11, (6,)))
    with pytest.raises(GemeloError, match="overwrite=True"):
        convert(whole, whole, submodel=PARTS["narrow"])
    with pytest.raises(InputError, match="is the source"):
        convert(whole, whole, submodel=PARTS["narrow"], overwrite=True)
    assert not (tmp_path / "x").exists()


def test_overwriting_replaces_the_whole(whole: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "s", tmp_path / "s.gguf"):
        convert(whole, target, submodel=PARTS["narrow"])
        convert(whole, target, submodel=PARTS["upper-skipped"], overwrite=True)
        assert load(target).config.num_hidden_layers == 10
    assert TINY_3N.num_hidden_layers == 12


def test_models_are_named_as_for_loading(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path, or by a text that may begin with a home directory."""
    monkeypatch.setenv("HOME", str(whole.parent))
    done = gemelo.slice(f"~/{whole.name}", "~/named.gguf", PARTS["narrow"])
    assert done.path == whole.parent / "named.gguf"
    convert(whole, tmp_path / "path.gguf", submodel=PARTS["narrow"])
    assert done.path.read_bytes() == (tmp_path / "path.gguf").read_bytes()
    with pytest.raises(InputError, match="nowhere.gguf: no such file"):
        gemelo.convert("nowhere.gguf", tmp_path / "copy.gguf")
