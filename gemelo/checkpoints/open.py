"""Opening a model: a GGUF file or a Hugging Face directory, as a `Source`.

Loading and converting both begin here, and it is the last place that knows which format a model
came in. Nothing is read but headers. What is known and of no use is left out, and the source's
`notices` say so, a sentence each, for a person to see.

    source = open_source(Path("gemma-3n-E2B-it"))
    source.shapes["language_model.norm.weight"], source.tensor("language_model.norm.weight")
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from gemelo.checkpoints.lm_head import with_head
from gemelo.checkpoints.slice import without_absent_towers, without_dead_keys
from gemelo.checkpoints.source import (
    DECODER,
    EMBEDDING,
    PER_LAYER_EMBEDDING,
    Source,
    canonical,
    shifted,
)
from gemelo.config import Gemma3nConfig, ModelConfig, read_config
from gemelo.config.gemma3n import spare_layer_types
from gemelo.config.settings import (
    check_kind,
    check_plain,
    generation_notices,
    setting_notices,
    writes,
)
from gemelo.errors import FileFormatError, GemeloError, InputError
from gemelo.text_files import read_object
from gemelo.weights import metadata, names
from gemelo.weights.folder import recovered
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_other_files import refuse_other_kinds
from gemelo.weights.safetensors import Safetensors

_LAUREL = "language_model.layers.0.laurel.linear_left.weight"


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
    config, shapes, head_notices = with_head(path, raw, with_ends(path, config), shapes, tensor)
    notices += head_notices + generation_notices(generation(path)) + beside(path, file.files)
    return Source(path, config, shapes, tensor, notices)


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """Errors about a config's values name the file that has them."""
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
    if embedding is not None and len(embedding) == 2 and embedding[0] != raw["vocab_size"]:
        raw["vocab_size"] = embedding[0]  # rows may be padded past the tokenizer's last id
    raw["tie_word_embeddings"] = names.HEAD not in shapes
    kind = str(file.metadata["general.architecture"])
    with _of(file.path):
        config = read_config(raw | (_gemma3n_shapes(shapes) if kind == "gemma3n" else {}))

    return Source(
        file.path,
        config,
        shapes,
        lambda name: shifted(tensor(name), -names.norm_shift(name, kind)),  # GGUF has 1 + w
        (*file.notices, *notices),
        gguf_metadata=file.metadata,
        tower_file=file.only(beside) if beside else None,
        files=file.paths,
    )


def _check_depth(file: GGUFFile, layers: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise for more layers than there are tensors of, before a network of that depth is built."""
    prefix = f"{DECODER}layers."
    layers_shown = {name.split(".")[2] for name in shapes if name.startswith(prefix)}
    if layers > len(layers_shown):
        kind = file.metadata["general.architecture"]
        raise FileFormatError(
            f"{file.path}: {kind}.block_count is {layers}, and there are weights missing: it holds "
            f"those of {len(layers_shown)} layers; fetch it again"
        )


def _gemma3n_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Two facts that only shapes tell. Rows past the text vocabulary are a converter's padding."""
    sizes = {}
    if len(shapes.get(_LAUREL, ())) == 2:
        sizes["laurel_rank"] = shapes[_LAUREL][0]
    if len(shapes.get(PER_LAYER_EMBEDDING, ())) == 2:
        most = Gemma3nConfig.vocab_size_per_layer_input
        sizes["vocab_size_per_layer_input"] = min(shapes[PER_LAYER_EMBEDDING][0], most)
    return sizes
