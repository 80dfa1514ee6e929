"""The embedder of eye and ear against transformers on random weights."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3nAudioConfig, Gemma3nTextConfig, Gemma3nVisionConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

from gemelo.models.embedder import MultimodalEmbedder
from gemelo.weights.names import EMBEDDER
from tests.conftest import randomise

TEXT_WIDTH = 24


@pytest.mark.parametrize(("kind", "width"), [("audio", 16), ("vision", 32)])
@torch.inference_mode()
def test_both_paths_equal_the_reference(kind: str, width: int) -> None:
    known = {"audio": Gemma3nAudioConfig, "vision": Gemma3nVisionConfig}[kind]
    config = known(hidden_size=width, vocab_size=8, vocab_offset=100, rms_norm_eps=0.01)
    theirs = Gemma3nMultimodalEmbedder(config, Gemma3nTextConfig(hidden_size=TEXT_WIDTH)).eval()
    ours = MultimodalEmbedder(range(100, 108), width, TEXT_WIDTH, 0.01)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    assert set(ours.state_dict()) == set(EMBEDDER)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, width, generator=generator)
    ids = torch.tensor([[100, 103, 107]])
    torch.testing.assert_close(ours(features), theirs(inputs_embeds=features))
    torch.testing.assert_close(ours.embed(ids), theirs(input_ids=ids))


def test_the_last_id_pads() -> None:
    with torch.device("meta"):
        embedder = MultimodalEmbedder(range(262272, 262400), 1536, 2048, 1e-6)
    assert embedder.pad_id == 262399
    assert sum(weight.numel() for weight in embedder.state_dict().values()) == 3_345_408


@torch.inference_mode()
def test_what_comes_out_has_unit_rms_in_its_own_dtype() -> None:
    embedder = MultimodalEmbedder(range(100, 108), 16, TEXT_WIDTH, 1e-6)
    randomise(embedder)
    y = embedder.to(torch.bfloat16)(torch.ones(1, 3, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert y.float().square().mean(-1).sqrt() == pytest.approx(torch.ones(1, 3), abs=0.01)
