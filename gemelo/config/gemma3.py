"""The config of Gemma 3: 270M, 1B, 4B, 12B, 27B, with SigLIP where a model takes images.

config = Gemma3Config.from_hf(json.loads(text))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gemelo.config.checks import MOST_LAYERS, check_whole
from gemelo.config.config_json import (
    eos_ids,
    known_fields,
    read_layer_types,
    read_rope,
    refuse_text,
    section,
    text_part,
    ties_head,
)
from gemelo.config.gemma3_vision import VisionConfig
from gemelo.config.layers import alternating
from gemelo.config.modalities import Modalities, PlaceholderTokens
from gemelo.config.model import ModelConfig, check, text_to_hf
from gemelo.errors import FileFormatError

PATTERN = 6  # five sliding layers, then a full one
_INDEX_KEYS = ("boi_token_index", "eoi_token_index", "image_token_index")
# Other names of these, which transformers reads as well.
ALIASES = {key.replace("_index", "_id"): key for key in _INDEX_KEYS}
_NOT_TEXT = {"vision", "mm_tokens_per_image", *_INDEX_KEYS}


@dataclass(frozen=True)
class Gemma3Config(ModelConfig):
    """A Gemma 3 decoder, and its vision tower if it has one. Defaults are the reference class's."""

    intermediate_size: int = 9216
    query_pre_attn_scalar: float = 256
    vision: VisionConfig | None = None
    mm_tokens_per_image: int = 256
    boi_token_index: int = 255999
    eoi_token_index: int = 256000
    image_token_index: int = 262144

    def __post_init__(self) -> None:
        check_whole("num_hidden_layers", self.num_hidden_layers, most=MOST_LAYERS)
        if not self.layer_types:
            object.__setattr__(self, "layer_types", alternating(self.num_hidden_layers, PATTERN))
        check(self)

    @property
    def model_type(self) -> str:
        return "gemma3" if self.vision else "gemma3_text"

    @property
    def is_multimodal(self) -> bool:
        return self.vision is not None

    @property
    def ffn_widths(self) -> tuple[int, ...]:
        return (self.intermediate_size,) * self.num_hidden_layers

    @property
    def attention_scale(self) -> float:
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def norm_offset(self) -> float:
        return 1.0  # weights are stored around zero and mean 1 + w

    @property
    def modalities(self) -> Modalities:
        if self.vision is None:
            return Modalities()
        markers = self.boi_token_index, self.image_token_index, self.eoi_token_index
        return Modalities(PlaceholderTokens("<start_of_image>", *markers, self.mm_tokens_per_image))

    @property
    def bidirectional_image_tokens(self) -> int:
        return 0 if self.vision is None else self.mm_tokens_per_image

    def without_towers(self, *keys: str) -> Self:
        return dataclasses.replace(self, vision=None) if "vision_config" in keys else self

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> Self:
        """Read a `config.json` of model_type gemma3_text or gemma3."""
        text = text_part(raw, "gemma3")
        refuse_text(text)
        facts = {key: x for key, x in known_fields(cls, text).items() if key != "vision"}
        facts |= read_rope(text, facts.get("max_position_embeddings", cls.max_position_embeddings))
        num_layers = facts.get("num_hidden_layers", cls.num_hidden_layers)
        facts["layer_types"] = read_layer_types(text, num_layers, PATTERN)
        facts["eos_token_id"] = eos_ids(raw, text)
        facts["tie_word_embeddings"] = ties_head(raw)
        for key in ("mm_tokens_per_image", *ALIASES, *_INDEX_KEYS):
            if raw.get(key) is not None:
                facts[ALIASES.get(key, key)] = raw[key]
        if raw.get("model_type") == "gemma3":
            facts["vision"] = VisionConfig.from_hf(section(raw, "vision_config"))
        config = cls(**facts)
        if config.vision is not None and config.mm_tokens_per_image > config.vision.num_patches:
            raise FileFormatError(
                f"config has mm_tokens_per_image = {config.mm_tokens_per_image}, and its vision "
                f"tower makes {config.vision.num_patches} patches of an image"
            )
        return config

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model, readable by transformers 4.50 to 5."""
        text = {"model_type": "gemma3_text"} | text_to_hf(self, _NOT_TEXT)
        if self.vision is None:
            return {"architectures": ["Gemma3ForCausalLM"]} | text
        return {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": text,
            "vision_config": dataclasses.asdict(self.vision)
            | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "eos_token_id": list(self.eos_token_id),
            "mm_tokens_per_image": self.mm_tokens_per_image,
            "tie_word_embeddings": self.tie_word_embeddings,
        } | {key: getattr(self, key) for key in _INDEX_KEYS}
