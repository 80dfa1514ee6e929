"""Gemma 3: 270M, 1B, 4B, 12B, 27B, and SigLIP where a model has eyes.

config = Gemma3Config.from_hf(json.loads(text))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gemelo.config.model import (
    ACTIVATION,
    MOST_LAYERS,
    ModelConfig,
    alternating,
    check,
    check_numbers,
    check_whole,
    eos_ids,
    known_fields,
    read_layer_types,
    read_rope,
    refuse,
    refuse_text,
    section,
    text_part,
    text_to_hf,
    ties_head,
)
from gemelo.errors import FileFormatError

PATTERN = 6  # five sliding layers, then a full one
_INDEX_KEYS = ("boi_token_index", "eoi_token_index", "image_token_index")
# Other names of these, which transformers reads as well.
ALIASES = {key.replace("_index", "_id"): key for key in _INDEX_KEYS}
_NOT_TEXT = {"vision", "mm_tokens_per_image", *_INDEX_KEYS}


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP's `vision_config`."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 896
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.hidden_size % self.num_attention_heads or self.image_size % self.patch_size:
            raise FileFormatError(
                f"vision_config has hidden_size = {self.hidden_size} for num_attention_heads = "
                f"{self.num_attention_heads}, image_size = {self.image_size} for patch_size = "
                f"{self.patch_size}; they do not divide evenly"
            )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> Self:
        """Read a `vision_config`."""
        refuse(
            raw,
            {
                "model_type": ("siglip_vision_model",),
                "hidden_act": (ACTIVATION,),
                "num_channels": (3,),
            },
        )
        return cls(**known_fields(cls, raw))


@dataclass(frozen=True)
class Gemma3Config(ModelConfig):
    """A Gemma 3 decoder, and its eye if it has one. Defaults are the reference class's."""

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
                f"config has mm_tokens_per_image = {config.mm_tokens_per_image}, and its eye makes "
                f"{config.vision.num_patches} patches of an image"
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
