"""Formats that the kernels do not multiply: widened when a file is loaded, or run in NumPy.

Q3_K, Q2_K, Q4_1, Q5_1 and IQ4_NL are read, and rarely met. Where there are kernels their matrices
become 16-bit floats, which is said; where there are none, the NumPy program takes them as they are.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gemelo.api import load
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import Checkpoint, load_checkpoint
from gemelo.engine import step
from gemelo.engine.native_decoder import NativeDecoder, runs_natively, unread_formats
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Floats, Packed, unpack
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import TensorToWrite, write_gguf
from gemelo.weights.tensors import Weights
from tests.conftest import HEADS_OF_64, tiny_model, write_checkpoint
from tests.native import needs_native

UNREAD = ("q3_k", "q2_k", "q4_1", "q5_1", "iq4_nl")
# Rows are whole blocks of 256.
CONFIG = dataclasses.replace(HEADS_OF_64, hidden_size=256, intermediate_size=256)
PROMPT = [2, *range(300, 320)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_checkpoint(folder / "plain", tiny_model(CONFIG))
    convert(folder / "plain", folder / "plain.gguf", "f32")
    return folder / "plain.gguf"


@pytest.fixture(params=UNREAD)
def unread(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    """A file whose matrices have such a format; of small numbers, all of them finite."""
    file, format = GGUFFile(plain), FORMATS[request.param]
    generator = np.random.default_rng(0)

    def blocks(rows: int, columns: int) -> Packed:
        shape = rows, format.row_bytes(columns)
        return Packed(generator.integers(0, 40, shape, np.uint8), format)

    def entry(name: str) -> TensorToWrite:
        shape = file.shape(name)
        if len(shape) != 2:
            return name, shape, file.format(name), lambda: file.tensor(name)
        return name, shape, format, lambda: blocks(*shape)

    path = tmp_path / f"{format.name}.gguf"
    write_gguf(path, file.metadata, [entry(name) for name in file.names()])
    return path


def matrices(checkpoint: Checkpoint) -> dict[str, Packed]:
    return {n: w for n, w in checkpoint.weights.items() if len(w.shape) == 2}


def scores(checkpoint: Checkpoint, weights: Weights | None = None) -> Floats:
    decoder = NativeDecoder(checkpoint.config, weights or checkpoint.weights)
    return step.score(decoder, decoder.cache(64, kv_format="plain"), PROMPT)


def test_there_are_formats_that_kernels_do_not_read() -> None:
    assert native.extension is None or set(FORMATS) - cpu.FORMATS == set(UNREAD)


@needs_native
def test_they_are_widened_at_load_with_a_notice(unread: Path) -> None:
    name = unread.stem
    checkpoint = load_checkpoint(unread)
    held = matrices(checkpoint)
    assert checkpoint.weights.formats == ("f16",) and runs_natively(CONFIG, checkpoint.weights)
    nbytes = sum(weight.nbytes for weight in held.values())
    (notice,) = [notice for notice in checkpoint.notices if "widened" in notice]
    assert notice == (
        f"{len(held)} matrices in {name.upper()}, for which there are no kernels, are widened to "
        f"f16 in memory: {nbytes / 1e9:.1f} GB; a file in Q4_K_M or Q8_0 needs none of it"
    )
    for weight_name, weight in held.items():
        numbers = unpack(checkpoint.source.tensor(f"language_model.{weight_name}"))
        assert np.array_equal(unpack(weight), numbers.astype(np.float16).astype(np.float32))
    assert notice in load(unread).checkpoint.notices


@needs_native
def test_other_formats_that_are_asked_for_are_made_of_the_file(unread: Path) -> None:
    """Not of what was widened on the way; and nothing is said."""
    checkpoint = load_checkpoint(unread, "f32")
    assert checkpoint.weights.formats == ("f32",)
    assert not [notice for notice in checkpoint.notices if "widened" in notice]
    for name, weight in matrices(checkpoint).items():
        numbers = unpack(checkpoint.source.tensor(f"language_model.{name}"))
        assert np.array_equal(unpack(weight), numbers)


@needs_native
def test_what_is_widened_runs_natively_and_says_the_same(
    unread: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scores(load_checkpoint(unread))
    monkeypatch.setattr(native, "module", None)
    exact = scores(load_checkpoint(unread, "f32"))
    assert np.abs(found - exact).max() < 0.005 * np.abs(exact).max()  # weights of 11 bits


def test_without_kernels_they_run_as_they_are(
    unread: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "module", None)
    checkpoint = load_checkpoint(unread)
    assert checkpoint.weights.formats == (unread.stem,)
    assert not [notice for notice in checkpoint.notices if "widened" in notice]
    wide = {name: Packed.of(unpack(weight)) for name, weight in matrices(checkpoint).items()}
    found = scores(checkpoint)
    assert np.isfinite(found).all() and found.std() > 0
    assert np.array_equal(found, scores(checkpoint, Weights({**checkpoint.weights, **wide})))


@needs_native
def test_a_decoder_given_such_weights_runs_in_numpy(
    unread: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes one without loading a file."""
    with monkeypatch.context() as patch:
        patch.setattr(native, "module", None)
        checkpoint = load_checkpoint(unread)
    assert unread_formats(checkpoint.weights) == {unread.stem}
    decoder = NativeDecoder(checkpoint.config, checkpoint.weights)
    assert not decoder.is_native and decoder.kv_format == "plain"
    found = step.score(decoder, decoder.cache(64), PROMPT)
    monkeypatch.setattr(native, "module", None)
    assert np.allclose(found, scores(checkpoint), rtol=1e-5, atol=1e-6)
