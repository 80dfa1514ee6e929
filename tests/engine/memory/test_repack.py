"""Matrices moved to panels: the same steps, in every size, and the file's pages let go."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from gemelo.engine.native_program import Decoder, NativeProgram, packed
from torch import Tensor

from gemelo.config import Submodel
from gemelo.engine import step
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.memory import repack
from gemelo.engine.memory.pages import present_bytes, release
from gemelo.engine.memory.repack import repacked
from gemelo.engine.tokens import Tokens
from gemelo.kernels.quants import FORMATS, Packed
from gemelo.kernels.repacked import Panels
from gemelo.models.gemma3n import Block, Gemma3n
from tests.kernels.matrices import random_weight
from tests.native import needs_native
from tests.quantised import GEMMA3, GEMMA3N, IDS, cache_of, made

pytestmark = needs_native
FORMATS_OF_FILES = ("q4_0", "q8_0")


@pytest.fixture(scope="module", params=FORMATS_OF_FILES)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return made(GEMMA3N, request.param)


def scores(decoder: Decoder, graph: NativeProgram | None, given: int = 20) -> Tensor:
    """Of a prompt's last token, of single tokens after it, and of several at once."""
    decoder.native_program, cache = graph, cache_of(decoder)
    found = [step.prefill(decoder, cache, Tokens(IDS[:given]), 0)]
    for position in range(given, given + 4):
        found.append(step.prefill(decoder, cache, Tokens(IDS[: position + 1]), position))
    decoder.native_program = None
    return torch.stack([row.reshape(-1) for row in found])


def distances(found: Tensor, expected: Tensor) -> Tensor:
    """Of every token's scores, as shares of their length."""
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Sums in another order now and then round an activation to another byte, or another neuron
    out of a sparse layer, of which such a small decoder has few: a whole token's scores move then,
    and those of all after it, elsewhere on every instruction set."""
    assert float((found - expected).abs().max()) <= 0.05 * float(expected.abs().max())
    assert float(distances(found, expected).max()) <= 0.05


@torch.inference_mode()
@pytest.mark.parametrize("config", [GEMMA3, GEMMA3N], ids=["gemma3", "gemma3n"])
@pytest.mark.parametrize("name", FORMATS_OF_FILES)
def test_a_moved_decoder_computes_the_same(config: object, name: str) -> None:
    whole = made(config, name)  # type: ignore[arg-type]
    panels = repacked(whole)
    assert panels is not None and panels.has(packed(whole.embed_tokens))
    for given in (5, 20):
        expected = scores(whole, NativeProgram.of(whole), given)
        found = scores(whole, NativeProgram.of(whole, panels), given)
        assert_alike(found, expected)
        # Of few tokens some meet no such rounding, and then only the sums' last bits differ.
        assert given > 16 or float(distances(found, expected).min()) <= 1e-5


@torch.inference_mode()
def test_sub_models_read_the_whole_ones_panels(decoder: Decoder) -> None:
    panels = repacked(decoder)
    decoder.native_program = NativeProgram.of(decoder, panels)
    sizes = SubmodelViews(decoder)
    config = decoder.config
    widths = tuple(64 if layer % 2 else width for layer, width in enumerate(config.ffn_widths))
    view = sizes.view(Submodel(widths))
    decoder.native_program = None
    assert isinstance(view.native_program, NativeProgram) and view.native_program.panels is panels
    found = scores(view, view.native_program)
    expected = scores(view, NativeProgram.of(view))
    assert_alike(found, expected)


def test_sparse_layers_keep_their_neurons_together(decoder: Decoder) -> None:
    assert isinstance(decoder, Gemma3n)
    panels = repacked(decoder)
    assert panels is not None
    index = torch.tensor([3, 1])
    blocks = [block for block in decoder.layers if isinstance(block, Block)]
    sparse = [block for block in blocks if block.mlp.std_multiplier is not None]
    assert 0 < len(sparse) < len(blocks)
    for block in sparse:
        panels.matrix(packed(block.mlp.up_proj), index)  # single rows can be named
    with pytest.raises(AssertionError):
        panels.matrix(packed(sparse[0].mlp.gate_proj), index)


def test_where_memory_is_short_weights_stay(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repack, "available_bytes", lambda: repack.SPARE_BYTES)
    assert repacked(decoder) is None


@pytest.mark.skipif(sys.platform != "linux", reason="pages can be let go on Linux only")
def test_the_files_pages_are_let_go(tmp_path: Path) -> None:
    weight = random_weight(FORMATS["q4_0"], 4096, 1024)
    path = tmp_path / "weights"
    path.write_bytes(weight.blocks.numpy().tobytes())
    mapped = torch.from_file(str(path), False, weight.nbytes, dtype=torch.uint8)
    mapped = mapped.view(4096, -1)
    panels = Panels([Packed(mapped, weight.format)], moved=release)
    assert present_bytes(mapped) == 0
    assert panels.nbytes == weight.nbytes
    assert torch.equal(mapped, weight.blocks)
