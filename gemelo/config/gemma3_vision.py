"""SigLIP So400m/14 in a `config.json`: the vision tower of Gemma 3.

config = VisionConfig.from_hf(json.loads(text)["vision_config"])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from gemelo.config.checks import check_numbers
from gemelo.config.config_json import ACTIVATION, known_fields, refuse
from gemelo.errors import FileFormatError


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP's `vision_config`. `image_mean` and `image_std` are of every channel of its pixels."""

    image_mean: ClassVar[float] = 0.5
    image_std: ClassVar[float] = 0.5
    do_pan_and_scan: ClassVar[bool] = True  # whether crops of a long image may be shown beside it

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
    def image_sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the square that it takes, the usual one last."""
        return (self.image_size,)

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
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
