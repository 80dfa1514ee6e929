"""Universal Speech Model audio encoder: the `audio_config` of a Gemma 3n (arXiv 2303.01037).

 The file's own words are kept: `conf_` is the
conformer, `sscp_` the sub-sampling convolutions before it. What would make the encoder look into
the future, or step over frames, is refused by name; the chunk size of its attention says only how
the reference blocks the work and changes no result.

    config = AudioConfig.from_hf(raw["audio_config"]);  config.num_tokens(num_frames=997)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gemelo.config.checks import check_numbers, check_whole
from gemelo.config.config_json import known_fields, refuse
from gemelo.errors import FileFormatError, UnsupportedError

Pairs = tuple[tuple[int, int], ...]  # (time, frequency) of each convolution


@dataclass(frozen=True)
class AudioConfig:
    """The audio encoder of Gemma 3n. Defaults are the reference class's, and E4B's and E2B's."""

    vocab_size: int = 128
    vocab_offset: int = 262272
    input_feat_size: int = 128
    hidden_size: int = 1536
    rms_norm_eps: float = 1e-6
    gradient_clipping: float = 1e10
    conf_attention_chunk_size: int = 12
    conf_attention_context_left: int = 13  # the frame itself counts
    conf_attention_context_right: int = 0
    conf_attention_logit_cap: float = 50.0
    conf_num_attention_heads: int = 8
    conf_num_hidden_layers: int = 12
    conf_conv_kernel_size: int = 5
    conf_reduction_factor: int = 4
    conf_residual_weight: float = 0.5
    sscp_conv_channel_size: tuple[int, ...] = (128, 32)
    sscp_conv_group_norm_eps: float = 1e-3
    sscp_conv_kernel_size: Pairs = ((3, 3), (3, 3))
    sscp_conv_stride_size: Pairs = ((2, 2), (2, 2))

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("sscp_conv_channel_size", "sscp_conv_kernel_size", "sscp_conv_stride_size"):
            _check_two(name, getattr(self, name))
        if self.hidden_size % self.conf_num_attention_heads or self.hidden_size % 2:
            raise FileFormatError(
                f"audio_config has hidden_size = {self.hidden_size} for "
                f"conf_num_attention_heads = {self.conf_num_attention_heads}; "
                "expected an even multiple of it"
            )
        self._refuse_the_unheard_of()

    @property
    def vocab(self) -> range:
        """The ids past the text's that have their embeddings with this tower."""
        return range(self.vocab_offset, self.vocab_offset + self.vocab_size)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.conf_num_attention_heads

    @property
    def num_past(self) -> int:
        """Frames before its own that an encoder frame attends to."""
        return self.conf_attention_context_left - 1

    @property
    def num_bands(self) -> tuple[int, int]:
        """Frequency bands after each of the two convolutions."""
        first = self._bands(self.input_feat_size, 0)
        return first, self._bands(first, 1)

    @property
    def frames_per_token(self) -> int:
        """Spectrogram frames that one audio token stands for: 16, which are 160 ms."""
        (first, _), (second, _) = self.sscp_conv_stride_size
        return first * second * self.conf_reduction_factor

    def num_tokens(self, num_frames: int) -> int:
        """Audio tokens that a whole clip of so many spectrogram frames becomes."""
        return -(-num_frames // self.frames_per_token)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> Self:
        """Read an `audio_config`. Raises `FileFormatError` or `UnsupportedError`."""
        refuse(raw, {"model_type": ("gemma3n_audio",)})
        facts = known_fields(cls, raw)
        for key, value in facts.items():
            if isinstance(value, list | tuple):
                facts[key] = tuple(tuple(x) if isinstance(x, list) else x for x in value)
        return cls(**facts)

    def _bands(self, width: int, conv: int) -> int:
        kernel = self.sscp_conv_kernel_size[conv][1]
        return (width + 2 - kernel) // self.sscp_conv_stride_size[conv][1] + 1

    def _refuse_the_unheard_of(self) -> None:
        if self.conf_attention_context_right:
            raise UnsupportedError(
                f"audio_config has conf_attention_context_right = "
                f"{self.conf_attention_context_right}; gemelo runs encoders with 0, which see "
                "no frame before its time"
            )
        for kernel, stride in zip(
            self.sscp_conv_kernel_size, self.sscp_conv_stride_size, strict=True
        ):
            if kernel[0] < stride[0]:
                raise UnsupportedError(
                    f"audio_config steps {stride[0]} frames with a kernel of {kernel[0]}; "
                    "gemelo runs sub-sampling that hears every frame"
                )
        if min(self.num_bands) < 1:
            raise FileFormatError(
                f"audio_config has sscp_conv_kernel_size = {self.sscp_conv_kernel_size}, too wide "
                f"for input_feat_size = {self.input_feat_size}"
            )


def _check_two(name: str, value: Any) -> None:
    """Two whole numbers, or two pairs of them, as the default has it."""
    default = getattr(AudioConfig, name)
    if not isinstance(value, tuple) or len(value) != len(default):
        raise FileFormatError(f"audio_config has {name} = {value!r:.60}; expected {default}")
    for entry, wanted in zip(value, default, strict=True):
        if isinstance(wanted, tuple) != isinstance(entry, tuple) or len(_numbers(entry)) != len(
            _numbers(wanted)
        ):
            raise FileFormatError(f"audio_config has {name} = {value!r:.60}; expected {default}")
        for number in _numbers(entry):
            check_whole(name, number)


def _numbers(entry: Any) -> tuple[Any, ...]:
    return entry if isinstance(entry, tuple) else (entry,)
