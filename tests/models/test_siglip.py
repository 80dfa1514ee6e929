"""The vision tower and its projector against transformers on random weights."""

from __future__ import annotations

import dataclasses

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemelo.models.multimodal import Gemma3Tree
from tests.conftest import TINY, TINY_VISION, randomise


@torch.inference_mode()
def test_soft_tokens_equal_the_reference() -> None:
    config = dataclasses.replace(
        TINY["grouped-scaled"], vision=TINY_VISION, mm_tokens_per_image=4, image_token_index=500
    )
    tree = Gemma3Tree(config).eval()
    randomise(tree)
    raw = {key: value for key, value in config.to_hf().items() if key != "architectures"}
    twin = Gemma3ForConditionalGeneration(Gemma3Config(**raw, attn_implementation="eager")).eval()
    state = {f"model.{name}": weight for name, weight in tree.state_dict().items()}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    twin.load_state_dict(state)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = twin.get_image_features(pixels).pooler_output
    ours = tree.encode_image(pixels)
    assert ours.shape == (3, 4, config.hidden_size)
    assert float((ours - wanted).abs().max()) <= 3e-4 * float(wanted.abs().max())
