"""What a nested model does not run is let go and comes back; the bytes of what it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemelo.api import Model, load
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.slice import cut
from gemelo.config import Submodel
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.device import decoder_on
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.memory.pages import present_bytes
from gemelo.engine.memory.process import process_bytes
from gemelo.engine.memory.residency import (
    layer_of,
    release_tail,
    resident_bytes,
    unused,
    used_bytes,
)
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING, NativeDecoder
from gemelo.kernels import native
from gemelo.kernels.quants import Floats
from tests.engine.memory.conftest import NARROW, WIDE_3N, linux
from tests.gemma3n import IDS, tiny_3n
from tests.quantised import modules_of, native_of

WHOLE = Submodel.whole(WIDE_3N)


def scores(decoder: Decoder) -> Floats:
    return step.score(decoder, decoder.cache(64), IDS)


def decoder_of(path: Path) -> NativeDecoder:
    """A decoder whose weights stay where they are mapped."""
    checkpoint = load_checkpoint(path)
    decoder = decoder_on("cpu", checkpoint.config, checkpoint.weights, repack=False)
    assert isinstance(decoder, NativeDecoder) and decoder.panels is None
    assert decoder.is_native == (native.module is not None)
    return decoder


@linux
@pytest.mark.parametrize("runner", ["program", "modules"])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_unused_tail_is_let_go_and_comes_back(
    request: pytest.FixtureRequest, kind: str, runner: str
) -> None:
    program = decoder_of(request.getfixturevalue(kind))
    decoder = modules_of(program) if runner == "modules" else program
    view = SubmodelViews(decoder).view(NARROW)
    whole, narrow = scores(decoder), scores(view)
    weights = program.weights
    tail = weights["layers.0.mlp.gate_proj.weight"].blocks[2048:]
    gone = [
        tail,
        weights["layers.0.mlp.up_proj.weight"].blocks[2048:],
        weights["layers.8.mlp.gate_proj.weight"].blocks,
        weights["layers.8.mlp.down_proj.weight"].blocks,
    ]
    before = process_bytes()
    assert present_bytes(tail) > 0
    let_go = release_tail(decoder, NARROW)
    assert let_go > resident_bytes(decoder, WHOLE, on_disk=True) // 4
    assert process_bytes() < before - let_go * 0.8  # what else the process does is small
    assert [present_bytes(blocks) for blocks in gone] == [0] * 4
    assert np.array_equal(scores(view), narrow)
    assert present_bytes(tail) < tail.nbytes // 4  # the narrow one did not touch it
    assert np.array_equal(scores(decoder), whole)
    assert present_bytes(tail) > tail.nbytes // 2


@linux
def test_a_model_releases_what_a_part_does_not_run(folder: Path) -> None:
    model = load(folder, repack=False)
    wanted = model.scores(IDS)
    assert model.release("whole") == 0 < model.release(NARROW)
    assert np.array_equal(model.scores(IDS), wanted)


@linux
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_nested_model_releases_by_the_wholes_numbers(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """Its layers have other numbers than the file's. What the nested model's part does not run
    goes: its own skipped layer and tails, and what the nested model itself leaves out."""
    model = load(request.getfixturevalue(kind), repack=False)
    nested = model.submodel(NARROW)
    inner = Submodel((1024,) * 9, (8,))  # skips the nested model's layer 8, the file's layer 10
    assert list(nested.engine.decoder.layer_indices) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    wanted = nested.scores(IDS)
    model.scores(IDS)
    weights = model.checkpoint.weights
    assert nested.release(inner) > 0
    gate = {
        layer: present_bytes(weights[f"layers.{layer}.mlp.gate_proj.weight"].blocks[1024:])
        for layer in range(12)
    }
    assert set(gate.values()) == {0}
    heads = {
        layer: present_bytes(weights[f"layers.{layer}.mlp.gate_proj.weight"].blocks[:1024])
        for layer in range(12)
    }
    assert {layer for layer, nbytes in heads.items() if not nbytes} == {8, 9, 10}
    assert np.array_equal(nested.scores(IDS), wanted)


def test_a_nested_model_uses_what_a_model_of_its_own_would_hold(folder: Path, gguf: Path) -> None:
    """Byte by byte what `slice` writes, of the whole, of a part, and of a part of a part."""
    inner = Submodel((1024,) * 9, (8,))
    for path in (folder, gguf):
        model = load(path, repack=False)
        nested = model.submodel(NARROW)
        source = open_source(path)
        small = cut(source, NARROW)
        for decoder, part, alone in (
            (model.engine.decoder, WHOLE, source),
            (model.engine.decoder, NARROW, small),
            (nested.engine.decoder, Submodel.whole(nested.config), small),
            (nested.engine.decoder, inner, cut(small, inner)),
        ):
            own = sum(alone.tensor(name).nbytes for name in alone.shapes)
            assert used_bytes(decoder, part) == own


def test_a_repr_tells_the_bytes_of_what_runs(gguf: Path) -> None:
    model = load(gguf)

    def said(model: Model) -> int:
        return int(repr(model).split(" MB of weights")[0].rpartition(" ")[2])

    whole, nested = said(model), said(model.submodel(NARROW))
    used = used_bytes(model.engine.decoder, NARROW)
    assert whole == round(model.checkpoint.weights.nbytes / 1e6)
    assert nested == round(used / 1e6) < whole


def test_weights_in_memory_stay() -> None:
    decoder = native_of(tiny_3n(WIDE_3N))
    wanted = scores(decoder)
    assert release_tail(decoder, NARROW) == 0
    assert np.array_equal(scores(decoder), wanted)


def test_the_whole_uses_everything(folder: Path) -> None:
    decoder = decoder_of(folder)
    scores(decoder)
    assert [blocks.size for blocks in unused(decoder, WHOLE) if blocks.size] == []
    assert release_tail(decoder, WHOLE) == 0
    assert used_bytes(decoder, WHOLE) == decoder.weights.nbytes


def test_resident_bytes_are_those_of_the_model_that_runs() -> None:
    module = tiny_3n(WIDE_3N)
    decoder = ModuleDecoder(module)
    all_bytes = sum(parameter.nbytes for parameter in module.parameters())
    table_bytes = decoder.weights[PER_LAYER_EMBEDDING].nbytes
    assert resident_bytes(decoder, WHOLE, on_disk=False) == all_bytes
    assert resident_bytes(decoder, WHOLE, on_disk=True) == all_bytes - table_bytes
    half = Submodel((2048,) * 12)
    alone = tiny_3n(half.config(WIDE_3N))
    assert resident_bytes(decoder, half, False) == sum(p.nbytes for p in alone.parameters())
    assert resident_bytes(decoder, NARROW, False) < resident_bytes(decoder, half, False)


def test_layers_are_told_by_names() -> None:
    assert layer_of("layers.11.mlp.gate_proj.weight") == 11
    assert layer_of("norm.weight") is layer_of("altup_projections.1.weight") is None
