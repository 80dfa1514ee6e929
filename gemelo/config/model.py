"""The config of a decoder: the fields of both families, its layers, and where families differ.

A layer slides or attends fully; a family says which layers own keys and values and which borrow
them (`kv_donor`). Everything per layer is derived from a few numbers or read as a list, never
stored twice. A fact in which the families differ is a property here, so that nobody else has to
ask which family a model is of; what only Gemma 3n has is 0 or 1 elsewhere.

    config.layers_of(SLIDING);  config.layer(5).window;  config.modalities.image
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from gemelo.config.checks import check_numbers, check_whole
from gemelo.config.gemma3_vision import VisionConfig
from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.layers import FULL, SLIDING, LayerConfig, LayerType
from gemelo.config.modalities import Modalities
from gemelo.config.rope import ROPE_LOCAL_BASE_FREQ, ROPE_THETA, Linear, Rope, Scaling
from gemelo.errors import FileFormatError, UnsupportedError


@dataclass(frozen=True)
class ModelConfig(ABC):
    """A decoder. `Gemma3Config` and `Gemma3nConfig` are the two there are."""

    vocab_size: int = 262208
    hidden_size: int = 2304
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    sliding_window: int = 4096
    layer_types: tuple[LayerType, ...] = ()
    rope_theta: float = ROPE_THETA
    rope_local_base_freq: float = ROPE_LOCAL_BASE_FREQ
    rope_scaling_factor: float = 1.0  # linear, of full-attention layers
    rope_scaling: Scaling | None = None  # of those layers, if it is not linear
    rope_local_scaling: Scaling | None = None  # of sliding layers
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    bos_token_id: int = 2
    eos_token_id: tuple[int, ...] = (1,)
    pad_token_id: int = 0

    @property
    def layers(self) -> range:
        return range(self.num_hidden_layers)

    @property
    @abstractmethod
    def model_type(self) -> str:
        """Hugging Face's name of the architecture."""

    @property
    @abstractmethod
    def ffn_widths(self) -> tuple[int, ...]:
        """Width of every layer's feed-forward."""

    @property
    @abstractmethod
    def attention_scale(self) -> float:
        """What query-key products are multiplied by."""

    @property
    @abstractmethod
    def norm_offset(self) -> float:
        """What norms add to their weights, which are stored around zero or around one."""

    @property
    def embed_scale(self) -> float:
        """What embeddings are multiplied by, rounded to the activation dtype as in training."""
        return float(self.hidden_size**0.5)

    @abstractmethod
    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model."""

    # ---- what it takes in beside text ------------------------------------------------------------

    @property
    def vision(self) -> VisionConfig | Vision3nConfig | None:
        """The vision tower, if there is one."""
        return None

    @property
    def audio(self) -> AudioConfig | None:
        """The audio encoder, if there is one."""
        return None

    @property
    def is_multimodal(self) -> bool:
        """Whether the checkpoint has towers beside the decoder."""
        return False

    @property
    @abstractmethod
    def modalities(self) -> Modalities:
        """What it takes in beside text, and the tokens that stand for it."""

    @property
    def bidirectional_image_tokens(self) -> int:
        """Tokens of an image that attend to each other both ways, and so are written in one step;
        0 where images are causal, as text is."""
        return 0

    @abstractmethod
    def without_towers(self, *keys: str) -> Self:
        """The same without `vision_config`, `audio_config` or both, as a config.json calls them."""

    # ---- what Gemma 3n has, and others have none of ----------------------------------------------

    @property
    def is_matformer(self) -> bool:
        """Whether models are nested in it (MatFormer): leading neurons, and layers to skip."""
        return False

    @property
    def altup_num_inputs(self) -> int:
        """Streams of the residual."""
        return 1

    @property
    def laurel_rank(self) -> int:
        """Rank of the residual beside the attention."""
        return 0

    @property
    def hidden_size_per_layer_input(self) -> int:
        """Width of a per-layer embedding."""
        return 0

    @property
    def vocab_size_per_layer_input(self) -> int:
        """Rows of the table of per-layer embeddings, which are the ids of text."""
        return 0

    @property
    def num_kv_shared_layers(self) -> int:
        """Upper layers that borrow the keys and values of lower ones."""
        return 0

    def nested(self, layers: Sequence[int], ffn_widths: tuple[int, ...]) -> Self:
        """The config of these layers alone, with feed-forwards of these widths.

        Raises UnsupportedError for a model that nothing is nested in.
        """
        raise UnsupportedError(f"{self.model_type} has no sub-models; Gemma 3n has")

    # ---- layers ----------------------------------------------------------------------------------

    def layer(self, index: int) -> LayerConfig:
        """The facts of one layer."""
        return self.layer_configs[index]

    @cached_property
    def layer_configs(self) -> tuple[LayerConfig, ...]:
        """The facts of every layer."""
        return tuple(map(self._layer, self.layers))

    def _layer(self, index: int) -> LayerConfig:
        kind, donor = self.layer_types[index], self.kv_donor(index)
        return LayerConfig(
            type=kind,
            window=self.window(kind),
            rope=self.rope(kind),
            intermediate_size=self.ffn_widths[index],
            kv_donor=None if donor == index else donor,
            std_multiplier=self.std_multiplier(index),
        )

    @property
    def kv_layers(self) -> range:
        """Layers that own keys and values; later ones borrow them."""
        return range(self.num_hidden_layers - self.num_kv_shared_layers)

    def kv_donor(self, layer: int) -> int:
        """The layer whose keys and values `layer` attends over: itself, or the last of its type."""
        if layer in self.kv_layers:
            return layer
        kind = self.layer_types[layer]
        return max(owner for owner in self.kv_layers if self.layer_types[owner] == kind)

    def std_multiplier(self, layer: int) -> float | None:
        """How many standard deviations above the mean a neuron's gate has to lie for it to run
        (Gaussian top-k); None where all run."""
        return None

    def rope(self, kind: LayerType) -> Rope:
        """The rotary embedding of layers of a type."""
        if kind == SLIDING:
            return Rope(self.rope_local_base_freq, self.rope_local_scaling)
        factor = self.rope_scaling_factor
        linear = Linear(factor) if factor != 1 else None
        return Rope(self.rope_theta, self.rope_scaling or linear)

    def layers_of(self, kind: LayerType) -> list[int]:
        """Indices of the layers that attend as `kind` says."""
        return [layer for layer in self.layers if self.layer_types[layer] == kind]

    def window(self, kind: LayerType) -> int | None:
        """How many keys a query sees, itself included; None for all."""
        return self.sliding_window if kind == SLIDING else None


def check(config: ModelConfig) -> None:
    """Every number a corrupt file could have spoilt."""
    check_numbers(config)
    for token in config.eos_token_id:
        check_whole("eos_token_id", token, lowest=0)
    if len(config.layer_types) != config.num_hidden_layers:
        raise FileFormatError(
            f"config has {len(config.layer_types)} layer_types for "
            f"num_hidden_layers = {config.num_hidden_layers}; they must be equal"
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise FileFormatError(
            f"num_attention_heads = {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads = {config.num_key_value_heads}"
        )
    if config.head_dim % 2:
        raise FileFormatError(f"head_dim = {config.head_dim} is odd; rotary embedding needs pairs")


# ---- writing -------------------------------------------------------------------------------------


def text_to_hf(config: ModelConfig, left_out: set[str]) -> dict[str, Any]:
    """The decoder's fields, and the rotary settings in both generations' spelling."""
    left_out = left_out | {"rope_scaling_factor", "rope_scaling", "rope_local_scaling"}
    fields = [field.name for field in dataclasses.fields(config) if field.name not in left_out]
    full, local = config.rope(FULL), config.rope(SLIDING)
    scaling = {key: value for key, value in full.to_hf().items() if key != "rope_theta"}
    return {name: _plain(getattr(config, name)) for name in fields} | {
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {FULL: full.to_hf(), SLIDING: local.to_hf()},
        "rope_scaling": None if full.scaling is None else scaling,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
