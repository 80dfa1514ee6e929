"""`Model.scores` are the reference's logits, for files of every format, at every prompt length.

In float32 all is float32, whatever the prompt's length: products of many tokens, attention, the KV
cache. So the bound is that of sums in another order, 1e-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3nForCausalLM

from gemelo.api import Model, load
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import load_checkpoint
from gemelo.config.options import TargetFormat
from gemelo.engine.engine import Engine
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.kernels import native
from gemelo.kernels.quants import Floats, unpack
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.multimodal import decoder_of
from tests.conftest import HEADS_OF_64, TINY, tiny_model, write_checkpoint
from tests.gemma3n import MIXED_3N, VARIANTS, tiny_3n
from tests.quantised import GEMMA3, GEMMA3N, IDS
from tests.twins import gemma3_twin, gemma3n_twin

TOLERANCE = 1e-4
LENGTHS = (1, 2, 16, 17, 60)  # 16 is the most that is few tokens
Twin = Gemma3ForCausalLM | Gemma3nForCausalLM
# Widths that the native kernels take, and others, which NumPy computes.
MODULES = {
    "gemma3": lambda: tiny_model(HEADS_OF_64),
    "gemma3 with a capped head": lambda: tiny_model(GEMMA3),
    "gemma3n": lambda: tiny_3n(GEMMA3N),
    "gemma3 in NumPy": lambda: tiny_model(TINY["grouped-scaled"]),
    "gemma3n in NumPy": lambda: tiny_3n(MIXED_3N),
    "one kv head in NumPy": lambda: tiny_3n(VARIANTS["one-kv-head"]),
}


def twin_of(module: Gemma3 | Gemma3n) -> Twin:
    return gemma3n_twin(module) if isinstance(module, Gemma3n) else gemma3_twin(module)


@torch.inference_mode()
def logits(twin: Twin, ids: list[int]) -> Floats:
    found: Floats = twin(torch.tensor([ids]), use_cache=True).logits[0].numpy()
    return found


def ids_for(model: Model, count: int) -> list[int]:
    """Of text, and of the per-layer table."""
    config: Any = model.config
    most = min(config.vocab_size, config.vocab_size_per_layer_input or config.vocab_size)
    return [2, *(3 + (7919 * place) % (most - 3) for place in range(1, count))]


@pytest.fixture(scope="module", params=MODULES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that was loaded from a directory, and transformers' with its weights."""
    module = MODULES[request.param]()
    folder = tmp_path_factory.mktemp("scores") / "tiny"
    model = load(write_checkpoint(folder, module))
    decoder = model.engine.decoder
    assert isinstance(decoder, NativeDecoder)
    kernels = native.module is not None
    assert decoder.is_native == (kernels and "NumPy" not in request.param)
    return model, twin_of(module)


@pytest.mark.parametrize("count", LENGTHS)
def test_every_position(pair: tuple[Model, Twin], count: int) -> None:
    model, twin = pair
    ids = ids_for(model, count)
    scores = model.scores(ids)
    assert scores.dtype == np.float32 and scores.shape == (count, model.config.vocab_size)
    assert np.abs(scores - logits(twin, ids)).max() <= TOLERANCE


@pytest.mark.parametrize("chunk", [1, 7, 16, 17, 59])
def test_any_chunk(pair: tuple[Model, Twin], chunk: int) -> None:
    model, twin = pair
    ids = ids_for(model, 60)
    engine = Engine(model.engine.decoder, model.tokenizer, chunk=chunk)
    wanted = logits(twin, ids)
    assert np.abs(engine.score(ids) - wanted).max() <= TOLERANCE
    assert np.abs(engine.session().read(ids) - wanted[-1]).max() <= TOLERANCE


@pytest.mark.parametrize("count", LENGTHS)
def test_greedy_ids(pair: tuple[Model, Twin], count: int) -> None:
    model, twin = pair
    ids = ids_for(model, count)
    with torch.inference_mode():
        told: Any = twin.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, count),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=None,
            pad_token_id=0,
        )
    found = model.generate(ids, temperature=0, max_tokens=24, ignore_eos=True).token_ids
    assert list(found) == told[0, count:].tolist()


@pytest.mark.parametrize("format", ["bf16", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_any_file_in_float32(tmp_path: Path, family: str, format: TargetFormat) -> None:
    """What a file rounded is rounded; what is computed from it is float32."""
    source = write_checkpoint(tmp_path / "tiny", MODULES[family]())
    convert(source, tmp_path / "tiny.gguf", format)
    model = load(tmp_path / "tiny.gguf", format="f32")
    stored = load_checkpoint(tmp_path / "tiny.gguf").weights
    assert format in stored.formats
    module: Any = decoder_of(model.config)
    module.load_state_dict({name: torch.from_numpy(unpack(w)) for name, w in stored.items()})
    twin = twin_of(module.eval())
    for count in LENGTHS:
        found = model.scores(IDS[:count])
        assert np.abs(found - logits(twin, IDS[:count])).max() <= TOLERANCE
    exact = load(source).scores(IDS)[:, : found.shape[1]]
    assert np.abs(found - exact).max() > 1e-3


def test_logits_are_the_scores(pair: tuple[Model, Twin], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor over the same memory."""
    model, _ = pair
    ids = ids_for(model, 9)
    made: list[Floats] = []

    def kept(prompt: Any) -> Floats:
        made.append(model.engine.score(model.tokens(prompt)))
        return made[-1]

    monkeypatch.setattr(model, "scores", kept)
    found = model.logits(ids)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
    assert len(made) == 1 and found.data_ptr() == made[0].__array_interface__["data"][0]
    assert found.shape == made[0].shape and found.numpy().tolist() == made[0].tolist()
