"""The LM head of a checkpoint: tied to the embedding or its own, whatever its config says.

transformers ties the two only if the files hold no other head, and so does this. A multimodal
config may say it at either level.

    config, shapes, notices = with_head(path, raw, config, shapes, tensor)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemelo.config import ModelConfig
from gemelo.config.config_json import section
from gemelo.errors import FileFormatError
from gemelo.kernels.quants import Packed, unpack
from gemelo.weights.names import HEAD

EMBEDDING = "language_model.embed_tokens.weight"
_ROWS = 4096  # that are compared at a time

Shapes = dict[str, tuple[int, ...]]


def with_head(
    path: Path,
    raw: Mapping[str, Any],
    config: ModelConfig,
    shapes: Shapes,
    tensor: Callable[[str], Packed],
) -> tuple[ModelConfig, Shapes, tuple[str, ...]]:
    """The config and the shapes with the head that the files hold: one that only repeats the
    embedding is dropped, and one that does not is run. Notices say so where nobody would expect it.

    Raises FileFormatError where the config unties a head that the files lack.
    """
    if HEAD not in shapes:
        if not config.tie_word_embeddings:
            raise FileFormatError(
                f"{path}: config.json has tie_word_embeddings = false, but the files hold no "
                "lm_head.weight; set it to true if the embedding is the head"
            )
        return config, shapes, ()
    if EMBEDDING not in shapes:  # and so reported as missing
        return config, shapes, ()
    if _are_equal(tensor(HEAD), tensor(EMBEDDING)):
        kept = {name: shape for name, shape in shapes.items() if name != HEAD}
        return dataclasses.replace(config, tie_word_embeddings=True), kept, ()
    tied = [part.get("tie_word_embeddings") for part in (raw, section(raw, "text_config"))]
    notice = (
        "lm_head.weight differs from embed_tokens.weight, though config.json does not untie them; "
        "it is used"
    )
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    return untied, shapes, () if False in tied else (notice,)


def _are_equal(a: Packed, b: Packed) -> bool:
    """Whether two matrices hold the same numbers, though perhaps as floats of two kinds."""
    if a.shape != b.shape or not a.shape:
        return False
    parts = (slice(start, start + _ROWS) for start in range(0, a.rows, _ROWS))
    return all(_equal_rows(a, b, part) for part in parts)


def _equal_rows(a: Packed, b: Packed, part: slice) -> bool:
    if a.format == b.format and np.array_equal(a.blocks[part], b.blocks[part]):
        return True
    one, other = (unpack(Packed(weight.blocks[part], weight.format)) for weight in (a, b))
    return bool(np.array_equal(one, other))
