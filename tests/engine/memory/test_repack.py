"""Matrices moved to panels: the same steps, in every size, and the file's pages let go."""

from __future__ import annotations

import errno
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from gemelo.config import Gemma3Config, Gemma3nConfig, Submodel
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.memory import repack
from gemelo.engine.memory.pages import present_bytes, release
from gemelo.engine.memory.repack import repacked
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING, NativeDecoder
from gemelo.engine.tokens import Tokens
from gemelo.kernels import native
from gemelo.kernels.quants import FORMATS, Floats, Packed
from gemelo.kernels.repacked import Panels, can_interleave, large_pages
from gemelo.weights.mapped import map_file, tensor_in
from tests.kernels.matrices import random_weight
from tests.native import needs_native
from tests.quantised import GEMMA3, GEMMA3N, IDS, cache_of, made

pytestmark = needs_native
FORMATS_OF_FILES = ("q4_0", "q8_0")


@pytest.fixture(scope="module", params=FORMATS_OF_FILES)
def decoder(request: pytest.FixtureRequest) -> NativeDecoder:
    return made(GEMMA3N, request.param)


def moved(decoder: NativeDecoder) -> NativeDecoder:
    """The same decoder, its matrices in panels."""
    panels = repacked(decoder.config, decoder.weights)
    assert panels is not None
    return NativeDecoder(decoder.config, decoder.weights, panels, decoder.table)


def scores(decoder: Decoder, given: int = 20) -> Floats:
    """Of a prompt's last token, of single tokens after it, and of several at once."""
    cache = cache_of(decoder)
    found = [step.prefill(decoder, cache, Tokens(IDS[:given]), 0)]
    for position in range(given, given + 4):
        found.append(step.prefill(decoder, cache, Tokens(IDS[: position + 1]), position))
    return np.stack(found)


def distances(found: Floats, expected: Floats) -> Floats:
    """Of every token's scores, as shares of their length."""
    shares: Floats = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return shares


def assert_alike(found: Floats, expected: Floats) -> None:
    """Sums in another order now and then round an activation to another byte, or another neuron
    out of a sparse layer, of which such a small decoder has few: a whole token's scores move then,
    and those of all after it, elsewhere on every instruction set."""
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()
    assert distances(found, expected).max() <= 0.05


@pytest.mark.parametrize("config", [GEMMA3, GEMMA3N], ids=["gemma3", "gemma3n"])
@pytest.mark.parametrize("name", FORMATS_OF_FILES)
def test_a_moved_decoder_computes_the_same(config: Gemma3Config | Gemma3nConfig, name: str) -> None:
    whole = made(config, name)
    panels = moved(whole)
    assert panels.panels is not None and panels.panels.has("embed_tokens.weight")
    for given in (5, 20):
        expected, found = scores(whole, given), scores(panels, given)
        assert_alike(found, expected)
        # Of few tokens some meet no such rounding, and then only the sums' last bits differ.
        assert given > 16 or distances(found, expected).min() <= 1e-5


def test_sub_models_read_the_whole_ones_panels(decoder: NativeDecoder) -> None:
    whole, config = moved(decoder), decoder.config
    widths = tuple(64 if layer % 2 else width for layer, width in enumerate(config.ffn_widths))
    view = SubmodelViews(whole).view(Submodel(widths))
    assert isinstance(view, NativeDecoder) and view.panels is whole.panels
    assert_alike(scores(view), scores(decoder.view(Submodel(widths))))


def test_a_part_that_panels_cannot_give_is_read_from_the_file(decoder: NativeDecoder) -> None:
    """Panels are units of 64 columns: of other widths only rows can be named."""
    submodel = Submodel((96,) * 12)
    assert decoder.config.ffn_widths == (128,) * 12
    assert_alike(scores(moved(decoder).view(submodel)), scores(decoder.view(submodel)))


def test_what_moves_and_what_stays(decoder: NativeDecoder) -> None:
    """Every matrix that steps read whole; not the table of rows, vectors, or AltUp's numbers, nor
    what would be in memory as it is."""
    panels = repacked(decoder.config, decoder.weights)
    assert panels is not None
    for name, weight in decoder.weights.items():
        is_read = len(weight.shape) == 2 and name != PER_LAYER_EMBEDDING and ".altup." not in name
        assert panels.has(name) == (is_read and can_interleave(weight))


def test_sparse_layers_keep_their_neurons_together(decoder: NativeDecoder) -> None:
    panels = repacked(decoder.config, decoder.weights)
    assert panels is not None
    index = np.array([3, 1])
    config = decoder.config
    sparse = [layer for layer in config.layers if config.layer(layer).std_multiplier is not None]
    assert 0 < len(sparse) < len(config.layers)
    for layer in sparse:
        panels.matrix(f"layers.{layer}.mlp.up_proj.weight", index=index)  # rows can be named
    with pytest.raises(AssertionError):
        panels.matrix(f"layers.{sparse[0]}.mlp.gate_proj.weight", index=index)


def test_where_memory_is_short_weights_stay(
    decoder: NativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repack, "available_bytes", lambda: repack.SPARE_BYTES)
    assert repacked(decoder.config, decoder.weights) is None


def test_where_the_process_may_have_no_more_weights_stay(
    decoder: NativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `ulimit -v` the machine has memory, and the process does not get it."""

    def refused(*args: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    assert repacked(decoder.config, decoder.weights) is None
    with pytest.raises(MemoryError, match="no room for 64 bytes"):
        large_pages(64)


def test_what_runs_in_numpy_stays(decoder: NativeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    assert repacked(decoder.config, decoder.weights) is None


@pytest.mark.skipif(sys.platform != "linux", reason="pages can be let go on Linux only")
def test_the_files_pages_are_let_go(tmp_path: Path) -> None:
    weight = random_weight(FORMATS["q4_0"], 4096, 1024)
    path = tmp_path / "weights"
    path.write_bytes(weight.blocks.tobytes())
    mapped = np.frombuffer(map_file(path), np.uint8).reshape(4096, -1)
    panels = Panels({"a": Packed(mapped, weight.format)}, moved=release)
    assert present_bytes(mapped) == 0
    assert panels.nbytes == weight.nbytes
    assert np.array_equal(mapped, weight.blocks)


def test_floats_that_were_made_at_load_stay_where_they_are(tmp_path: Path) -> None:
    """Moved, they would be in memory twice; those of a file move, and its pages go."""
    decoder = made(GEMMA3, "f32")
    panels = repacked(decoder.config, decoder.weights)
    assert panels is not None and panels.nbytes == 0
    name = "layers.0.mlp.up_proj.weight"
    weight = decoder.weights[name]
    path = tmp_path / "weights"
    path.write_bytes(weight.blocks.tobytes())
    mapped = map_file(path)
    decoder.weights.replaced(name, tensor_in(mapped, 0, weight.nbytes, weight.format, weight.shape))
    panels = repacked(decoder.config, decoder.weights)
    assert panels is not None and panels.has(name) and panels.nbytes == weight.nbytes
