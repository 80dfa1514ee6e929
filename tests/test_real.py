"""The real Gemma 3 270M: the reference's numbers, to the tolerance that kernels differ by.

Golden values are those of transformers 5.23 in float32 on the dequantised file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gemelo.api import Model, load
from gemelo.checkpoints.load import load_checkpoint
from gemelo.engine.engine import Engine
from gemelo.models.gemma3 import Gemma3

PARIS = [2, 818, 5279, 529, 7001, 563]
FRANCE = "The capital of France is"
GREEDY_IDS = (
    506, 5279, 529, 506, 2891, 529, 7001, 236761, 1030, 563, 506, 7488, 3207, 528, 7001, 532,
    506, 1855, 7488, 3207, 528, 3879, 236761, 1030, 563, 5628, 528, 506, 6029, 529,
)  # fmt: skip
BFLOAT16_IDS = (
    506, 5279, 529, 506, 2891, 529, 7001, 236761, 1030, 563, 506, 5279, 529, 506, 2891, 529, 7001,
    236761, 1030, 563, 506, 5279, 529, 506,
)  # fmt: skip
GREEDY_TEXT = (
    " the capital of the country of France. It is the largest city in France and the second "
    "largest city in Europe. It is located in the middle of"
)


@pytest.fixture(scope="module")
def wide(real_gguf: Path) -> Model:
    return load(real_gguf, format="f32")


@pytest.fixture(scope="module")
def native(real_gguf: Path) -> Model:
    return load(real_gguf, kv_format="plain")


def test_greedy_text_is_the_references(wide: Model) -> None:
    completion = wide.generate(FRANCE, temperature=0, max_tokens=30)
    assert completion.prompt_token_ids == tuple(PARIS)
    assert completion.token_ids == GREEDY_IDS
    assert completion.text == GREEDY_TEXT
    assert completion.finish_reason == "length"


@pytest.mark.usefixtures("exact")
def test_quantised_weights_give_the_same_scores_as_widened_ones(native: Model, wide: Model) -> None:
    assert float((native.logits(PARIS) - wide.logits(PARIS)).abs().max()) < 2e-3
    assert native.generate(PARIS, temperature=0, max_tokens=8).token_ids == GREEDY_IDS[:8]


@pytest.mark.parametrize(
    ("ids", "top", "total"),
    [
        (
            PARIS,
            {506: 19.0915, 496: 18.5476, 9079: 18.2686, 886: 18.1130, 3224: 17.7839},
            20.7455,
        ),
        (
            [2, 2063, 10779, 78113, 236769, 236749, 1473, 107],
            {140: 17.7929, 138: 14.7104, 255968: 14.4272, 139: 12.2552, 144: 12.0504},
            17.8818,
        ),
        (
            [2, 236770, 236743, 236778, 236743, 236800, 236743, 236812, 236743, 236810, 236743,
             236825],
            {236743: 15.6638, 108: 13.0124, 107: 12.9101, 568: 10.0922, 236761: 10.0474},
            15.8664,
        ),
    ],
)  # fmt: skip
def test_scores_are_the_references(
    wide: Model, ids: list[int], top: dict[int, float], total: float
) -> None:
    last = wide.logits(ids)[-1]
    values, tokens = last.topk(5)
    assert tokens.tolist() == list(top)
    assert values.tolist() == pytest.approx(list(top.values()), abs=2e-3)
    assert float(last.logsumexp(-1)) == pytest.approx(total, abs=2e-3)


def test_every_position_scores(wide: Model) -> None:
    scores = wide.logits(PARIS)
    assert scores.shape == (6, 262144)
    assert scores.argmax(-1).tolist() == [184, 236743, 529, 506, 236764, 506]
    assert scores.logsumexp(-1).tolist() == pytest.approx(
        [17.013, 21.5125, 23.2192, 21.3785, 21.6346, 20.7455], abs=2e-3
    )


def test_bfloat16_rounds_as_the_reference_does(real_gguf: Path) -> None:
    """The ids are those of transformers in bfloat16 (eager) on the same weights."""
    model = load(real_gguf, format="bf16")
    last = model.logits(PARIS)[-1]
    assert last.topk(5).indices.tolist() == [506, 496, 9079, 886, 3224]
    assert float(last.max()) == pytest.approx(19.25, abs=0.5)
    assert model.generate(PARIS, temperature=0, max_tokens=24).token_ids == BFLOAT16_IDS


@pytest.mark.parametrize(
    ("window", "top", "total"),
    [
        (511, (12.6110, 11.6838), 13.5660),
        (512, (12.6098, 11.6781), 13.5625),
        (513, (12.6039, 11.6826), 13.5589),
    ],
)
def test_the_window_is_exact_to_one_position(
    wide: Model, window: int, top: tuple[float, float], total: float
) -> None:
    """A window one too wide or too narrow is off by 1e-3: 1,200 tokens, read in chunks."""
    config = dataclasses.replace(wide.config, sliding_window=window)
    with torch.device("meta"):
        decoder = Gemma3(config)
    decoder.load_state_dict(wide.engine.decoder.state_dict(), assign=True)
    ids = [2] + [(i * 7919) % 200000 + 1000 for i in range(1, 1200)]
    session = Engine(decoder, wide.tokenizer).session()
    last = session.read(ids)
    assert last.topk(2).values.tolist() == pytest.approx(list(top), abs=4e-4)
    assert float(last.logsumexp(-1)) == pytest.approx(total, abs=4e-4)


def test_nothing_is_copied_at_load(real_gguf: Path) -> None:
    """Every quantised matrix is a view of the memory map, and the map is private."""
    checkpoint = load_checkpoint(real_gguf)
    assert checkpoint.weights_bytes < real_gguf.stat().st_size
    blocks = checkpoint.decoder.layers[0].mlp.gate_proj.weight.blocks
    assert blocks.untyped_storage().nbytes() == real_gguf.stat().st_size
