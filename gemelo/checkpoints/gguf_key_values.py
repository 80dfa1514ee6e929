"""GGUF key-values of a conversion: which are written, and what becomes of those that it found.

From GGUF to GGUF an entry passes through as it is stored, whoever's it is; only what the conversion
changes is written anew. A Hugging Face directory has a place for the model's facts and its
tokenizer, and for nothing else: what is left out is said.

    values = gguf_values(source, targets);  source = with_loss_notices(source)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemelo.checkpoints.plan import Target
from gemelo.checkpoints.source import Source, architecture
from gemelo.checkpoints.tokenizers import tokenizer_of
from gemelo.errors import listed
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.weights import gguf_split, metadata
from gemelo.weights.gguf_values import KeyValues

_FILE_TYPE = "general.file_type"
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
_UNUSED = 5  # GGUF's type of a token that no text has
_COUNTS = ("general.parameter_count", "general.size_label")  # of the model as it was
# What a directory says in its own words, or what is true of the one file alone.
_HELD = (
    "general.architecture",
    "general.type",
    "general.name",  # a folder has its own
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
    *_COUNTS,
    "split.",
)
_HELD_TOKENIZER = {
    "tokenizer.chat_template",
    *(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "scores", "token_type")),
    *(f"tokenizer.ggml.add_{key}" for key in ("bos_token", "eos_token", "space_prefix")),
    *(f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "eot", "eom")),
    *(f"tokenizer.ggml.{key}_token_id" for key in ("unknown", "padding")),
}


def gguf_values(source: Source, targets: Sequence[Target]) -> KeyValues:
    """The source's own key-values where it is a GGUF; else written from config and tokenizer."""
    kinds = [target.format.name for target in targets if len(target.shape) == 2]
    common = max(set(kinds), key=kinds.count)
    file_type = {_FILE_TYPE: _FILE_TYPES[common]} if common in _FILE_TYPES else {}
    if source.gguf_metadata is None:
        return KeyValues(_values_of(source) | file_type, {})
    facts = source.gguf_metadata
    values = facts if isinstance(facts, KeyValues) else KeyValues(facts, {})
    changes = {} if source.is_whole else metadata.config_to_gguf(source.config.to_hf())
    return values.changed(changes | file_type, _outdated(source, values, not file_type))


def _outdated(source: Source, values: Mapping[str, Any], no_file_type: bool) -> list[str]:
    """Keys that are not true of the new file."""
    gone = [*gguf_split.KEYS, _FILE_TYPE] if no_file_type else [*gguf_split.KEYS]
    if not source.is_whole or source.tower_file is not None:
        gone += _COUNTS
    if source.tower_file is not None:
        own = architecture(source.config)
        of_towers = (f"{own}.vision.", f"{own}.audio.", f"{own}.mm.", "clip.")
        gone += [key for key in values if key.startswith(of_towers)]
    return gone


def _values_of(source: Source) -> dict[str, Any]:
    values = {
        "general.architecture": architecture(source.config),
        "general.type": "model",
        "general.name": source.path.resolve().name,
        "general.quantization_version": 2,
    }
    values |= metadata.config_to_gguf(source.config.to_hf())
    return values | _tokens(tokenizer_of(source), source.config.vocab_size)


def _tokens(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The tokenizer's key-values, one token a row of the embedding, as llama.cpp insists."""
    values = tokenizer.to_gguf()
    spare = rows - len(values["tokenizer.ggml.tokens"])
    padding = {
        "tokens": [f"[PAD{id}]" for id in range(rows - spare, rows)],
        "scores": np.zeros(max(0, spare), np.float32),
        "token_type": np.full(max(0, spare), _UNUSED, np.int32),
    }
    for leaf, more in padding.items():
        known = values[f"tokenizer.ggml.{leaf}"][:rows]
        joined = [*known, *more] if isinstance(more, list) else np.concatenate([known, more])
        values[f"tokenizer.ggml.{leaf}"] = joined
    return values


def with_loss_notices(source: Source) -> Source:
    """The same with a notice of the key-values that a directory has no place for."""
    prefixes = (*_HELD, f"{architecture(source.config)}.", "clip.")
    facts = source.gguf_metadata or ()
    lost = [key for key in facts if not (key.startswith(prefixes) or key in _HELD_TOKENIZER)]
    if not lost:
        return source
    what = "a key-value" if len(lost) == 1 else f"{len(lost)} key-values"
    are = "is" if len(lost) == 1 else "are"
    notice = (
        f"{what} of the GGUF {are} left out, which a directory has no place for (a "
        f"target that ends in .gguf keeps them): {listed(lost, most=6)}"
    )
    return dataclasses.replace(source, notices=(*source.notices, notice))
