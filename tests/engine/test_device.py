"""Both devices give what transformers and the plain CPU forward give: `pytest -m gpu` for CUDA."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
)

from gemelo import api as model_module
from gemelo.api import load
from gemelo.checkpoints.load import Checkpoint, load_checkpoint
from gemelo.config import Gemma3Config, Gemma3nConfig
from gemelo.config.options import TablePlacement
from gemelo.engine import device as device_module
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.engine import Engine
from gemelo.engine.memory.per_layer_table import HeldTable, prepare
from gemelo.engine.step import Decoder
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from tests.conftest import TINY, tiny_model
from tests.gemma3n import IDS, TINY_3N, tiny_3n, write_3n
from tests.matformer import CONFIG, PROMPT, SMALL, ids_of, tiny_gemma3n

TOLERANCE = 3e-4  # that of the decoders' own parity tests: float32 in another order


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """CUDA's products in whole float32: TF32 would be another test."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield torch.device(request.param)
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def plain(request: pytest.FixtureRequest) -> Decoder:
    """A decoder on the CPU, in float32: it has no program, so modules run."""
    return tiny_model(TINY["grouped-scaled"]) if request.param == "gemma3" else tiny_3n()


def on(device: torch.device, decoder: Decoder) -> Decoder:
    return copy.deepcopy(decoder).to(device)


@torch.inference_mode()
def reference(decoder: Decoder) -> Tensor:
    """transformers' scores after each of IDS, on the CPU."""
    raw = {key: value for key, value in decoder.config.to_hf().items() if key != "architectures"}
    config: Any = (
        Gemma3TextConfig if isinstance(decoder.config, Gemma3Config) else Gemma3nTextConfig
    )
    kind: Any = Gemma3ForCausalLM if config is Gemma3TextConfig else Gemma3nForCausalLM
    twin = kind(config(**raw, attn_implementation="eager")).eval()
    state = {f"model.{name}": weight for name, weight in decoder.state_dict().items()}
    twin.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    scores: Tensor = twin(torch.tensor([IDS]), use_cache=False).logits[0]
    return scores


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert float((found.cpu() - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("chunk", [7, 512])
def test_scores_are_those_of_transformers(
    plain: Decoder, device: torch.device, tiny_tokenizer: Tokenizer, chunk: int
) -> None:
    scores = Engine(on(device, plain), tiny_tokenizer, chunk=chunk).score(IDS)
    assert scores.device.type == device.type
    assert_near(scores, reference(plain))


def test_greedy_ids_are_those_of_the_plain_forward(
    plain: Decoder, device: torch.device, tiny_tokenizer: Tokenizer
) -> None:
    """Read, continued, and continued again from the prefix that is held."""
    expected = list(IDS)
    with torch.inference_mode():
        for _ in range(24):
            hidden = plain(torch.tensor([expected]), torch.arange(len(expected))[None])
            expected.append(int(plain.logits(hidden[0, -1]).argmax()))
    session = Engine(on(device, plain), tiny_tokenizer, chunk=16).session()
    assert ids_of(session, IDS) == expected[len(IDS) :]
    assert ids_of(session, expected[: len(IDS) + 9])[:15] == expected[len(IDS) + 9 :]
    assert session.timings.reused_tokens > 0


def test_a_view_scores_as_on_the_cpu(device: torch.device, tiny_tokenizer: Tokenizer) -> None:
    """Fewer layers and narrower ones, over the whole's weights where those are."""
    whole = tiny_gemma3n(CONFIG)
    expected = Engine(SubmodelViews(whole).view(SMALL), tiny_tokenizer).score(PROMPT)
    view = SubmodelViews(on(device, whole)).view(SMALL)
    assert_near(Engine(view, tiny_tokenizer, chunk=16).score(PROMPT), expected)


@pytest.mark.parametrize("where", ["disk", "ram", "device"])
def test_per_layer_rows_travel_to_the_device(
    device: torch.device, tmp_path: Path, where: TablePlacement
) -> None:
    folder = write_3n(tmp_path / "hub")
    expected = Engine(load_checkpoint(folder).decoder, load_checkpoint(folder).tokenizer).score(IDS)
    loaded = load(folder, device=str(device), ple=where)
    decoder = loaded.engine.decoder
    assert isinstance(decoder, Gemma3n)
    if isinstance(decoder.per_layer_table, HeldTable):
        assert decoder.per_layer_table.parts.device.type == (
            device.type if where == "device" else "cpu"
        )
    assert_near(loaded.logits(IDS), expected)


# ---- a second device that is none ----------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY["grouped-scaled"], TINY_3N], ids=["gemma3", "gemma3n"])
@torch.inference_mode()
def test_a_forward_makes_nothing_on_another_device(config: Gemma3Config | Gemma3nConfig) -> None:
    """The meta device refuses an operation with a tensor of the CPU, as CUDA would."""
    made = Gemma3(config) if isinstance(config, Gemma3Config) else Gemma3n(config)
    decoder = made.to("meta")
    ids, places = torch.zeros(1, 20, dtype=torch.long), torch.arange(20)[None]
    scores = decoder.logits(decoder(ids.to("meta"), places.to("meta")))
    assert scores.device.type == "meta" and scores.shape == (1, 20, config.vocab_size)
    with pytest.raises(RuntimeError, match="device"):
        decoder(ids.to("meta"), places)


def test_a_table_in_memory_is_not_left_where_the_ids_are_not() -> None:
    """What cannot be mapped stays in the host's memory and hands out rows, if others are far."""
    decoder = tiny_3n()
    prepare(decoder, None, torch.device("cpu"))
    assert decoder.per_layer_table is None  # an embedding like any other
    prepare(decoder, None, torch.device("meta"))
    assert isinstance(decoder.per_layer_table, HeldTable)
    assert decoder.per_layer_table.parts.device.type == "cpu"


# ---- auto ----------------------------------------------------------------------------------------


def test_a_gpu_that_nobody_asked_for_is_noted_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []

    def read_here(path: Path, format: Any, device: torch.device, *more: Any) -> Checkpoint:
        chosen.append(device)
        return load_checkpoint(path, format, "cpu", *more)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(model_module, "load_checkpoint", read_here)
    monkeypatch.setattr(device_module, "_UNTESTED", list(device_module._UNTESTED) or ["not tested"])
    load(tiny_checkpoint, device="cuda")
    told = [load(tiny_checkpoint).checkpoint.notices for _ in range(2)]
    assert [d.type for d in chosen] == ["cuda"] * 3
    assert [sum("not tested" in notice for notice in notices) for notices in told] == [1, 0]


def test_the_cpu_is_noted_never(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not [n for n in load(tiny_checkpoint).checkpoint.notices if "CUDA" in n]
