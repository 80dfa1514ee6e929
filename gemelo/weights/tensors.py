"""Weights: the tensors of a decoder by name, as they lie in the file or in memory.

What a loaded model is made of, whoever runs it. Names are Hugging Face's, without what stands
before the decoder's own (`layers.0.mlp.up_proj.weight`). Every question about all weights is a walk
over this mapping: how large they are, which of them are broken or gone, what files they lie in.

    weights = Weights({"norm.weight": Packed.of(ones), ...})
    weights["layers.0.mlp.up_proj.weight"].shape, weights.nbytes, weights.files
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from gemelo.kernels.quants import Floats, Packed, unpack, unpacked_chunks
from gemelo.weights.mapped import Mapped, behind, lost


class Weights(Mapping[str, Packed]):
    """Tensors by name, in the order of the file. Nothing is copied or read."""

    def __init__(self, tensors: Mapping[str, Packed]) -> None:
        self._tensors = dict(tensors)
        self._floats: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Packed:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors, {self.nbytes / 1e6:.0f} MB)"

    def replaced(self, name: str, weight: Packed) -> None:
        """Let a name mean a copy of its weight, so that what it meant can go."""
        self._tensors[name] = weight

    def floats(self, name: str) -> Floats:
        """A small tensor in float32, widened once for every program that reads it: norms, and
        coefficients of AltUp."""
        if name not in self._floats:
            self._floats[name] = unpack(self[name])
        return self._floats[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are held."""
        return sum(weight.nbytes for weight in self.values())

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats that matrices are held in, most bytes first."""
        sizes: Counter[str] = Counter()
        for weight in self.values():
            if len(weight.shape) > 1:
                sizes[weight.format.name] += weight.nbytes
        return tuple(name for name, _ in sizes.most_common())

    @cached_property
    def files(self) -> list[Mapped]:
        """The maps that tensors came from; some of them may have moved elsewhere since."""
        return behind(self.values())

    def lost(self) -> Iterator[str]:
        """Names of tensors in which pages are missing by now, because their file was cut short."""
        ranges = lost()
        for name, weight in self.items() if ranges else ():
            begin, end = weight.address, weight.address + _span_bytes(weight)
            if any(begin < stop and first < end for first, stop in ranges):
                yield name

    def broken(self) -> Iterator[tuple[str, str]]:
        """Names of tensors that hold NaN or infinity, and which; reads all of them.

        Tables that are only looked up in count as well: a row of theirs may be what spoilt scores.
        """
        for name, weight in self.items():
            for _, values in unpacked_chunks(weight):
                if not np.isfinite(values).all():
                    yield name, "NaN" if np.isnan(values).any() else "infinity"
                    break


def _span_bytes(weight: Packed) -> int:
    """Bytes from a weight's first to its last, those of others between its rows included."""
    return (weight.rows - 1) * weight.stride + weight.blocks.shape[1] if weight.rows else 0
