"""A model's files, opened: the config, canonical names with their shapes, a way to each tensor.

Loading and converting both begin here, and it is the last place that knows which kind of file a
model came from. Nothing is read but headers. A name that nobody knows is an error; what is known
and of no use is left out, and `notices` says so, a sentence each, for a person to see.

    source = open_source(Path("gemma-3n-E2B-it"))
    source.shapes["language_model.norm.weight"], source.tensor("language_model.norm.weight")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gemelo.checkpoints.directory import (
    beside,
    check_directory,
    check_embedder,
    check_names,
    check_types,
    check_weights,
    generation,
    with_ends,
)
from gemelo.checkpoints.layer_counts import check_counts
from gemelo.checkpoints.lm_head import EMBEDDING as EMBEDDING
from gemelo.checkpoints.lm_head import with_head
from gemelo.config import Gemma3nConfig, ModelConfig, read_config
from gemelo.config.gemma3n import spare_layer_types
from gemelo.config.settings import (
    check_kind,
    check_plain,
    generation_notices,
    setting_notices,
    writes,
)
from gemelo.documents import read_object
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels.formats import Packed
from gemelo.weights import metadata, names
from gemelo.weights.folder import recovered
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_kinds import refuse_other_kinds
from gemelo.weights.safetensors import Safetensors

Weight = Tensor | Packed
DECODER = "language_model."
TABLE = "language_model.embed_tokens_per_layer.weight"
_LAUREL = "language_model.layers.0.laurel.linear_left.weight"
_EYE = {"vision_tower", "embed_vision", "multi_modal_projector"}
_EAR = {"audio_tower", "embed_audio"}
_MOST_IN_A_STACK = 15
_ROPE_HINT = "; factors of the rotary embedding are of models that gemelo does not run"
_LISTED = 8  # names in an error message before "and n more"


@dataclass(frozen=True)
class Source:
    """An open file, its names made canonical: what to build, and a way to each tensor.

    facts are a GGUF file's key-values, which its tokenizer is among, towers what it holds besides
    the decoder, lent the file that its towers are from if that is another, files all that it is
    made of. whole is False once a part was cut out: the file's
    own facts about the model no longer hold.
    """

    path: Path
    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Weight]
    notices: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None
    whole: bool = True
    towers: GGUFFile | None = None
    lent: Path | None = None
    files: tuple[Path, ...] = ()


def open_source(path: Path) -> Source:
    """Open a model's files and read its config; no tensor is touched.

    Weights that the model never uses are left out: a head that only repeats the embedding, and keys
    and values of layers that borrow those of others.
    """
    if not os.path.exists(path) and not recovered(path):
        raise InputError(f"{path}: no such file or directory")
    if os.path.isdir(path):
        return without_dead_keys(without_absent_towers(_open_directory(path)))
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: give the directory that holds this file and its config.json")
    return without_dead_keys(_open_gguf(GGUFFile(path)))


def architecture(config: ModelConfig) -> str:
    """What GGUF files call a model of this family."""
    return config.model_type.removesuffix("_text")


def listing(what: str, found: Sequence[str]) -> str:
    """Names for an error message, the first few of them; "" if there are none."""
    if not found:
        return ""
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"{len(found)} weights {what}: {', '.join(found[:_LISTED])}{more}"


# ---- directories ---------------------------------------------------------------------------------


def _open_directory(path: Path) -> Source:
    check_directory(path)
    raw = read_object(path / "config.json")
    with _of(path):
        check_kind(raw)
        check_plain(raw)
    if not writes(raw):
        check_embedder(path)
    check_weights(path)
    file = Safetensors(path)
    check_names(path, file.names())
    shapes, tensor = canonical(file)
    check_types(file)
    with _of(path):
        check_counts(raw, shapes)
        config = read_config(raw)
        notices = (*_spare_notice(raw, config), *setting_notices(raw, config))
    config, shapes, said = with_head(path, raw, with_ends(path, config), shapes, tensor)
    notices += said + generation_notices(generation(path)) + beside(path, file.files)
    return Source(path, config, shapes, tensor, notices)


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """Errors about a config's values, told with the file that has them."""
    try:
        yield
    except GemeloError as error:
        raise type(error)(f"{path}: {error}") from None


def _spare_notice(raw: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    spare = spare_layer_types(raw)
    layers = config.num_hidden_layers
    notice = (
        f"config.json lists {layers + spare} layer_types for {layers} layers; the {layers} are "
        "taken to be four sliding, one full, and so on"
    )
    return (notice,) if spare else ()


Named = tuple[dict[str, tuple[int, ...]], Callable[[str], Weight]]


# ---- GGUF ----------------------------------------------------------------------------------------


def _open_gguf(file: GGUFFile) -> Source:
    refuse_other_kinds(file.metadata, file.path)
    with _of(file.path):
        raw, notices = metadata.read_facts(file.metadata)
    beside = [name for name in file if names.is_of_a_tower(name)]
    text = file.only(name for name in file if not names.is_of_a_tower(name))
    if not text.names():
        raise FileFormatError(f"{file.path} holds no weights of a decoder; load the model itself")
    shapes, tensor = canonical(text)
    _check_depth(file, raw["num_hidden_layers"], shapes)
    embedding = shapes.get(EMBEDDING)
    if embedding is not None and embedding[0] != raw["vocab_size"] and len(embedding) == 2:
        raw["vocab_size"] = embedding[0]  # rows may be padded past the tokenizer's last id
    raw["tie_word_embeddings"] = names.HEAD not in shapes
    kind = str(file.metadata["general.architecture"])
    with _of(file.path):
        config = read_config(raw | (_gemma3n_shapes(shapes) if kind == "gemma3n" else {}))

    def unshifted(name: str) -> Weight:
        weight, shift = tensor(name), names.norm_shift(name, kind)
        if shift and isinstance(weight, Tensor):
            return weight.float() - shift  # GGUF stores 1 + w
        return weight

    return Source(
        file.path,
        config,
        shapes,
        unshifted,
        (*file.notices, *notices),
        facts=file.metadata,
        towers=file.only(beside) if beside else None,
        files=file.paths,
    )


def _check_depth(file: GGUFFile, layers: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise for more layers than there are tensors of, before a network of that depth is built."""
    prefix = f"{DECODER}layers."
    found = {name.split(".")[2] for name in shapes if name.startswith(prefix)}
    if layers > len(found):
        kind = file.metadata["general.architecture"]
        raise FileFormatError(
            f"{file.path}: {kind}.block_count is {layers}, and there are weights missing: it holds "
            f"those of {len(found)} layers; fetch it again"
        )


def _gemma3n_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Two facts that only shapes tell. Rows past the text vocabulary are a converter's padding."""
    found = {}
    if len(shapes.get(_LAUREL, ())) == 2:
        found["laurel_rank"] = shapes[_LAUREL][0]
    if len(shapes.get(TABLE, ())) == 2:
        most = Gemma3nConfig.vocab_size_per_layer_input
        found["vocab_size_per_layer_input"] = min(shapes[TABLE][0], most)
    return found


# ---- names ---------------------------------------------------------------------------------------


def canonical(file: GGUFFile | Safetensors, kind: str | None = None) -> Named:
    """Shapes by canonical name, and the way to each tensor. Names nobody knows are one error.

    kind is what a GGUF file's names are of, where its own `general.architecture` does not tell.
    """
    places: dict[str, tuple[str, int | None]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    unknown: list[str] = []
    for name in file.names():
        try:
            canonical = _rename(file, name, kind)
        except UnsupportedError:
            unknown.append(name)
            continue
        for part, index, shape in _parts(file, name, canonical):
            if part in places:
                raise FileFormatError(
                    f"{file.path}: {name} and {places[part][0]} are the same weight"
                )
            places[part], shapes[part] = (name, index), shape
    if unknown:
        hint = _ROPE_HINT if any(name.startswith("rope_") for name in unknown) else ""
        raise FileFormatError(f"{file.path}: {listing('unknown', unknown)}{hint}")

    def tensor(canonical: str) -> Weight:
        name, index = places[canonical]
        weight = file.tensor(name)
        return weight if index is None else layer_of(weight, index, shapes[canonical][0])

    return shapes, tensor


def _rename(file: GGUFFile | Safetensors, name: str, kind: str | None) -> str:
    if isinstance(file, GGUFFile):
        return names.from_gguf(name, kind or str(file.metadata["general.architecture"]))
    return names.from_hf(name)


def _parts(
    file: GGUFFile | Safetensors, name: str, canonical: str
) -> list[tuple[str, int | None, tuple[int, ...]]]:
    """(canonical name, index in the tensor, shape): the tensor itself, or the layers of a stack."""
    shape = file.shape(name)
    if canonical not in names.STACKS:
        return [(canonical, None, shape)]
    if len(shape) != 3 or not 1 <= shape[0] <= _MOST_IN_A_STACK:
        raise FileFormatError(
            f"{file.path}: {name} has shape {shape}; expected 1 to {_MOST_IN_A_STACK} matrices"
        )
    parts = names.parts_of(canonical, shape[0])
    return [(part, index, shape[1:]) for index, part in enumerate(parts)]


def layer_of(stack: Weight, index: int, rows: int) -> Weight:
    """One matrix of a stack, as a view: of a tensor (n, rows, columns), or of blocks that hold the
    matrices one under the other."""
    if isinstance(stack, Packed):
        return Packed(stack.blocks[index * rows : (index + 1) * rows], stack.format)
    return stack[index]


# ---- leaving out ---------------------------------------------------------------------------------


def dead_keys(config: ModelConfig) -> list[str]:
    """Keys and values of layers that borrow them: in most files, and of no effect on anything."""
    return [
        f"{DECODER}layers.{layer}.self_attn.{leaf}.weight"
        for layer in config.layers[len(config.kv_layers) :]
        for leaf in ("k_proj", "v_proj", "k_norm")
    ]


def without_dead_keys(source: Source) -> Source:
    """The same without keys and values that no layer looks at."""
    dead = set(dead_keys(source.config)) & source.shapes.keys()
    if not dead:
        return source
    first, last = len(source.config.kv_layers), source.config.layers[-1]
    notice = (
        f"layers {first} to {last} borrow keys and values from lower ones; {len(dead)} weights of "
        "their own, which are never used, are left out"
    )
    return _narrowed(source, set(source.shapes) - dead, notice)


def without_padding(source: Source) -> Source:
    """The same, its per-layer table cut to the rows that ids can name, as a view.

    A table with a row for every row of the embedding has been padded with zeros.
    """
    config, shape = source.config, source.shapes.get(TABLE)
    rows = config.vocab_size_per_layer_input
    if shape is None or not rows or shape[0] == rows or shape[0] != config.vocab_size:
        return source
    notice = f"{shape[0] - rows} rows of embed_tokens_per_layer past the {rows}th are padding"
    return with_rows(source, {TABLE: rows}, notice)


def with_rows(source: Source, rows: Mapping[str, int], *notices: str) -> Source:
    """The same, of some matrices the leading rows alone, as views."""

    def tensor(name: str) -> Weight:
        weight = source.tensor(name)
        if name not in rows:
            return weight
        return weight.prefix(rows[name]) if isinstance(weight, Packed) else weight[: rows[name]]

    shapes = {
        name: (rows[name], *shape[1:]) if name in rows else shape
        for name, shape in source.shapes.items()
    }
    return dataclasses.replace(
        source, shapes=shapes, tensor=tensor, notices=(*source.notices, *notices)
    )


def without_absent_towers(source: Source) -> Source:
    """The same, without the towers that its config speaks of and its files hold nothing of."""
    parts = {name.partition(".")[0] for name in source.shapes}
    config, gone = source.config, list[str]()
    if config.vision is not None and not parts & _EYE:
        gone.append("vision_config")
    if config.audio is not None and not parts & _EAR:
        gone.append("audio_config")
    if not gone:
        return source
    config = config.without_towers(*gone)
    notice = f"config.json speaks of {' and '.join(gone)}, but the files hold no weights for it"
    return dataclasses.replace(source, config=config, notices=(*source.notices, notice))


def without_towers(source: Source) -> Source:
    """The decoder alone, as a text model."""
    config = source.config.without_towers("vision_config", "audio_config")
    kept = {name for name in source.shapes if name.startswith(DECODER)}
    return dataclasses.replace(_narrowed(source, kept), config=config)


def _narrowed(source: Source, kept: set[str], *notices: str) -> Source:
    shapes = {name: shape for name, shape in source.shapes.items() if name in kept}
    return dataclasses.replace(source, shapes=shapes, notices=(*source.notices, *notices))
