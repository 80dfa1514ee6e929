"""mmproj GGUF files: the vision tower of Gemma 3 (SigLIP) and its projector, read and written.

A GGUF of a decoder holds no towers; they are a second file, the "mmproj". Reading one makes the
source of a text model that of a model with a vision tower; what it lacks (the markers' ids) is
taken from the model's vocabulary. Writing one is the other half of a conversion to GGUF. The towers
of Gemma 3n are in `mmproj_gemma3n`.

    source = with_mmproj(open_source(path), Path("mmproj-model-f16.gguf"))
    write_gguf(target, mmproj_values(source), ...)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemelo.checkpoints import mmproj_gemma3n
from gemelo.checkpoints.layer_counts import SIGLIP, check_count
from gemelo.checkpoints.source import Source, canonical, shifted
from gemelo.config import ModelConfig, VisionConfig
from gemelo.config.checks import is_whole
from gemelo.errors import (
    FileFormatError,
    GemeloError,
    InputError,
    UnsupportedError,
    listed,
    one_line,
)
from gemelo.kernels.quants import Packed
from gemelo.weights import names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.keys import ARCHITECTURES

ARCHITECTURE = "clip"
PROJECTOR = "gemma3"
VISION = "clip.vision."
# (GGUF key after VISION, field of VisionConfig)
FIELDS = (
    ("image_size", "image_size"),
    ("patch_size", "patch_size"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
)
# Settings of other vision towers, and the one value at which they say what this one does.
FIXED: dict[str, float | bool] = {
    f"{VISION}image_mean": VisionConfig.image_mean,
    f"{VISION}image_std": VisionConfig.image_std,
    "clip.use_gelu": True,
    "clip.use_silu": False,
}
# What says nothing more: kinds, and sizes that the tensors show.
KNOWN = {
    *(f"clip.has_{part}" for part in ("text_encoder", "vision_encoder", "audio_encoder")),
    *("clip.has_llava_projector", "clip.projector_type", f"{VISION}projector_type"),
    *(f"{VISION}{key}" for key in ("projection_dim", "projector.scale_factor", "use_gelu")),
}
SCALE_FACTOR = 4  # patches of a side that become one image token, where a file does not say
MARKERS = {
    "boi_token_index": "<start_of_image>",
    "eoi_token_index": "<end_of_image>",
    "image_token_index": "<image_soft_token>",
}
_FC1, _FC2 = ".mlp.fc1.", ".mlp.fc2."


def with_own_towers(source: Source) -> Source:
    """The source with the towers that its GGUF file holds itself, as Ollama keeps them; itself
    where there are none. Raises as `with_mmproj`."""
    return source if source.tower_file is None else _with(source, source.tower_file)


def with_mmproj(source: Source, path: Path) -> Source:
    """The source of a text model with the towers of an mmproj file.

    Raises FileFormatError for a broken file, UnsupportedError for other towers or another kind of
    model, InputError for those of a model of another width.
    """
    file = GGUFFile(path)
    towers = file.only(filter(names.is_of_a_tower, file))
    if not towers.names():
        raise UnsupportedError(
            f"{path} is no mmproj file: it holds neither a vision tower nor an audio encoder"
        )
    if len(towers.names()) == len(file.names()):
        _kinds(path, file.metadata)
    opened = _with(source, towers)
    notices = (*opened.notices, *towers.notices, *_unread(path, towers.metadata))
    return dataclasses.replace(opened, mmproj=path, notices=notices)


def _with(source: Source, towers: GGUFFile) -> Source:
    facts = towers.metadata
    if facts.get("general.architecture") in ARCHITECTURES:
        three_n = facts["general.architecture"] == "gemma3n"
    else:
        three_n = _kinds(towers.path, facts) <= {
            mmproj_gemma3n.VISION_PROJECTOR,
            mmproj_gemma3n.AUDIO_PROJECTOR,
        }
    return mmproj_gemma3n.with_towers(source, towers) if three_n else _with_siglip(source, towers)


def mmproj_values(source: Source) -> dict[str, Any]:
    """The key-values of an mmproj file for the towers of a model.

    Raises UnsupportedError for one that has none, or none that the file can tell of.
    """
    config = source.config
    if isinstance(config.vision, VisionConfig):
        return siglip_values(config, config.vision, source.path.resolve().name)
    if config.is_multimodal:
        return mmproj_gemma3n.tower_values(source)
    raise UnsupportedError(
        f"{source.path}: an mmproj file holds a vision tower or audio encoder, and this "
        f"{config.model_type} has neither"
    )


def mmproj_names(source: Source) -> str:
    """What `gemelo.weights.names` calls the tensors of an mmproj file for a model."""
    return ARCHITECTURE if isinstance(source.config.vision, VisionConfig) else mmproj_gemma3n.NAMES


def _with_siglip(source: Source, file: GGUFFile) -> Source:
    config, path, facts = source.config, file.path, _vision_facts(file.path, file.metadata)
    if config.model_type != "gemma3_text":
        raise UnsupportedError(
            f"{path} gives a vision tower to a text model of Gemma 3, and "
            f"{source.path.name} is {config.model_type}{', with its own' * config.is_multimodal}"
        )
    _refuse_other_towers(path, facts)
    shapes, tensor = canonical(file, ARCHITECTURE)
    vision = _vision(path, facts, shapes)
    swapped = _are_swapped(shapes, vision)

    def unshifted(name: str) -> Packed:
        weight = tensor(_swap(name) if swapped else name)
        return shifted(weight, -names.norm_shift(name, ARCHITECTURE))

    seen = {(_swap(name) if swapped else name): shape for name, shape in shapes.items()}
    wanted = (vision.hidden_size, config.hidden_size)
    width = seen.get("multi_modal_projector.mm_input_projection_weight")
    if width is not None and width != wanted:
        raise InputError(
            f"{path} is the vision tower of another model: it projects {width[0]} to "
            f"{width[-1]} numbers, and this model takes {wanted[0]} to {wanted[1]}"
        )
    try:
        with_vision = _with_vision(config, vision, facts, source.gguf_metadata)
    except GemeloError as error:
        raise type(error)(f"{path}: {error}") from None
    return dataclasses.replace(
        source,
        config=with_vision,
        shapes={**source.shapes, **seen},
        tensor=lambda name: unshifted(name) if name in seen else source.tensor(name),
    )


def siglip_values(config: ModelConfig, vision: VisionConfig, name: str) -> dict[str, Any]:
    """The key-values of an mmproj file for the vision tower of a config."""
    side = vision.image_size // vision.patch_size
    values: dict[str, Any] = {
        "general.architecture": ARCHITECTURE,
        "general.type": "mmproj",
        "general.name": name,
        "general.quantization_version": 2,
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTOR,
        "clip.use_gelu": True,
        f"{VISION}projection_dim": config.hidden_size,
        f"{VISION}projector.scale_factor": side // round(config.bidirectional_image_tokens**0.5),
        f"{VISION}image_mean": np.full(3, vision.image_mean, np.float32),
        f"{VISION}image_std": np.full(3, vision.image_std, np.float32),
    }
    return values | {f"{VISION}{key}": vars(vision)[field] for key, field in FIELDS}


# ---- reading -------------------------------------------------------------------------------------


def _unread(path: Path, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence on settings of towers that nothing here has looked at."""
    known = {f"{VISION}{key}" for key, _ in FIELDS} | {*FIXED, *KNOWN, *mmproj_gemma3n.known_keys()}
    left = [key for key in facts if key.startswith(f"{ARCHITECTURE}.") and key not in known]
    if not left:
        return ()
    names = listed(left, show=lambda key: one_line(key, 80))
    return (f"{path.name} has settings of no effect here: {names}",)


def _kinds(path: Path, facts: Mapping[str, Any]) -> set[str]:
    """The projectors of a file; all of them are Gemma 3's or all are Gemma 3n's."""
    if str(facts.get("general.architecture")) != ARCHITECTURE:
        raise UnsupportedError(f"{path} is no mmproj file: its general.architecture is not clip")
    keys = (f"clip.{sense}projector_type" for sense in ("vision.", "audio.", ""))
    kinds = [facts[key] for key in keys if key in facts] or [None]
    known = ({PROJECTOR}, mmproj_gemma3n.PROJECTORS)
    for kind in kinds:
        if not isinstance(kind, str) or not any({kind, kinds[0]} <= family for family in known):
            raise UnsupportedError(
                f"{path} holds a projector {kind!r:.40}; gemelo reads {PROJECTOR!r}, or "
                f"{mmproj_gemma3n.VISION_PROJECTOR!r} and {mmproj_gemma3n.AUDIO_PROJECTOR!r}"
            )
    return set(kinds)


def _vision_facts(path: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Key-values of a vision tower as mmproj files have them; a model's file may have its own."""
    own, tokens = "gemma3.vision.", facts.get("gemma3.mm.tokens_per_image")
    if any(key.startswith(VISION) for key in facts):
        return facts
    renamed = {VISION + key.removeprefix(own): facts[key] for key in facts if key.startswith(own)}
    if not renamed:
        raise FileFormatError(f"{path}: it holds weights of a vision tower, and no {own}* of it")
    if tokens is None:
        return renamed
    sizes = [renamed.get(f"{VISION}image_size"), renamed.get(f"{VISION}patch_size"), tokens]
    image, patch, count = (x if is_whole(x, 1, (1 << 16) - 1) else 0 for x in sizes)
    if not image * patch * count:
        raise FileFormatError(f"{path}: its {own}* sizes are no whole numbers above zero")
    side, pooled = image // patch, math.isqrt(count)
    if pooled**2 != count or side % pooled:
        raise FileFormatError(
            f"{path}: gemma3.mm.tokens_per_image is {tokens}, which {side} by {side} patches "
            "cannot become"
        )
    return renamed | {f"{VISION}projector.scale_factor": side // pooled}


def _refuse_other_towers(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` for settings that the network or the pictures do not follow."""
    for key, wanted in FIXED.items():
        value = facts.get(key, wanted)
        values = value.tolist() if isinstance(value, np.ndarray) else [value]
        right = [type(x) is type(wanted) and math.isclose(x, wanted, rel_tol=1e-5) for x in values]
        if not all(right):
            raise UnsupportedError(f"{path}: {key} is {values!r:.60}; Gemma 3 has {wanted}")


def _vision(
    path: Path, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> VisionConfig:
    raw = {field: facts[VISION + key] for key, field in FIELDS if VISION + key in facts}
    eps = raw.get("layer_norm_eps", VisionConfig.layer_norm_eps)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise FileFormatError(f"{path}: {VISION}attention.layer_norm_epsilon is {eps!r}")
    raw["layer_norm_eps"] = float(str(np.float32(eps)))  # 1e-06, not what float32 makes of it
    try:
        check_count(f"{VISION}block_count", raw.get("num_hidden_layers"), SIGLIP, shapes)
        vision = VisionConfig.from_hf(raw)
    except GemeloError as error:
        raise type(error)(f"{path}: {error}") from None
    if vision.hidden_size % vision.num_attention_heads or vision.image_size % vision.patch_size:
        raise FileFormatError(f"{path}: its {VISION}* numbers do not divide evenly")
    return vision


def _with_vision(
    config: ModelConfig,
    vision: VisionConfig,
    facts: Mapping[str, Any],
    vocabulary: Mapping[str, Any] | None,
) -> ModelConfig:
    side = vision.image_size // vision.patch_size
    pool = facts.get(f"{VISION}projector.scale_factor", SCALE_FACTOR)
    if not is_whole(pool, 1, side):
        key = f"{VISION}projector.scale_factor"
        raise FileFormatError(f"{key} is {pool!r:.60}; expected 1 to {side}")
    ids = _marker_ids(vocabulary or {}, config.vocab_size)
    # Rows past the text's may be missing; the embedding under a picture is never used.
    image_token = min(vars(config)["image_token_index"], config.vocab_size - 1)
    ids.setdefault("image_token_index", image_token)
    changes: dict[str, Any] = ids | {"vision": vision, "mm_tokens_per_image": (side // pool) ** 2}
    return dataclasses.replace(config, **changes)


def _marker_ids(facts: Mapping[str, Any], rows: int) -> dict[str, int]:
    """Ids of the markers that a vocabulary has, and the embedding too."""
    pieces = list(facts.get("tokenizer.ggml.tokens", ()))
    spelt = {key: text.encode() for key, text in MARKERS.items()}
    found = {key: pieces.index(piece) for key, piece in spelt.items() if piece in pieces}
    return {key: id for key, id in found.items() if id < rows}


def _are_swapped(shapes: Mapping[str, tuple[int, ...]], vision: VisionConfig) -> bool:
    """Whether a file calls the two maps of a feed-forward by each other's names, as early
    converters did: the first one widens."""
    first = shapes.get(f"vision_tower.encoder.layers.0{_FC1}weight")
    return first == (vision.hidden_size, vision.intermediate_size) and first[0] != first[1]


def _swap(name: str) -> str:
    if _FC1 in name:
        return name.replace(_FC1, _FC2)
    return name.replace(_FC2, _FC1)
