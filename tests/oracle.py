"""What it takes to import the reference's Gemma 3n: its operators declared, where they are missing.

A torchvision built for another torch than the one at hand cannot be imported before that.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

if find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor a, Tensor b, float t) -> Tensor")

from transformers import (  # noqa: E402
    Gemma3nAudioConfig,
    Gemma3nAudioEncoder,
    Gemma3nAudioFeatureExtractor,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
)
from transformers.models.gemma3n.modeling_gemma3n import (  # noqa: E402
    Gemma3nMultimodalEmbedder,
)

__all__ = [
    "Gemma3nAudioConfig",
    "Gemma3nAudioEncoder",
    "Gemma3nAudioFeatureExtractor",
    "Gemma3nMultimodalEmbedder",
    "Gemma3nTextConfig",
    "Gemma3nVisionConfig",
]
