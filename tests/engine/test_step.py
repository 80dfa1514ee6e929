"""What a step says when its weights are gone or broken: which, and what to do."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gemelo.checkpoints.load import load_checkpoint
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.device import decoder_on
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.tokens import Tokens
from gemelo.errors import FileFormatError
from gemelo.kernels.quants import Packed, unpack
from gemelo.weights.tensors import Weights
from tests.conftest import TINY, tiny_model
from tests.native import needs_native
from tests.quantised import GEMMA3, modules_of, native_of

PROMPT = Tokens([2, *range(300, 312)])
linux = pytest.mark.skipif(sys.platform != "linux", reason="maps are watched on Linux")


def from_file(path: Path, repack: bool = False) -> NativeDecoder:
    checkpoint = load_checkpoint(path)
    decoder = decoder_on("cpu", checkpoint.config, checkpoint.weights, repack=repack)
    assert isinstance(decoder, NativeDecoder)
    return decoder


@linux
@needs_native
@pytest.mark.parametrize("runner", ["program", "modules"])
def test_weights_that_are_gone_are_named(
    tiny_checkpoint: Path, tmp_path: Path, runner: str
) -> None:
    shutil.copy(tiny_checkpoint, tmp_path / "model.gguf")
    program = from_file(tmp_path / "model.gguf")
    decoder: Decoder = modules_of(program) if runner == "modules" else program
    step.prefill(decoder, decoder.cache(64), PROMPT)
    os.truncate(tmp_path / "model.gguf", os.path.getsize(tiny_checkpoint) // 2)
    with pytest.raises(FileFormatError) as raised:
        step.prefill(decoder, decoder.cache(64), PROMPT)
    lost = list(program.weights.lost())
    assert 1 < len(lost) < len(program.weights) and all(name in program.weights for name in lost)
    assert str(raised.value) == (
        f"the model's file was cut short while it was in use: {lost[0]} and {len(lost) - 1} more "
        "cannot be read any longer; load it again"
    )


@linux
@needs_native
def test_what_has_moved_needs_the_file_no_more(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """And another model's file that was cut short is that model's trouble."""
    shutil.copy(tiny_checkpoint, tmp_path / "model.gguf")
    mapped = from_file(tmp_path / "model.gguf")
    moved = from_file(tmp_path / "model.gguf", repack=True)
    expected = step.prefill(moved, moved.cache(64), PROMPT)
    os.truncate(tmp_path / "model.gguf", 4096)
    with pytest.raises(FileFormatError, match="was cut short"):
        step.prefill(mapped, mapped.cache(64), PROMPT)
    other = from_file(tiny_checkpoint)
    step.prefill(other, other.cache(64), PROMPT)
    del mapped
    with pytest.raises(FileFormatError, match="was cut short"):
        # Its names still mean the file: whoever looks at a weight would see zeros.
        next(iter(moved.weights.values())).blocks.sum()
        step.prefill(moved, moved.cache(64), PROMPT)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("config", [GEMMA3, TINY["grouped-scaled"]], ids=["kernels", "numpy"])
@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("name", ["layers.1.self_attn.o_proj.weight", "norm.weight"])
def test_the_weight_that_spoilt_scores_is_named(config: object, number: str, name: str) -> None:
    decoder = native_of(tiny_model(config))  # type: ignore[arg-type]
    numbers = unpack(decoder.weights[name])
    numbers.reshape(-1)[3] = float(number)
    weights = Weights({**decoder.weights, name: Packed.of(numbers)})
    broken = NativeDecoder(decoder.config, weights)
    kind = "NaN" if number == "nan" else "infinity"
    expected = f"the model's scores are not finite: {name} holds {kind}"
    for run in (
        lambda: step.prefill(broken, broken.cache(64), PROMPT),
        lambda: step.decode(broken, broken.cache(64), 5, 0),
        lambda: step.verify(broken, broken.cache(64), [5, 6, 7], 0),
        lambda: step.score(broken, broken.cache(64), PROMPT),
    ):
        with pytest.raises(FileFormatError) as raised:
            run()
        assert str(raised.value) == expected
