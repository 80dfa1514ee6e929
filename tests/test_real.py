"""The real Gemma 3 270M: the reference's numbers, to the tolerance that kernels differ by.

Golden values are those of transformers 5.23 in float32 on the dequantised file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemelo.api import Model, load
from gemelo.checkpoints.load import load_checkpoint
from gemelo.engine.engine import Engine
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.kernels.quants import Floats
from gemelo.weights.mapped import behind

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


def likeliest(scores: Floats, count: int) -> list[int]:
    """Ids of the highest scores (V,), in order."""
    found: list[int] = np.argsort(-scores)[:count].tolist()
    return found


def logsumexp(scores: Floats) -> NDArray[np.float64]:
    """Of scores (..., V), in float64."""
    wide = scores.astype(np.float64)
    most = wide.max(-1, keepdims=True)
    return np.asarray(most[..., 0] + np.log(np.exp(wide - most).sum(-1)))


@pytest.fixture(scope="module")
def wide(real_gguf: Path) -> Model:
    return load(real_gguf, format="f32")


def test_greedy_text_is_the_references(wide: Model) -> None:
    completion = wide.generate(FRANCE, temperature=0, max_tokens=30)
    assert completion.prompt_token_ids == tuple(PARIS)
    assert completion.token_ids == GREEDY_IDS
    assert completion.text == GREEDY_TEXT
    assert completion.finish_reason == "length"


@pytest.mark.usefixtures("exact")
def test_quantised_weights_give_the_same_scores_as_widened_ones(
    real_gguf: Path, wide: Model
) -> None:
    quantised = load(real_gguf)
    assert np.abs(quantised.scores(PARIS) - wide.scores(PARIS)).max() < 2e-3
    assert quantised.generate(PARIS, temperature=0, max_tokens=4).token_ids == GREEDY_IDS[:4]


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
    last = wide.scores(ids)[-1]
    tokens = likeliest(last, 5)
    assert tokens == list(top)
    assert last[tokens].tolist() == pytest.approx(list(top.values()), abs=2e-3)
    assert float(logsumexp(last)) == pytest.approx(total, abs=2e-3)


def test_every_position_scores(wide: Model) -> None:
    scores = wide.scores(PARIS)
    assert scores.shape == (6, 262144)
    assert scores.argmax(-1).tolist() == [184, 236743, 529, 506, 236764, 506]
    assert logsumexp(scores).tolist() == pytest.approx(
        [17.013, 21.5125, 23.2192, 21.3785, 21.6346, 20.7455], abs=2e-3
    )


def test_bfloat16_rounds_as_the_reference_does(real_gguf: Path, wide: Model) -> None:
    """The ids are those of transformers in bfloat16 (eager) on the same weights, which modules
    give; the native program rounds no activations, and gives those of float32."""
    model = load(real_gguf, format="bf16")
    modules = Model(
        model.checkpoint, Engine(ModuleDecoder.of(model.engine.decoder), model.tokenizer)
    )
    for one, ids in ((modules, BFLOAT16_IDS), (model, GREEDY_IDS[:24])):
        last = one.scores(PARIS)[-1]
        assert likeliest(last, 5) == [506, 496, 9079, 886, 3224]
        assert float(last.max()) == pytest.approx(19.25, abs=0.5)
        assert one.generate(PARIS, temperature=0, max_tokens=24).token_ids == ids
    exact = wide.scores(PARIS)
    rounded, more = (np.abs(one.scores(PARIS) - exact).mean() for one in (model, modules))
    assert 0 < rounded < 0.6 * more


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
    decoder = NativeDecoder(config, wide.checkpoint.weights)
    ids = [2] + [(i * 7919) % 200000 + 1000 for i in range(1, 1200)]
    session = Engine(decoder, wide.tokenizer).session()
    last = session.read(ids)
    assert last[likeliest(last, 2)].tolist() == pytest.approx(list(top), abs=4e-4)
    assert float(logsumexp(last)) == pytest.approx(total, abs=4e-4)


def test_nothing_is_copied_at_load(real_gguf: Path) -> None:
    """Every quantised matrix is a view of the memory map, and the map is private."""
    checkpoint = load_checkpoint(real_gguf)
    assert checkpoint.weights.nbytes < real_gguf.stat().st_size
    (mapped,) = checkpoint.weights.files
    assert len(mapped) == real_gguf.stat().st_size
    matrices = [weight for weight in checkpoint.weights.values() if len(weight.shape) == 2]
    assert len(matrices) == 127 and all(behind([weight]) == [mapped] for weight in matrices)
