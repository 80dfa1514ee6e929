"""Weights of a config that take no memory, and fail a test that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from gemelo.config import ModelConfig
from gemelo.config.parameters import decoder_shapes, parameter_shapes
from gemelo.kernels.quants import FORMATS, Format, Packed
from gemelo.weights.tensors import Weights

DECODER = "language_model."


class Unread(np.ndarray[Any, np.dtype[np.uint8]]):
    """Bytes whose number may be asked for, and which nobody may look at."""

    def _fail(self, *args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a weight was read")

    __getitem__ = __array_ufunc__ = __array_function__ = view = astype = _fail  # type: ignore


def hollow(config: ModelConfig, format: str = "f32") -> Weights:
    """A decoder's weights: matrices in a format, all else in float32."""
    return Weights(_hollow(decoder_shapes(config), format))


def hollow_towers(config: ModelConfig, format: str = "f32") -> dict[str, Packed]:
    """What a model has beside its decoder, by canonical names."""
    shapes = parameter_shapes(config)
    towers = {name: shapes[name] for name in shapes if not name.startswith(DECODER)}
    return _hollow(towers, format)


def _hollow(shapes: Mapping[str, tuple[int, ...]], format: str) -> dict[str, Packed]:
    return {name: _empty(shape, _format(shape, format)) for name, shape in shapes.items()}


def _format(shape: tuple[int, ...], format: str) -> Format:
    whole = len(shape) == 2 and shape[1] % FORMATS[format].block == 0
    return FORMATS[format if whole else "f32"]


def _empty(shape: tuple[int, ...], format: Format) -> Packed:
    """One row of bytes that stands for all of them."""
    *outer, columns = shape
    row = np.zeros((1, format.row_bytes(columns)), np.uint8)
    rows = np.broadcast_to(row, (int(np.prod(outer)), row.shape[1]))
    return Packed(np.ndarray.view(rows, Unread), format, None if len(shape) == 2 else shape)
