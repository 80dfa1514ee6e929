"""The config of Gemma 3n: E4B, E2B, and everything cut from E4B in between.

The decoder's feed-forward widths and its Gaussian sparsity are lists, one entry a layer. The last
`num_kv_shared_layers` layers own no keys and values: a sliding one borrows those of the last
sliding layer before them, a full one those of the last full layer. So a cache has as many layers
as `kv_layers`, and every sub-model that keeps those has a cache of the same shape. What a
checkpoint says of its vision tower and its audio encoder is kept in its own words.

    config = Gemma3nConfig.from_hf(json.loads(text))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Self

from gemelo.config.checks import MOST_LAYERS, check_whole, is_number
from gemelo.config.config_json import (
    eos_ids,
    known_fields,
    read_layer_types,
    read_rope,
    refuse,
    refuse_text,
    section,
    text_part,
    ties_head,
)
from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.config.layers import FULL, SLIDING, alternating
from gemelo.config.modalities import Modalities, PlaceholderTokens
from gemelo.config.model import ModelConfig, check, text_to_hf
from gemelo.errors import FileFormatError

PATTERN = 5  # four sliding layers, then a full one
SPARSE_LAYERS = 10  # the first ten feed-forwards keep the strongest 5 % of their neurons
SPARSITY = 0.95
_TOWERS = ("vision_config", "audio_config")
_TOP_LEVEL = (
    "vision_soft_tokens_per_image",
    "audio_soft_tokens_per_image",  # a sound's tokens; the odd name is the reference's
    "boi_token_id",
    "eoi_token_id",
    "image_token_id",
    "boa_token_id",
    "eoa_token_id",
    "audio_token_id",
)
_NOT_TEXT = {*_TOWERS, *_TOP_LEVEL}


@dataclass(frozen=True)
class Gemma3nConfig(ModelConfig):
    """A Gemma 3n decoder, and its towers if it has any. Defaults are E4B's."""

    vocab_size: int = 262400
    hidden_size: int = 2048
    num_hidden_layers: int = 35
    num_key_value_heads: int = 2
    max_position_embeddings: int = 32768
    sliding_window: int = 512
    final_logit_softcapping: float | None = 30.0
    intermediate_size: tuple[int, ...] = ()
    activation_sparsity_pattern: tuple[float, ...] = ()
    num_kv_shared_layers: int = 15
    vocab_size_per_layer_input: int = 262144
    hidden_size_per_layer_input: int = 256
    laurel_rank: int = 64
    altup_num_inputs: int = 4
    altup_active_idx: int = 0
    altup_coef_clip: float | None = 120.0
    altup_correct_scale: bool = True
    vision_config: Mapping[str, Any] | None = field(default=None, hash=False)
    audio_config: Mapping[str, Any] | None = field(default=None, hash=False)
    vision_soft_tokens_per_image: int = 256
    audio_soft_tokens_per_image: int = 188
    boi_token_id: int = 255999
    eoi_token_id: int = 262144
    image_token_id: int = 262145
    boa_token_id: int = 256000
    eoa_token_id: int = 262272
    audio_token_id: int = 262273

    def __post_init__(self) -> None:
        num_layers = self.num_hidden_layers
        check_whole("num_hidden_layers", num_layers, most=MOST_LAYERS)
        if not self.layer_types:
            object.__setattr__(self, "layer_types", alternating(num_layers, PATTERN))
        if not self.intermediate_size:
            object.__setattr__(self, "intermediate_size", (16384,) * num_layers)
        if not self.activation_sparsity_pattern:
            object.__setattr__(self, "activation_sparsity_pattern", default_sparsity(num_layers))
        check(self)
        self._check_lists()
        self._check_towers()

    @property
    def model_type(self) -> str:
        return "gemma3n" if self.is_multimodal else "gemma3n_text"

    @property
    def is_multimodal(self) -> bool:
        return self.vision_config is not None or self.audio_config is not None

    @property
    def vision(self) -> Vision3nConfig | None:
        """The vision tower, if there is one."""
        raw = self.vision_config
        return None if raw is None else Vision3nConfig.from_hf(raw)

    @property
    def audio(self) -> AudioConfig | None:
        """The audio encoder, if there is one."""
        return None if self.audio_config is None else AudioConfig.from_hf(self.audio_config)

    @property
    def ffn_widths(self) -> tuple[int, ...]:
        return self.intermediate_size

    @property
    def attention_scale(self) -> float:
        return 1.0  # queries and keys are normalised with learnt weights instead

    @property
    def norm_offset(self) -> float:
        return 0.0  # unlike Gemma 3's, these weights multiply as they are

    @property
    def per_layer_embed_scale(self) -> float:
        """What per-layer embeddings are multiplied by when they are looked up."""
        return float(self.hidden_size_per_layer_input**0.5)

    @property
    def per_layer_projection_scale(self) -> float:
        """What the projection of the embedding to all layers is multiplied by."""
        return float(self.hidden_size**-0.5)

    @property
    def is_matformer(self) -> bool:
        return True

    def std_multiplier(self, layer: int) -> float | None:
        share = self.activation_sparsity_pattern[layer]
        return NormalDist().inv_cdf(share) if share > 0 else None

    @property
    def modalities(self) -> Modalities:
        image = self.boi_token_id, self.image_token_id, self.eoi_token_id
        audio = self.boa_token_id, self.audio_token_id, self.eoa_token_id
        return Modalities(
            None
            if self.vision_config is None
            else PlaceholderTokens("<image_soft_token>", *image, self.vision_soft_tokens_per_image),
            None
            if self.audio_config is None
            else PlaceholderTokens("<audio_soft_token>", *audio, self.audio_soft_tokens_per_image),
        )

    def without_towers(self, *keys: str) -> Self:
        gone: dict[str, Any] = dict.fromkeys(key for key in _TOWERS if key in keys)
        return dataclasses.replace(self, **gone)

    def nested(self, layers: Sequence[int], ffn_widths: tuple[int, ...]) -> Self:
        return dataclasses.replace(
            self,
            num_hidden_layers=len(layers),
            intermediate_size=ffn_widths,
            num_kv_shared_layers=sum(layer not in self.kv_layers for layer in layers),
            layer_types=tuple(self.layer_types[layer] for layer in layers),
            activation_sparsity_pattern=tuple(
                self.activation_sparsity_pattern[layer] for layer in layers
            ),
        )

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> Self:
        """Read a `config.json` of model_type gemma3n_text or gemma3n."""
        text = text_part(raw, "gemma3n")
        refuse_text(text)
        refuse(text, {"altup_active_idx": (0,), "altup_correct_scale": (True,)})
        if text.get("layer_types") is None:  # the family has its pattern, whatever a file says
            refuse(text, {"sliding_window_pattern": (PATTERN,)})
        facts = {key: x for key, x in known_fields(cls, text).items() if key not in _TOWERS}
        facts |= read_rope(text, facts.get("max_position_embeddings", cls.max_position_embeddings))
        num_layers = facts.get("num_hidden_layers", cls.num_hidden_layers)
        check_whole("num_hidden_layers", num_layers, most=MOST_LAYERS)
        spare = spare_layer_types(raw)
        facts["layer_types"] = (
            alternating(num_layers, PATTERN)
            if spare
            else read_layer_types(text, num_layers, PATTERN)
        )
        facts["eos_token_id"] = eos_ids(raw, text)
        facts["tie_word_embeddings"] = ties_head(raw)
        for name in ("intermediate_size", "activation_sparsity_pattern"):
            facts[name] = _per_layer(facts.get(name), num_layers)
        if raw.get("model_type") == "gemma3n":
            facts |= {key: _tower(raw, key) for key in _TOWERS}
            facts |= {key: raw[key] for key in _TOP_LEVEL if raw.get(key) is not None}
        return cls(**facts)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model, readable by transformers 4.53 to 5."""
        text = {"model_type": "gemma3n_text"} | text_to_hf(self, _NOT_TEXT)
        if not self.is_multimodal:
            return {"architectures": ["Gemma3nForCausalLM"]} | text
        return {
            "architectures": ["Gemma3nForConditionalGeneration"],
            "model_type": "gemma3n",
            "text_config": text,
            "eos_token_id": list(self.eos_token_id),
            "tie_word_embeddings": self.tie_word_embeddings,
        } | {key: getattr(self, key) for key in (*_TOWERS, *_TOP_LEVEL)}

    def _check_towers(self) -> None:
        """Read what a file says of its towers, so that what is wrong with it is an error now."""
        for tower in (self.vision, self.audio):
            if tower is not None and tower.vocab_offset < self.vocab_size_per_layer_input:
                raise FileFormatError(
                    f"config has vocab_offset = {tower.vocab_offset} for an encoder; its ids begin "
                    f"past the text's {self.vocab_size_per_layer_input}"
                )

    def _check_lists(self) -> None:
        for width in self.intermediate_size:
            check_whole("intermediate_size", width)
        for name in ("intermediate_size", "activation_sparsity_pattern"):
            if len(getattr(self, name)) != self.num_hidden_layers:
                raise FileFormatError(
                    f"config has {len(getattr(self, name))} entries in {name} for "
                    f"num_hidden_layers = {self.num_hidden_layers}; they must be equal"
                )
        for share in self.activation_sparsity_pattern:
            if not is_number(share) or not 0 <= share < 1:
                raise FileFormatError(
                    f"activation_sparsity_pattern holds {share!r:.60}; expected 0 to below 1"
                )
        owners = {self.layer_types[layer] for layer in self.kv_layers}
        borrowers = set(self.layer_types[len(self.kv_layers) :])
        if not owners or not borrowers <= owners:
            raise FileFormatError(
                f"num_kv_shared_layers = {self.num_kv_shared_layers} leaves a shared layer without "
                f"a donor of its kind among {len(self.kv_layers)} layers ({SLIDING}, {FULL})"
            )


def default_sparsity(num_layers: int) -> tuple[float, ...]:
    """The first ten layers are sparse, in deep models; a config without a pattern means this."""
    sparse = SPARSE_LAYERS if num_layers > SPARSE_LAYERS else 0
    return (SPARSITY,) * sparse + (0.0,) * (num_layers - sparse)


def spare_layer_types(raw: Mapping[str, Any]) -> int:
    """How many layer_types a `config.json` lists past its last layer, if it is safe to drop them.

    Google's slicing notebook skips whole blocks of four sliding layers and a full one, but leaves
    the list as long as it was. Where that list is nothing but the pattern, so is that of the layers
    that are left; in any other list nobody can tell which entries are too many.
    """
    text = text_part(raw, "gemma3n")
    given = text.get("layer_types")
    num_layers = text.get("num_hidden_layers", Gemma3nConfig.num_hidden_layers)
    if not isinstance(given, list | tuple) or not isinstance(num_layers, int):
        return 0
    is_pattern = tuple(given) == alternating(len(given), PATTERN)
    return max(0, len(given) - num_layers) if is_pattern else 0


def _tower(raw: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """What a file says of a tower; None where it says that there is none."""
    return None if raw.get(key, {}) is None else dict(section(raw, key))


def _per_layer(value: Any, num_layers: int) -> tuple[Any, ...]:
    """A list as it is, a number for every layer, nothing for the default."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,) * num_layers
