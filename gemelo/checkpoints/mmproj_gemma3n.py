"""mmproj GGUF files of Gemma 3n: MobileNet-V5 and the audio encoder, read and written.

One file holds both, or either. Half of what llama.cpp's keys say of them is invented (a convolution
has no heads), and half of what a config says has no key. So sizes are taken from the tensors'
shapes where these tell them, ids follow on the rows of text, and all else is what the published
models have. Where a model differs, the config's own word stands as one more key.

    source = with_towers(open_source(path), GGUFFile("mmproj-e2b.gguf"))
    write_gguf(target, tower_values(source), ...)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from gemelo.checkpoints.formats import reshaped
from gemelo.checkpoints.layer_counts import AUDIO_ENCODER, check_count
from gemelo.checkpoints.slice import without_towers
from gemelo.checkpoints.source import EMBEDDING, Source, canonical
from gemelo.config import Gemma3nConfig, ModelConfig
from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels.quants import Packed
from gemelo.weights.gguf import GGUFFile

NAMES = "clip-gemma3n"  # of the tensors, as gemelo.weights.names calls them
VISION_PROJECTOR, AUDIO_PROJECTOR = "gemma3nv", "gemma3na"  # llama.cpp's projector types
PROJECTORS = {VISION_PROJECTOR, AUDIO_PROJECTOR}
VISION, AUDIO, MODEL = "clip.vision.", "clip.audio.", "clip."
IMAGE_SIZE = Vision3nConfig.image_sizes[-1]
# What llama.cpp asks of every vision tower, and this one has nothing like.
INVENTED = {"block_count": 128, "feed_forward_length": 8192, "attention.head_count": 8}
# (GGUF key after AUDIO, field of AudioConfig)
FIELDS = (
    ("embedding_length", "hidden_size"),
    ("block_count", "conf_num_hidden_layers"),
    ("attention.head_count", "conf_num_attention_heads"),
    ("num_mel_bins", "input_feat_size"),
)
MODEL_ARGS = ("channel_multiplier", "msfa_output_resolution")  # timm's, of the vision tower
# Of the whole model, beside its towers: what the sizes of these tell, and what nothing tells.
IMAGE_IDS = ("boi_token_id", "eoi_token_id", "image_token_id")
AUDIO_IDS = ("boa_token_id", "eoa_token_id", "audio_token_id")
COUNTS = ("vision_soft_tokens_per_image", "audio_soft_tokens_per_image")
_EPS = "attention.layer_norm_epsilon"
_SUBSAMPLING = "audio_tower.subsample_conv_projection"
_DEPTHWISE = "audio_tower.conformer.0.lconv1d.depthwise_conv1d.weight"
_VECTORS = (".conv_stem.conv.bias", ".layer_scale.gamma")  # with or without sides of 1


def with_towers(source: Source, file: GGUFFile) -> Source:
    """The source of a text model with the towers that the file holds.

    Raises FileFormatError for a broken file, UnsupportedError for another kind of model, InputError
    for towers of a model of another width.
    """
    config = source.config
    if config.model_type != "gemma3n_text":
        own = ", with its own" if config.is_multimodal else ""
        raise UnsupportedError(
            f"{file.path} has vision tower or audio encoder for the text model of a Gemma 3n, and "
            f"{source.path.name} is {config.model_type}{own}"
        )
    file_shapes, tensor = canonical(file, NAMES)
    shapes = {name: canonical_shape(name, shape) for name, shape in file_shapes.items()}
    for name, shape in shapes.items():
        projects = name.endswith(".embedding_projection.weight") and len(shape) == 2
        if projects and shape[0] != config.hidden_size:
            raise InputError(
                f"{file.path} is of another model: it projects to {shape[0]} numbers, and this "
                f"model takes {config.hidden_size}"
            )

    # Other lists are a mean and a deviation, which for this tower are always 0 and 1.
    _refuse_lists(file)
    facts = {key: x for key, x in file.metadata.items() if isinstance(x, str | int | float)}
    try:
        return _with_rows_of_ids(
            dataclasses.replace(
                source,
                config=_with_tower_configs(config, facts, shapes),
                shapes={**source.shapes, **shapes},
                tensor=lambda name: (
                    reshaped(tensor(name), shapes[name]) if name in shapes else source.tensor(name)
                ),
            )
        )
    except GemeloError as error:
        raise type(error)(f"{file.path}: {error}") from None


def _refuse_lists(file: GGUFFile) -> None:
    """Raise `FileFormatError` for a list where one value is read."""
    for key in known_keys() & file.metadata.keys():
        if not isinstance(file.metadata[key], str | int | float):
            raise FileFormatError(f"{file.path}: {key} is a list; expected one value")


def tower_values(source: Source) -> dict[str, Any]:
    """The key-values of an mmproj file for the towers of a Gemma 3n.

    Raises UnsupportedError for what neither keys nor shapes can tell.
    """
    config, text = source.config, without_towers(source).config
    values: dict[str, Any] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": source.path.resolve().name,
        "general.quantization_version": 2,
    }
    if isinstance(config.vision, Vision3nConfig):
        values |= _vision_values(config, config.vision)
    if config.audio is not None:
        values |= _audio_values(config, config.audio)
    values |= _differences(config, _with_tower_configs(text, values, source.shapes))
    read = _with_tower_configs(text, values, source.shapes)
    if (read.vision, read.audio) != (config.vision, config.audio):
        raise UnsupportedError(
            f"{source.path}: an mmproj file cannot tell of this vision_config or audio_config"
        )
    return values


def known_keys() -> set[str]:
    """The keys of a file that are read, or that say nothing more."""
    sizes = ("projector_type", "projection_dim", "image_size", "patch_size", "embedding_length")
    seen = {*sizes, _EPS, *INVENTED, *_names(Vision3nConfig)}
    heard = {*sizes, _EPS, "feed_forward_length", *(key for key, _ in FIELDS), *_names(AudioConfig)}
    spoken = {MODEL + name for name in (*IMAGE_IDS, *AUDIO_IDS, *COUNTS)}
    return {VISION + key for key in seen} | {AUDIO + key for key in heard} | spoken


def canonical_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape a tensor has in the network, where files differ by sides of 1."""
    return (math.prod(shape),) if name.endswith(_VECTORS) else shape


def file_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that llama.cpp takes a tensor in: what is added to maps is a map of one pixel."""
    return (1, *shape, 1, 1) if name.endswith(_VECTORS) else shape


# ---- reading -------------------------------------------------------------------------------------


def _with_tower_configs(
    config: ModelConfig, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """A text config with the towers that keys and shapes tell of. Ids follow on those of text."""
    parts = {name.partition(".")[0] for name in shapes}
    rows, vision, audio = config.vocab_size_per_layer_input, None, None
    num_seen = Vision3nConfig.vocab_size
    spoken = (*IMAGE_IDS, *AUDIO_IDS, *COUNTS)
    fields: dict[str, Any] = {field: vars(Gemma3nConfig)[field] for field in spoken}
    if "vision_tower" in parts:
        vision = _vision_config(rows, facts, shapes)
        seen = Vision3nConfig.from_hf(vision)
        num_seen = seen.vocab_size
        fields |= dict(zip(IMAGE_IDS[1:], (seen.vocab_offset, seen.vocab_offset + 1), strict=True))
        fields[COUNTS[0]] = seen.num_tokens
    if "audio_tower" in parts:
        audio = _audio_config(rows + num_seen, facts, shapes)
        first = audio["vocab_offset"]
        fields |= dict(zip(AUDIO_IDS[1:], (first, first + 1), strict=True))
    if vision is None and audio is None:
        raise FileFormatError("it holds neither a vision tower nor an audio encoder")
    fields |= {field: facts[MODEL + field] for field in fields if MODEL + field in facts}
    fields |= {"vision_config": vision, "audio_config": audio}
    return dataclasses.replace(config, **fields)


def _vision_config(
    rows: int, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    raw: dict[str, Any] = {"model_type": "gemma3n_vision"}
    raw |= {"hidden_size": facts.get(f"{VISION}embedding_length", Vision3nConfig.hidden_size)}
    raw |= {"vocab_size": _sizes(shapes, "embed_vision.embedding.weight", 2)[0]}
    raw |= {"vocab_offset": rows, "rms_norm_eps": _eps(facts)} | _own(Vision3nConfig, VISION, facts)
    arguments = {key: raw.pop(key) for key in MODEL_ARGS if key in raw}
    return raw | ({"model_args": arguments} if arguments else {})


def _eps(facts: Mapping[str, Any]) -> Any:
    eps = facts.get(VISION + _EPS, Vision3nConfig.rms_norm_eps)
    with np.errstate(over="ignore"):
        return float(str(np.float32(eps))) if isinstance(eps, float) else eps  # 1e-06, no bit more


def _audio_config(
    first: int, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Of the audio encoder. llama.cpp's converter writes an epsilon that is not the model's."""
    convolutions = [_sizes(shapes, f"{_SUBSAMPLING}.conv_{n}.conv.weight", 4) for n in (0, 1)]
    raw: dict[str, Any] = {
        "model_type": "gemma3n_audio",
        "vocab_size": _sizes(shapes, "embed_audio.embedding.weight", 2)[0],
        "vocab_offset": first,
        "sscp_conv_channel_size": [sizes[0] for sizes in convolutions],
        "sscp_conv_kernel_size": [list(sizes[2:]) for sizes in convolutions],
        "conf_conv_kernel_size": _sizes(shapes, _DEPTHWISE, 3)[2],
    }
    raw |= {field: facts[AUDIO + key] for key, field in FIELDS if AUDIO + key in facts}
    raw |= _own(AudioConfig, AUDIO, facts)
    check_count(f"{AUDIO}block_count", raw.get("conf_num_hidden_layers"), AUDIO_ENCODER, shapes)
    AudioConfig.from_hf(raw)
    return raw


def _own(kind: Any, prefix: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says in the config's words."""
    return {name: facts[prefix + name] for name in _names(kind) if prefix + name in facts}


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _sizes(shapes: Mapping[str, tuple[int, ...]], name: str, count: int) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != count:
        raise FileFormatError(f"{name} has shape {shape}; expected {count} sizes")
    return shape


def _with_rows_of_ids(source: Source) -> Source:
    """The same with a row in the embedding for every id of a tower, as checkpoints have it.

    GGUF files may end with the text's. What is in the rows is never used; they repeat the first,
    the padding token's, as the reference has it. Only such files have their embedding copied.
    """
    config, shape = source.config, source.shapes.get(EMBEDDING, ())
    both = (config.vision, config.audio)
    towers = [tower for tower in both if isinstance(tower, Vision3nConfig | AudioConfig)]
    rows = max(tower.vocab.stop for tower in towers)
    if len(shape) != 2 or shape[0] >= rows:
        return source
    missing = rows - shape[0]
    if missing > Vision3nConfig.vocab_size + sum(tower.vocab_size for tower in towers):
        raise FileFormatError(f"its ids reach to {rows}, and the text's end at {shape[0]}")

    @cache
    def embedding() -> Packed:
        text = source.tensor(EMBEDDING)
        padding = np.broadcast_to(text.blocks[:1], (missing, text.blocks.shape[1]))
        return Packed(np.concatenate([text.blocks, padding]), text.format)

    return dataclasses.replace(
        source,
        config=dataclasses.replace(config, vocab_size=rows),
        shapes={**source.shapes, EMBEDDING: (rows, shape[1])},
        tensor=lambda name: embedding() if name == EMBEDDING else source.tensor(name),
    )


# ---- writing -------------------------------------------------------------------------------------


def _vision_values(config: ModelConfig, vision: Vision3nConfig) -> dict[str, Any]:
    own = {
        "projector_type": VISION_PROJECTOR,
        "projection_dim": config.hidden_size,
        "image_size": IMAGE_SIZE,
        "patch_size": max(1, IMAGE_SIZE // vision.num_tokens),
        "embedding_length": vision.hidden_size,
        _EPS: vision.rms_norm_eps,
        "image_mean": np.full(3, vision.image_mean, np.float32),
        "image_std": np.full(3, vision.image_std, np.float32),
    }
    values = {VISION + key: value for key, value in (own | INVENTED).items()}
    return {"clip.has_vision_encoder": True} | values


def _audio_values(config: ModelConfig, audio: AudioConfig) -> dict[str, Any]:
    own = {
        "projector_type": AUDIO_PROJECTOR,
        "projection_dim": config.hidden_size,
        "feed_forward_length": 4 * audio.hidden_size,
        _EPS: audio.rms_norm_eps,
    }
    own |= {key: vars(audio)[field] for key, field in FIELDS}
    return {"clip.has_audio_encoder": True} | {AUDIO + key: value for key, value in own.items()}


def _differences(config: ModelConfig, read: ModelConfig) -> dict[str, Any]:
    """Numbers that a reader would get wrong, by the config's words."""
    pairs = (
        (VISION, config.vision, read.vision),
        (AUDIO, config.audio, read.audio),
    )
    wrong = {
        prefix + name: value
        for prefix, tower, other in pairs
        if tower is not None
        for name, value in vars(tower).items()
        if value != vars(other)[name] and isinstance(value, int | float)
    }
    wrong |= {
        MODEL + name: vars(config)[name]
        for name in _spoken_of(config)
        if vars(config)[name] != vars(read)[name]
    }
    # In 64 bits: in 32 a number like 0.1 would come back as another.
    return {key: np.float64(x) if isinstance(x, float) else x for key, x in wrong.items()}


def _spoken_of(config: ModelConfig) -> Iterator[str]:
    """Fields of the whole model that its towers bring with them."""
    if config.vision is not None:
        yield from (*IMAGE_IDS, COUNTS[0])
    if config.audio is not None:
        yield from (*AUDIO_IDS, COUNTS[1])
