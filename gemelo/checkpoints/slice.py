"""Subsets of a model: a nested model cut out of a whole one, dead weights and towers left out.

An open source in, a smaller open source out. Cutting is renumbering layers and taking leading
parts: the first rows of gate and up, the first columns of down, the columns of kept layers from the
per-layer embeddings and the rows of their projection; everything else is the whole's own tensor.
Views where the parts lie together, quantised blocks included; only where skipped layers leave a gap
is a tensor put together anew, when it is asked for. Towers pass through untouched.

    small = cut(open_source(path), Submodel.named("E2B", config))

V vocabulary, L layers, P width of a per-layer embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gemelo.checkpoints.source import DECODER, PER_LAYER_EMBEDDING, Source
from gemelo.config import ModelConfig, Submodel
from gemelo.errors import UnsupportedError
from gemelo.kernels.quants import Bytes, Packed

_PROJECTION = f"{DECODER}per_layer_model_projection.weight"
_LAYERS = f"{DECODER}layers."
_VISION_PARTS = {"vision_tower", "embed_vision", "multi_modal_projector"}
_AUDIO_PARTS = {"audio_tower", "embed_audio"}


def cut(source: Source, submodel: Submodel) -> Source:
    """The source of a sub-model: its config, names and shapes, and a way to each tensor."""
    config = source.config
    if not config.is_matformer:
        raise UnsupportedError(
            f"{source.path}: {config.model_type} has no nested models; Gemma 3n has"
        )
    submodel.checked(config)
    kept = submodel.kept_layers(config)
    shapes: dict[str, tuple[int, ...]] = {}
    makers: dict[str, Callable[[], Packed]] = {}
    for name, shape in source.shapes.items():
        renamed = _renamed(name, kept)
        if renamed is None:
            continue
        rows, columns = _part(name, shape, config, submodel, kept)
        cut_sizes = (_size(part, size) for part, size in zip((rows, columns), shape, strict=False))
        shapes[renamed] = (*cut_sizes, *shape[2:])
        makers[renamed] = _maker(source, name, rows, columns)
    return dataclasses.replace(
        source,
        config=submodel.config(config),
        shapes=shapes,
        tensor=lambda name: makers[name](),
        is_whole=False,
    )


Selection = int | Sequence[int] | None  # the first so many, these, or all


def _renamed(name: str, kept: Sequence[int]) -> str | None:
    """The tensor's name in the smaller model; None if its layer is skipped."""
    if not name.startswith(_LAYERS):
        return name
    number, _, rest = name.removeprefix(_LAYERS).partition(".")
    return f"{_LAYERS}{kept.index(int(number))}.{rest}" if int(number) in kept else None


def _part(
    name: str,
    shape: tuple[int, ...],
    config: ModelConfig,
    submodel: Submodel,
    kept: Sequence[int],
) -> tuple[Selection, Selection]:
    """Which rows and columns of a tensor the sub-model uses."""
    if name == PER_LAYER_EMBEDDING:
        return None, _columns(config, kept)
    if name == _PROJECTION:
        return _columns(config, kept), None
    if name.startswith(_LAYERS) and ".mlp." in name:
        width = submodel.ffn_widths[kept.index(int(name.removeprefix(_LAYERS).split(".")[0]))]
        return (None, width) if ".down_proj." in name else (width, None)
    return None, None


def _columns(config: ModelConfig, kept: Sequence[int]) -> Selection:
    """Columns of the kept layers in a row that holds P of them for every layer."""
    if len(kept) == config.num_hidden_layers:
        return None
    width = config.hidden_size_per_layer_input
    return [column for layer in kept for column in range(layer * width, (layer + 1) * width)]


def _size(part: Selection, whole: int) -> int:
    return whole if part is None else part if isinstance(part, int) else len(part)


def _maker(source: Source, name: str, rows: Selection, columns: Selection) -> Callable[[], Packed]:
    if rows is None and columns is None:
        return lambda: source.tensor(name)
    return lambda: _taken(source.tensor(name), rows, columns)


def _taken(weight: Packed, rows: Selection, columns: Selection) -> Packed:
    """Rows and columns of a matrix, whole blocks of them; InputError for part of one."""
    leading = weight.prefix(
        rows if isinstance(rows, int) else None, columns if isinstance(columns, int) else None
    )
    blocks, format = leading.blocks, weight.format
    if rows is not None and not isinstance(rows, int):
        blocks = _joined(blocks, 0, _runs(rows))
    if columns is not None and not isinstance(columns, int):
        runs = [(format.row_bytes(start), format.row_bytes(n)) for start, n in _runs(columns)]
        blocks = _joined(blocks, 1, runs)
    return Packed(blocks, format)


def _joined(blocks: Bytes, axis: int, runs: Sequence[tuple[int, int]]) -> Bytes:
    """Runs (start, length) of rows or of bytes, put together anew."""
    whole = (slice(None),) * axis
    return np.concatenate([blocks[(*whole, slice(start, start + n))] for start, n in runs], axis)


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Indices in order as (start, length) of unbroken runs."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


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
    detail = (
        f"layers {first} to {last} attend over keys and values of lower layers; {len(dead)} "
        "weights for keys and values of their own, which nothing uses, are left out"
    )
    narrowed = _narrowed(source, set(source.shapes) - dead)
    return dataclasses.replace(narrowed, details=(*source.details, detail))


def without_padding(source: Source) -> Source:
    """The same, its per-layer table cut to the rows that ids can name, as a view.

    A table with a row for every row of the embedding has been padded with zeros.
    """
    config, shape = source.config, source.shapes.get(PER_LAYER_EMBEDDING)
    rows = config.vocab_size_per_layer_input
    if shape is None or len(shape) != 2 or not rows:  # a wrong shape is told later, with all others
        return source
    if shape[0] == rows or shape[0] != config.vocab_size:
        return source
    detail = f"{shape[0] - rows} rows of embed_tokens_per_layer past the {rows}th are padding"
    narrowed = with_rows(source, {PER_LAYER_EMBEDDING: rows})
    return dataclasses.replace(narrowed, details=(*source.details, detail))


def with_rows(source: Source, rows: Mapping[str, int]) -> Source:
    """The same, of some matrices the leading rows alone, as views."""

    def tensor(name: str) -> Packed:
        weight = source.tensor(name)
        return weight.prefix(rows[name]) if name in rows else weight

    shapes = {
        name: (rows[name], *shape[1:]) if name in rows else shape
        for name, shape in source.shapes.items()
    }
    return dataclasses.replace(source, shapes=shapes, tensor=tensor)


def without_absent_towers(source: Source) -> Source:
    """The same, without the towers that its config speaks of and its files hold nothing of."""
    parts = {name.partition(".")[0] for name in source.shapes}
    config, gone = source.config, list[str]()
    if config.vision is not None and not parts & _VISION_PARTS:
        gone.append("vision_config")
    if config.audio is not None and not parts & _AUDIO_PARTS:
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


def _narrowed(source: Source, kept: set[str]) -> Source:
    shapes = {name: shape for name, shape in source.shapes.items() if name in kept}
    return dataclasses.replace(source, shapes=shapes)
