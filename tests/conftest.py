"""Tiny models of every shape that matters, seeded weights, and the one real checkpoint at hand."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as torch's threads, below

import pytest
import torch

import tests.torchvision_shim  # noqa: F401  before anything imports transformers' eyes
from gemelo.checkpoints import written
from gemelo.checkpoints.convert import convert
from gemelo.config import Gemma3Config, VisionConfig
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import native
from gemelo.models.gemma3 import Gemma3
from gemelo.weights.safetensors import write_safetensors
from tests.native import count_skipped, refuse_if_required
from tests.tensors import entries
from tests.vocabulary import tiny_vocabulary as tiny_vocabulary


def pytest_configure() -> None:
    refuse_if_required()
    # A shell starts what runs in its background with Ctrl-C ignored, which tests then send.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count_skipped(terminalreporter)


# One thread: the models are tiny, and on a busy machine threads spend their time waiting. Tests of
# the pool ask for more themselves.
torch.set_num_threads(1)
native.set_threads(1)

# Window crossed, 5:1 pattern and its remainder, grouped heads, head_dim that is not hidden / heads,
# linear scaling on full layers alone, a query scalar that is not head_dim (27B's 168).
TINY = {
    "grouped-scaled": Gemma3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        query_pre_attn_scalar=16,
        sliding_window=8,
        max_position_embeddings=256,
        rope_scaling_factor=8.0,
    ),
    "blocks-of-32": Gemma3Config(
        vocab_size=512,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,
        max_position_embeddings=256,
        rope_scaling_factor=4.0,
    ),
    "one-kv-head": Gemma3Config(
        vocab_size=512,
        hidden_size=40,
        intermediate_size=96,
        num_hidden_layers=13,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=5,
        max_position_embeddings=256,
    ),
    "scalar-168": Gemma3Config(
        vocab_size=512,
        hidden_size=84,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=168,
        sliding_window=16,
        layer_types=("full_attention", "sliding_attention", "full_attention"),
        max_position_embeddings=256,
        rope_scaling_factor=8.0,
    ),
}

# As wide as the native kernels take it: the checkpoints of this run natively, as published ones do.
HEADS_OF_64 = dataclasses.replace(TINY["blocks-of-32"], head_dim=64, query_pre_attn_scalar=64)

TINY_VISION = VisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=32,
    patch_size=4,
)


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter away from its neutral value, so that no wrong path can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.5, 0.5, generator=generator)
            else:
                parameter.normal_(0, 0.08, generator=generator)


def tiny_model(config: Gemma3Config, seed: int = 0) -> Gemma3:
    model = Gemma3(config).eval()
    randomise(model, seed)
    return model


@pytest.fixture(params=native.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the machine, in use."""
    before = native.isa()
    native.use(request.param)
    yield request.param
    native.use(before)


@pytest.fixture(params=TINY.values(), ids=TINY.keys())
def config(request: pytest.FixtureRequest) -> Gemma3Config:
    value: Gemma3Config = request.param
    return value


@pytest.fixture(autouse=True, scope="session")
def own_record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A record of what conversions write, apart from the user's own."""
    path = tmp_path_factory.mktemp("record") / written.RECORD
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "_record", lambda: path)
        yield path


@pytest.fixture
def record(own_record: Path) -> Path:
    """The same, empty."""
    own_record.unlink(missing_ok=True)
    return own_record


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The embedded Gemma 3 270M, Q4_K_M."""
    from gemelo.checkpoints.locate import demo

    return demo()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(tiny_vocabulary())


def write_checkpoint(folder: Path, model: Gemma3, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face directory with the weights of `model` and the tiny tokenizer."""
    folder.mkdir()
    tokenizer = Tokenizer.from_gguf(tiny_vocabulary())
    state = {f"model.{name}": weight.to(dtype) for name, weight in model.state_dict().items()}
    write_safetensors(folder, entries(state))
    (folder / "config.json").write_text(json.dumps(model.config.to_hf()))
    (folder / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
    return folder


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint in the layout of the hub; every width a multiple of 32."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    return write_checkpoint(folder, tiny_model(HEADS_OF_64))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_directory: Path) -> Path:
    """The same as a GGUF file with 8-bit matrices."""
    path = tiny_directory.parent / "tiny-q8_0.gguf"
    convert(tiny_directory, path, "q8_0")
    return path


@pytest.fixture(scope="session")
def eyed_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with its eye."""
    from tests.multimodal import EYED, write

    return write(tmp_path_factory.mktemp("hub") / "tiny-eyed", EYED)


@pytest.fixture(scope="session")
def awake_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3n with its eye and its ear."""
    from tests.multimodal import AWAKE, write

    return write(tmp_path_factory.mktemp("hub") / "tiny-awake", AWAKE)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised products by the reference, whose activations are not rounded to bytes."""
    monkeypatch.setattr(native, "module", None)
