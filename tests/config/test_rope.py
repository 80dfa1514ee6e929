"""Rotary settings in every spelling that transformers merges, against transformers itself."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig
from transformers import Gemma3TextConfig as TheirConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from gemelo.config import FULL, LAYER_TYPES, SLIDING, Gemma3Config, read_config
from gemelo.config.rope import Linear, Llama3, Rope, Scaling, Yarn
from gemelo.errors import FileFormatError, GemeloError, UnsupportedError
from tests.conftest import TINY, tiny_model
from tests.gemma3n import TINY_3N, tiny_3n

BASE = {"model_type": "gemma3_text", "max_position_embeddings": 4096, "head_dim": 64}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SPELLINGS: dict[str, dict[str, Any]] = {
    "bases": {"rope_theta": 5e5, "rope_local_base_freq": 2e4},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "linear and both names": {
        "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 8.0}
    },
    "nested": {"rope_parameters": {FULL: {"rope_type": "linear", "factor": 4.0}}},
    "nested counts more than the top": {
        "rope_theta": 3e5,
        "rope_local_base_freq": 5e3,
        "rope_parameters": {FULL: {"rope_theta": 2e6}, SLIDING: None},
    },
    "sliding layers": {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}},
    "rope_scaling counts more than nested": {
        "rope_parameters": {FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e5}},
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    },
    "rope_scaling with a base": {"rope_theta": 3e5, "rope_scaling": {"rope_theta": 4e5}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn of a shorter context": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 16,
            "original_max_position_embeddings": 256,
            "beta_fast": 16,
            "beta_slow": 2,
        }
    },
    "yarn with a factor of its own": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}
    },
    "yarn with mscale": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2}
    },
    "yarn in both": {
        "rope_parameters": {
            kind: {"rope_type": "yarn", "factor": factor, "rope_theta": 2e5}
            for kind, factor in zip(LAYER_TYPES, (2.0, 4.0), strict=True)
        }
    },
    "llama3": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama3 of a shorter context": {
        "rope_parameters": {
            FULL: {"rope_type": "llama3", "original_max_position_embeddings": 100, **LLAMA3}
        }
    },
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "nothing": {"rope_scaling": None, "rope_parameters": None},
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_frequencies_are_the_references(spelling: dict[str, Any]) -> None:
    ours = read_config(BASE | spelling)
    raw = {key: value for key, value in BASE.items() if key != "model_type"}
    theirs = Gemma3RotaryEmbedding(TheirConfig(**raw, **spelling))
    for kind in LAYER_TYPES:
        rope = ours.rope(kind)
        frequencies = torch.tensor(rope.frequencies(64))
        torch.testing.assert_close(
            frequencies, getattr(theirs, f"{kind}_inv_freq"), rtol=1e-6, atol=0
        )
        assert rope.attention_scaling == pytest.approx(getattr(theirs, f"{kind}_attention_scaling"))
    assert read_config(ours.to_hf()) == ours


def stretched(plain: Tensor, scaling: Scaling, theta: float) -> Tensor:
    """The oracle: stretched in PyTorch's float32."""
    head_dim = 2 * len(plain)
    if isinstance(scaling, Linear):
        return plain / scaling.factor
    if isinstance(scaling, Yarn):
        ends = [
            head_dim
            * math.log(scaling.original_max_position_embeddings / (beta * 2 * math.pi))
            / (2 * math.log(theta))
            for beta in (scaling.beta_fast, scaling.beta_slow)
        ]
        low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), head_dim - 1)
        ramp = ((torch.arange(len(plain)) - low) / (high - low or 0.001)).clamp(0, 1)
        return plain / scaling.factor * ramp + plain * (1 - ramp)
    waves = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((waves - scaling.low_freq_factor) / span).clamp(0, 1)
    return plain / scaling.factor * (1 - kept) + plain * kept


@pytest.mark.parametrize("head_dim", [8, 24, 64, 128, 256])
@pytest.mark.parametrize("theta", [1e4, 1e6, 5e5, 2e4, 123456.7])
def test_plain_frequencies_are_within_one_last_place(theta: float, head_dim: int) -> None:
    ours = torch.tensor(Rope(theta).frequencies(head_dim))
    exponents = -torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    theirs = theta**exponents
    assert int((ours.view(torch.int32) - theirs.view(torch.int32)).abs().max()) <= 1
    exact = torch.tensor(theta, dtype=torch.float32).double() ** exponents.double()
    assert torch.equal(ours, exact.float())


@pytest.mark.parametrize(
    "scaling",
    [
        Linear(8.0),
        Linear(3),
        Yarn(4.0, 4096),
        Yarn(16, 256, beta_fast=16, beta_slow=2),
        Llama3(8.0, 1.0, 4.0, 8192),
        Llama3(4, 1, 4, 100),
    ],
)
@pytest.mark.parametrize("head_dim", [24, 64, 256])
def test_stretched_frequencies_are_pytorchs_to_the_bit(scaling: Scaling, head_dim: int) -> None:
    plain = torch.tensor(Rope(1e6).frequencies(head_dim))
    ours = torch.tensor(Rope(1e6, scaling).frequencies(head_dim))
    assert torch.equal(ours, stretched(plain, scaling, 1e6))


@pytest.mark.parametrize(
    "scaling", [Linear(1e-300), Yarn(1e-300, 4096), Llama3(1e-300, 1, 2, 4096)]
)
def test_an_absurd_factor_warns_of_nothing(scaling: Scaling) -> None:
    assert len(Rope(1e6, scaling).frequencies(64)) == 32


def test_frequencies_are_made_without_pytorch() -> None:
    script = (
        "import sys; from gemelo.config.rope import Rope, Yarn\n"
        "print(len(Rope(1e6, Yarn(4.0, 4096)).frequencies(64)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["32", "False"], done.stderr


def test_an_older_name_of_the_type() -> None:
    """What transformers 4 reads; 5.23 passes it over, and a warning says so."""
    config = read_config(BASE | {"rope_scaling": {"type": "linear", "factor": 8.0}})
    assert config.rope_scaling_factor == 8.0


@pytest.mark.parametrize(
    "spelling", ["linear", "sliding layers", "yarn of a shorter context", "llama3", "dynamic"]
)
def test_logits_are_the_references(spelling: str) -> None:
    rope = SPELLINGS[spelling]
    tiny = dataclasses.replace(TINY["one-kv-head"], rope_scaling_factor=1.0)
    raw = {key: x for key, x in tiny.to_hf().items() if "rope" not in key} | rope
    config = read_config(raw)
    assert isinstance(config, Gemma3Config)
    model = tiny_model(config)
    raw.pop("architectures"), raw.pop("model_type")
    twin = Gemma3ForCausalLM(TheirConfig(**raw, attn_implementation="eager")).eval()
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    twin.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    ids = torch.randint(0, 512, (1, 90), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours = model.logits(model(ids, torch.arange(90)[None]))
        assert float((ours - twin(ids).logits).abs().max()) < 3e-4


@pytest.mark.parametrize("spelling", ["linear", "yarn in both"])
def test_logits_of_gemma_3n(spelling: str) -> None:
    raw = {k: x for k, x in TINY_3N.to_hf().items() if "rope" not in k} | SPELLINGS[spelling]
    config = read_config(raw)
    model = tiny_3n(config)  # type: ignore[arg-type]
    raw.pop("architectures"), raw.pop("model_type")
    twin = Gemma3nForCausalLM(Gemma3nTextConfig(**raw, attn_implementation="eager")).eval()
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    twin.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    ids = torch.randint(0, 512, (1, 60), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours = model.logits(model(ids, torch.arange(60)[None]))
        assert float((ours - twin(ids).logits).abs().max()) < 3e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "'proportional'"),
        ({"rope_parameters": {SLIDING: {"type": "su", "factor": 2.0}}}, "sliding.*'su'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "'rope_type' in rope_param"),
        ({"rope_parameters": {"rope_theta": 1e5}}, "'rope_theta' in rope_parameters"),
        ({"rope_parameters": {"chunked_attention": {"factor": 2}}}, "'chunked_attention'"),
        ({"rope_scaling": {FULL: {"factor": 2}}}, "'full_attention' in rope_scaling"),
        ({"rope_scaling": {"factor": 8.0}}, "factor = 8.0 and no rope_type"),
        ({"rope_parameters": {FULL: {"rope_type": "default", "factor": 8}}}, "no rope_type"),
        (
            {"rope_parameters": {FULL: {"partial_rotary_factor": 0.5}}},
            "partial_rotary_factor = 0.5",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}},
            "truncate = False",
        ),
    ],
)
def test_what_would_turn_otherwise_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_config(BASE | change)


@pytest.mark.parametrize(
    "entry",
    [
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": None},
        {"rope_type": "yarn"},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": "32"},
        {"rope_type": "yarn", "factor": 2.0, "rope_theta": 0.5},
        {"rope_type": "llama3", "factor": 2.0},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 1},
        {"rope_type": ["linear"], "factor": 2.0},
        {"rope_type": "linear", "type": "yarn", "factor": 2.0},
        *({"rope_type": "linear", "factor": x} for x in (0, -1, True, "2", [], 1e300, 10**400)),
        *({"rope_type": "linear", "factor": x} for x in (float("nan"), float("inf"))),
        *({"rope_theta": x} for x in (0, -1, True, "2", [], 1e300, float("nan"))),
    ],
)
@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_absurd_values_are_one_clear_line(entry: dict[str, Any], kind: str) -> None:
    with pytest.raises(GemeloError, match=kind):
        read_config(BASE | {"rope_parameters": {kind: entry}})
    with pytest.raises(FileFormatError):
        read_config(BASE | {"rope_theta": "fast"})
