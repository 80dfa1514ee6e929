"""Both devices give what transformers and the plain CPU forward give: `pytest -m gpu` for CUDA."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
)

from gemelo.api import load
from gemelo.checkpoints.load import load_checkpoint
from gemelo.config import Gemma3Config, Gemma3nConfig
from gemelo.config.options import TablePlacement
from gemelo.engine import device as device_module
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.device import decoder_on, gpu_notices, place, set_threads
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.engine import Engine
from gemelo.engine.memory.per_layer_table import HeldTable
from gemelo.engine.modules.decoder import ModuleDecoder, weights_of
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING, NativeDecoder
from gemelo.errors import InputError, MissingExtraError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import native
from gemelo.kernels.quants import Floats
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from tests.conftest import HEADS_OF_64, TINY, tiny_model
from tests.gemma3n import IDS, TINY_3N, tiny_3n, write_3n
from tests.matformer import CONFIG, PROMPT, SMALL, ids_of, tiny_gemma3n
from tests.native import needs_native
from tests.quantised import in_format, made, native_of

TOLERANCE = 3e-4  # that of the decoders' own parity tests: float32 in another order
Module = Gemma3 | Gemma3n
HEADS_OF_64_3N = dataclasses.replace(TINY_3N, head_dim=64)


@pytest.fixture(params=["program", "modules", pytest.param("cuda", marks=pytest.mark.gpu)])
def runner(request: pytest.FixtureRequest) -> Iterator[str]:
    """The program and modules on a CPU; and CUDA, its products in whole float32: TF32 would be
    another test."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def plain(request: pytest.FixtureRequest) -> Module:
    """A decoder's modules on the CPU, in float32, of widths that the kernels take."""
    return tiny_model(HEADS_OF_64) if request.param == "gemma3" else tiny_3n(HEADS_OF_64_3N)


def on(runner: str, module: Module) -> Decoder:
    """The decoder of modules, where and as it is to run."""
    if runner == "program":
        decoder = native_of(module)
        assert decoder.is_native == (native.module is not None)
        return decoder
    moved = copy.deepcopy(module).to(torch.device("cuda" if runner == "cuda" else "cpu"))
    return ModuleDecoder(moved, weights_of(module))


@torch.inference_mode()
def reference(module: Module) -> Floats:
    """transformers' scores after each of IDS, on the CPU."""
    raw = {key: value for key, value in module.config.to_hf().items() if key != "architectures"}
    config: Any = Gemma3TextConfig if isinstance(module.config, Gemma3Config) else Gemma3nTextConfig
    kind: Any = Gemma3ForCausalLM if config is Gemma3TextConfig else Gemma3nForCausalLM
    twin = kind(config(**raw, attn_implementation="eager")).eval()
    state = {f"model.{name}": weight for name, weight in module.state_dict().items()}
    twin.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    scores: Floats = twin(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    return scores


def assert_near(found: Floats, expected: Floats) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("chunk", [7, 512])
def test_scores_are_those_of_transformers(
    plain: Module, runner: str, tiny_tokenizer: Tokenizer, chunk: int
) -> None:
    decoder = on(runner, plain)
    assert decoder.device_name.partition(":")[0] == ("cuda" if runner == "cuda" else "cpu")
    scores = Engine(decoder, tiny_tokenizer, chunk=chunk).score(IDS)
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float32
    assert_near(scores, reference(plain))


def test_greedy_ids_are_those_of_the_plain_forward(
    plain: Module, runner: str, tiny_tokenizer: Tokenizer
) -> None:
    """Read, continued, and continued again from the prefix that is held."""
    expected = list(IDS)
    with torch.inference_mode():
        for _ in range(24):
            hidden = plain(torch.tensor([expected]), torch.arange(len(expected))[None])
            expected.append(int(plain.logits(hidden[0, -1]).argmax()))
    session = Engine(on(runner, plain), tiny_tokenizer, chunk=16).session()
    assert ids_of(session, IDS) == expected[len(IDS) :]
    assert ids_of(session, expected[: len(IDS) + 9])[:15] == expected[len(IDS) + 9 :]
    assert session.timings.reused_tokens > 0


def test_a_view_scores_as_on_the_cpu(runner: str, tiny_tokenizer: Tokenizer) -> None:
    """Fewer layers and narrower ones, over the whole's weights where those are."""
    whole = tiny_gemma3n(CONFIG)
    expected = step.score(*with_cache(ModuleDecoder(whole).view(SMALL)), PROMPT)
    view = SubmodelViews(on(runner, whole)).view(SMALL)
    scores = Engine(view, tiny_tokenizer, chunk=16).score(PROMPT)
    # Larger numbers than those of the other models.
    assert np.abs(scores - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())


def with_cache(decoder: Decoder) -> tuple[Decoder, Any]:
    return decoder, decoder.cache(64)


@pytest.mark.parametrize("where", ["disk", "ram", "device"])
def test_per_layer_rows_travel_to_the_device(
    device: str, tmp_path: Path, where: TablePlacement
) -> None:
    folder = write_3n(tmp_path / "hub", HEADS_OF_64_3N)
    checkpoint = load_checkpoint(folder)
    plain = decoder_on("cpu", checkpoint.config, checkpoint.weights, repack=False)
    expected = step.score(*with_cache(plain), IDS)
    loaded = load(folder, device=device, ple=where)
    decoder = loaded.engine.decoder
    if isinstance(decoder, ModuleDecoder):
        table = cast(Gemma3n, decoder.module).embed_tokens_per_layer.weight
        assert table.device.type == (device if where == "device" else "cpu")
        assert (decoder.table is None) == (where == "device")
    else:
        assert isinstance(decoder, NativeDecoder) and decoder.table is not None
        assert isinstance(decoder.table, HeldTable) or where == "disk"
    assert_near(loaded.logits(IDS).numpy(), expected)


# ---- a decoder on the CPU ------------------------------------------------------------------------


@needs_native
def test_on_a_cpu_a_program_runs_natively_with_what_it_needs(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    config, weights = checkpoint.config, checkpoint.weights
    moved, mapped = (decoder_on("cpu", config, weights, repack=repack) for repack in (True, False))
    for decoder in (moved, mapped):
        assert isinstance(decoder, NativeDecoder) and decoder.is_native
        assert decoder.device_name == "cpu" and decoder.table is None
        assert decoder.weights is weights
    assert cast(NativeDecoder, moved).panels is not None
    assert cast(NativeDecoder, mapped).panels is None
    found = [step.score(*with_cache(decoder), IDS) for decoder in (moved, mapped)]
    assert np.abs(found[0] - found[1]).max() < 0.02 * np.abs(found[1]).max()


def test_ids_of_a_modality_go_with_a_decoder() -> None:
    decoder = made(HEADS_OF_64_3N)

    class Markers:
        first = 500

        def rows(self, ids: Any) -> dict[int, Floats]:
            return {}

    special = Markers()
    found = decoder_on("cpu", decoder.config, decoder.weights, special)
    assert found.has_own_embeddings([3, 500]) and not found.has_own_embeddings([499])


def test_what_kernels_do_not_take_runs_in_numpy() -> None:
    whole = made(TINY["grouped-scaled"])
    decoder = decoder_on("cpu", whole.config, whole.weights)
    assert isinstance(decoder, NativeDecoder)
    assert not decoder.is_native and decoder.panels is None and decoder.kv_format == "plain"


@pytest.mark.parametrize("ple", [None, "ram", "device"])
def test_a_table_is_where_rows_are_asked_for(ple: TablePlacement | None) -> None:
    """On a device that is none: modules there, the table here, unless it is to be there too."""
    whole = made(HEADS_OF_64_3N)
    decoder = decoder_on("meta", whole.config, whole.weights, ple=ple)
    assert isinstance(decoder, ModuleDecoder) and decoder.device.type == "meta"
    table = cast(Gemma3n, decoder.module).embed_tokens_per_layer.weight
    assert table.device.type == ("meta" if ple == "device" else "cpu")
    if ple == "device":
        assert decoder.table is None and decoder.module.per_layer_table is None
    else:
        assert isinstance(decoder.table, HeldTable)
        assert decoder.module.per_layer_table is not None
    assert decoder.module.layers[0].mlp.up_proj.weight.device.type == "meta"


def test_a_quantised_model_has_its_blocks_on_the_device() -> None:
    whole = made(HEADS_OF_64_3N)
    weights = in_format(whole.weights, "q8_0")
    decoder = decoder_on("meta", whole.config, weights)
    assert isinstance(decoder, ModuleDecoder)
    assert decoder.module.layers[0].mlp.up_proj.blocks.device.type == "meta"
    assert weights[PER_LAYER_EMBEDDING].format.name == "q8_0"


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


# ---- names of devices ----------------------------------------------------------------------------


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that NVIDIA's driver is installed on."""
    monkeypatch.setattr(device_module, "_has_driver", lambda: True)


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where PyTorch is not installed."""
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:", "cuda:x", "CUDA", "mps", "", None, 0])
def test_a_name_that_is_none_is_said(name: Any) -> None:
    with pytest.raises(InputError, match="is not one of auto, cpu, cuda, cuda:N"):
        place(name)


def test_a_device_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert place("cuda") == "cuda" and place("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(InputError, match=f"device '{name}': this torch finds no CUDA device"):
            place(name)


@pytest.mark.parametrize("finds", [True, False])
def test_auto_with_a_driver_is_what_torch_finds(
    driver: None, finds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: finds)
    assert place("auto") == ("cuda" if finds else "cpu")


def test_without_a_driver_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded() -> bool:
        raise AssertionError("PyTorch was loaded")

    monkeypatch.setattr(device_module, "_has_driver", lambda: False)
    monkeypatch.setattr(device_module, "_finds_cuda", loaded)
    assert place("auto") == "cpu" and gpu_notices("auto") == []


def test_without_torch_there_is_a_cpu(driver: None, no_torch: None) -> None:
    assert place("auto") == place("cpu") == "cpu" and gpu_notices("auto") == []
    with pytest.raises(
        MissingExtraError, match=r"CUDA devices need the extra torch \(torch is not"
    ):
        place("cuda")
    assert set_threads(1) == []


def test_a_torch_that_cannot_be_imported_finds_nothing(
    driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half installed, or without a library of its own: a text on the CPU needs none of it."""
    broken = BrokenTorch("torch")
    monkeypatch.setattr(device_module, "is_found", lambda name: True)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    assert place("auto") == "cpu"
    with pytest.raises(MissingExtraError, match="which cannot be imported .OSError: libtorch"):
        place("cuda")


def test_a_torch_without_its_parts_finds_nothing(
    driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hollow = ModuleType("torch")
    hollow.__spec__ = ModuleSpec("torch", None, origin="torch/__init__.py")
    monkeypatch.setitem(sys.modules, "torch", hollow)
    assert place("auto") == "cpu"
    with pytest.raises(InputError, match="finds no CUDA device"):
        place("cuda")


class BrokenTorch(ModuleType):
    """A finder by which the import of torch fails as it does where a library is missing."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            raise OSError("libtorch_cpu.so: cannot open shared object file")


# ---- auto ----------------------------------------------------------------------------------------


def test_a_gpu_that_nobody_asked_for_is_noted_once(
    driver: None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []
    made_here: Callable[..., Decoder] = decoder_on

    def here(device: str, *more: Any) -> Decoder:
        chosen.append(device)
        return made_here("cpu", *more)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys.modules[load.__module__], "decoder_on", here)
    monkeypatch.setattr(device_module, "_UNTESTED", list(device_module._UNTESTED) or ["not tested"])
    load(tiny_checkpoint, device="cuda")
    told = [load(tiny_checkpoint).checkpoint.notices for _ in range(2)]
    assert chosen == ["cuda"] * 3
    assert [sum("not tested" in notice for notice in notices) for notices in told] == [1, 0]


def test_the_cpu_is_noted_never(
    driver: None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not [n for n in load(tiny_checkpoint).checkpoint.notices if "CUDA" in n]
