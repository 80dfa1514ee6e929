"""What a nested model does not run is let go and comes back; the bytes of what it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemelo.api import load
from gemelo.checkpoints.load import load_checkpoint
from gemelo.config import Submodel
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.memory.pages import present_bytes
from gemelo.engine.memory.process import process_bytes
from gemelo.engine.memory.residency import release_tail, resident_bytes, stored, tails
from gemelo.models.altup import NestedMLP
from gemelo.models.gemma3n import Gemma3n
from tests.engine.memory.conftest import NARROW, WIDE_3N, linux
from tests.gemma3n import scores, tiny_3n


def feed_forward(decoder: Gemma3n, layer: int) -> NestedMLP:
    mlp = decoder.layers[layer].mlp
    assert isinstance(mlp, NestedMLP)
    return mlp


@linux
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_unused_tail_is_let_go_and_comes_back(request: pytest.FixtureRequest, kind: str) -> None:
    decoder = load_checkpoint(request.getfixturevalue(kind)).decoder
    assert isinstance(decoder, Gemma3n)
    view = SubmodelViews(decoder).view(NARROW)
    assert isinstance(view, Gemma3n)
    whole, narrow = scores(decoder), scores(view)
    mlp, skipped = feed_forward(decoder, 0), feed_forward(decoder, 8)
    unused = [*tails(mlp, 2048), stored(skipped.gate_proj), stored(skipped.down_proj)]
    before = process_bytes()
    assert present_bytes(unused[0]) > 0
    let_go = release_tail(decoder, NARROW)
    assert let_go > resident_bytes(decoder, "disk") // 4
    assert process_bytes() < before - let_go * 0.8  # what else the process does is small
    assert [present_bytes(tensor) for tensor in unused] == [0] * 5
    assert torch.equal(scores(view), narrow)
    assert present_bytes(unused[0]) < unused[0].nbytes // 4  # the narrow one did not touch it
    assert torch.equal(scores(decoder), whole)
    assert present_bytes(unused[0]) > unused[0].nbytes // 2


@linux
def test_a_model_releases_what_a_part_does_not_run(folder: Path) -> None:
    model = load(folder, repack=False)
    decoder = model.engine.decoder
    assert isinstance(decoder, Gemma3n)
    wanted = scores(decoder)
    assert model.release("whole") == 0 < model.release(NARROW)
    assert torch.equal(scores(decoder), wanted)


def test_weights_in_memory_stay() -> None:
    decoder = tiny_3n(WIDE_3N)
    wanted = scores(decoder)
    assert release_tail(decoder, NARROW) == 0
    assert torch.equal(scores(decoder), wanted)


def test_the_whole_uses_everything(folder: Path) -> None:
    decoder = load_checkpoint(folder).decoder
    assert isinstance(decoder, Gemma3n)
    scores(decoder)
    assert release_tail(decoder, Submodel.whole(WIDE_3N)) == 0


def test_resident_bytes_are_those_of_the_model_that_runs() -> None:
    decoder = tiny_3n(WIDE_3N)
    all_bytes = sum(parameter.nbytes for parameter in decoder.parameters())
    table_bytes = decoder.embed_tokens_per_layer.weight.nbytes
    assert resident_bytes(decoder, "ram") == resident_bytes(decoder, "device") == all_bytes
    assert resident_bytes(decoder, "disk") == all_bytes - table_bytes
    half = Submodel((2048,) * 12)
    view = SubmodelViews(decoder).view(half)
    assert isinstance(view, Gemma3n)
    alone = tiny_3n(half.config(WIDE_3N))
    assert resident_bytes(view, "ram") == sum(p.nbytes for p in alone.parameters())
    skipping = SubmodelViews(decoder).view(NARROW)
    assert isinstance(skipping, Gemma3n)
    assert resident_bytes(skipping, "ram") < resident_bytes(view, "ram")
