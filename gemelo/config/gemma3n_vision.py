"""MobileNet-V5-300M in a `config.json`: the vision tower of Gemma 3n, by its name in timm.

The network is fixed but for two arguments that a file may hand to it, its width and the side of its
output. What a config asks for besides is refused by name.

    config = Vision3nConfig.from_hf(json.loads(text)["vision_config"])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from gemelo.config.checks import check_numbers
from gemelo.config.config_json import known_fields, refuse, section
from gemelo.errors import FileFormatError, UnsupportedError

ARCHITECTURE = "mobilenetv5_300m_enc"
WIDTH = 2048  # of the fused stages: the network has no other
# Beyond these a file is taken for broken: times the published width, pixels of the output's side.
WIDEST = 8.0
LONGEST = 128
_ARGUMENTS = ("channel_multiplier", "msfa_output_resolution")


@dataclass(frozen=True)
class Vision3nConfig:
    """Defaults are those of E2B and E4B, which share one tower. It takes pixels in [0, 1]."""

    image_mean: ClassVar[float] = 0.0
    image_std: ClassVar[float] = 1.0
    do_pan_and_scan: ClassVar[bool] = False
    image_sizes: ClassVar[tuple[int, ...]] = (256, 512, 768)  # in pixels, the usual one last

    architecture: str = ARCHITECTURE
    hidden_size: int = WIDTH
    vocab_size: int = 128
    vocab_offset: int = 262144
    rms_norm_eps: float = 1e-6
    channel_multiplier: float = 1.0
    msfa_output_resolution: int = 16

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.channel_multiplier > WIDEST or self.msfa_output_resolution > LONGEST:
            raise FileFormatError(
                f"vision_config has channel_multiplier = {self.channel_multiplier} and "
                f"msfa_output_resolution = {self.msfa_output_resolution}; expected up to "
                f"{WIDEST:g} and {LONGEST}"
            )

    @property
    def vocab(self) -> range:
        """The ids past the text's that have their embeddings with this tower."""
        return range(self.vocab_offset, self.vocab_offset + self.vocab_size)

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return self.msfa_output_resolution**2

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> Self:
        """Read a `vision_config`. Raises `UnsupportedError` for another network than this."""
        refuse(raw, {"architecture": (ARCHITECTURE,), "hidden_size": (WIDTH,)})
        arguments = section(raw, "model_args")
        unknown = sorted(map(str, arguments.keys() - set(_ARGUMENTS)))
        if unknown:
            raise UnsupportedError(
                f"model_args of {ARCHITECTURE} holds {unknown[0]!r}; gemelo knows "
                f"{', '.join(_ARGUMENTS)}"
            )
        return cls(**known_fields(cls, {**raw, **arguments}))
