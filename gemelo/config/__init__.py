"""Model configs: the facts of a `config.json`, and what follows from them.

Configs are frozen values with Hugging Face's field names. They are read from every generation of
`config.json` (`rope_theta` or `rope_parameters`, a pattern or `layer_types`, a text config alone
or inside a multimodal one); absent fields take the defaults of the reference classes, because
published files leave them out. What a config cannot express it refuses by name.

    config = read_config(json.loads(Path("config.json").read_text("utf-8")))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemelo.config.cost import flops_per_token, kv_bytes, kv_slots, num_parameters
from gemelo.config.gemma3 import Gemma3Config
from gemelo.config.gemma3_vision import VisionConfig
from gemelo.config.gemma3n import Gemma3nConfig
from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.layers import FULL, LAYER_TYPES, SLIDING, LayerConfig, LayerType
from gemelo.config.modalities import Modalities, PlaceholderTokens
from gemelo.config.model import ModelConfig
from gemelo.config.settings import MODEL_TYPES, check_kind, check_plain, setting_notices
from gemelo.config.submodel import Submodel

__all__ = [
    "FULL",
    "LAYER_TYPES",
    "MODEL_TYPES",
    "SLIDING",
    "AudioConfig",
    "Gemma3Config",
    "Gemma3nConfig",
    "LayerConfig",
    "LayerType",
    "Modalities",
    "ModelConfig",
    "PlaceholderTokens",
    "Submodel",
    "Vision3nConfig",
    "VisionConfig",
    "flops_per_token",
    "kv_bytes",
    "kv_slots",
    "num_parameters",
    "read_config",
    "setting_notices",
]


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The config of a `config.json`. Raises `UnsupportedError` for what gemelo does not run."""
    check_kind(raw)
    check_plain(raw)
    is_3n = raw["model_type"].startswith("gemma3n")
    return Gemma3nConfig.from_hf(raw) if is_3n else Gemma3Config.from_hf(raw)
